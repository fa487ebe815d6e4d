/*
 * Times a kick of this machine's kernel: for each number of vCPUs that is given, lets that many threads run a guest that
 * counts, brings all of them out of KVM_RUN by immediate_exit and a signal, and lets them go on. Prints a line a number:
 *     vcpus kick_p50 kick_p99 next_p50 next_p99        (microseconds; next: from letting them go until a guest goes on)
 * The guest runs at privilege level 3 over page tables of one large page: elsewhere KVM may emulate each instruction. It
 * tells itself when it went on: asked by a flag in its memory, it leaves its time stamp counter there, which is the host's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { PAGE = 4096, MEMORY = 2 << 20, CODE = 4 * PAGE, ANSWERS = 5 * PAGE, MAX_VCPUS = 256 };
enum { MAX_ROUNDS = 300, BUDGET_US = 1000000, BETWEEN_US = 1000 };

/* A guest's line of memory. */
struct answer {
	volatile uint64_t asked, tsc, padding[6];
};

struct vcpu {
	int fd;
	struct kvm_run *run;
	pthread_t thread;
};

static struct vcpu vcpus[MAX_VCPUS];
static char *memory;
static atomic_uint outside; /* threads out of KVM_RUN since the kick */
static atomic_uint round_of_go; /* odd while they are to stay out */
static atomic_bool over;
static double tsc_per_us;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static double now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void futex(atomic_uint *word, int operation, unsigned value)
{
	if (syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0) < 0 && errno != EAGAIN && errno != EINTR)
		fail("futex");
}

static void on_signal(int number)
{
	(void)number;
}

static void *run(void *argument)
{
	struct vcpu *vcpu = argument;
	for (;;) {
		unsigned go = atomic_load(&round_of_go);
		if (go & 1) {
			/* The kick is seen before KVM_RUN or after its EINTR: both are outside. */
			atomic_fetch_add(&outside, 1);
			futex(&outside, FUTEX_WAKE, 1);
			while (atomic_load(&round_of_go) == go)
				futex(&round_of_go, FUTEX_WAIT, go);
			if (atomic_load(&over))
				return NULL;
			continue;
		}
		if (ioctl(vcpu->fd, KVM_RUN, 0) == 0) {
			fprintf(stderr, "KVM_RUN: exit reason %u\n", vcpu->run->exit_reason);
			exit(1);
		}
		if (errno != EINTR)
			fail("KVM_RUN");
	}
}

static double kick(unsigned count)
{
	double start = now_us();
	atomic_store(&outside, 0);
	atomic_fetch_add(&round_of_go, 1);
	for (unsigned i = 0; i < count; i++) {
		vcpus[i].run->immediate_exit = 1;
		if (pthread_kill(vcpus[i].thread, SIGUSR1))
			fail("pthread_kill");
	}
	for (unsigned seen; (seen = atomic_load(&outside)) != count;)
		futex(&outside, FUTEX_WAIT, seen);
	return now_us() - start;
}

static void resume(unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		vcpus[i].run->immediate_exit = 0;
	atomic_fetch_add(&round_of_go, 1);
	futex(&round_of_go, FUTEX_WAKE, MAX_VCPUS);
}

static struct answer *answers(void)
{
	return (struct answer *)(memory + ANSWERS);
}

static void pause_us(long us)
{
	struct timespec t = { 0, us * 1000 };
	nanosleep(&t, NULL);
}

/* Every guest answers, so none is on its way to its first instruction. */
static void ask_all(unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		answers()[i].asked = 1;
	for (unsigned i = 0; i < count; i++)
		while (answers()[i].asked)
			pause_us(100);
}

/* Let them go, and return after how many microseconds the first went on. */
static double resume_and_ask(unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		answers()[i].asked = 1;
	uint64_t start = __rdtsc(), first = UINT64_MAX;
	resume(count);
	while (first == UINT64_MAX) {
		pause_us(BETWEEN_US);
		for (unsigned i = 0; i < count; i++)
			/* A guest that was kicked between looking at the time and telling it tells an old one. */
			if (!answers()[i].asked && answers()[i].tsc > start && answers()[i].tsc < first)
				first = answers()[i].tsc;
	}
	return (first - start) / tsc_per_us;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void fill_memory(void)
{
	uint64_t *tables = (uint64_t *)memory;
	/* 1: cmpq $0, (%rbx); je 1b; rdtsc; shl $32, %rdx; or %rax, %rdx; mov %rdx, 8(%rbx); movq $0, (%rbx); jmp 1b */
	static const uint8_t code[] = { 0x48, 0x83, 0x3b, 0x00, 0x74, 0xfa, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xc2,
					0x48, 0x89, 0x53, 0x08, 0x48, 0xc7, 0x03, 0x00, 0x00, 0x00, 0x00, 0xeb, 0xe4 };
	memset(memory, 0, MEMORY);
	/* Three levels, user and accessed; the last maps one large page that is dirty already. */
	tables[0] = PAGE | 0x27;
	tables[512] = 2 * PAGE | 0x27;
	tables[1024] = 0 | 0xe7;
	memcpy(memory + CODE, code, sizeof code);
}

static void make_vcpu(int kvm, int vm, unsigned id)
{
	struct vcpu *vcpu = &vcpus[id];
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rbx = ANSWERS + id * sizeof(struct answer) };
	struct kvm_segment data = { .limit = ~0u, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1 };
	struct kvm_segment code = { .limit = ~0u, .selector = 0x33, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1 };
	uint64_t offset = 0;
	struct kvm_device_attr tsc = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset };
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	vcpu->fd = ioctl(vm, KVM_CREATE_VCPU, id);
	if (size < 0 || vcpu->fd < 0)
		fail("KVM_CREATE_VCPU");
	vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED || ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		fail("KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x80000031, sregs.cr3 = 0, sregs.cr4 = 0x20, sregs.efer = 0x500;
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) || ioctl(vcpu->fd, KVM_SET_REGS, &regs))
		fail("KVM_SET_SREGS");
	if (ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &tsc))
		fail("KVM_VCPU_TSC_OFFSET");
	/* From here on KVM_RUN has the vCPU, and its other ioctls would wait. */
	tsc_per_us = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0) / 1e3;
	if (tsc_per_us <= 0)
		fail("KVM_GET_TSC_KHZ");
	if (pthread_create(&vcpu->thread, NULL, run, vcpu))
		fail("pthread_create");
}

static int make_vm(int kvm)
{
	struct kvm_userspace_memory_region region = { 0, 0, 0, MEMORY, (uintptr_t)memory };
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0 || ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		fail("VM");
	return vm;
}

static void measure(int kvm, unsigned count)
{
	static double kicks[MAX_ROUNDS], nexts[MAX_ROUNDS];
	int vm, rounds = 0;
	fill_memory();
	vm = make_vm(kvm);
	for (unsigned i = 0; i < count; i++)
		make_vcpu(kvm, vm, i);
	ask_all(count);
	double begun = now_us();
	for (; rounds < MAX_ROUNDS && (rounds < 30 || now_us() - begun < BUDGET_US); rounds++) {
		kicks[rounds] = kick(count);
		nexts[rounds] = resume_and_ask(count);
	}
	kick(count);
	atomic_store(&over, 1);
	resume(count);
	for (unsigned i = 0; i < count; i++) {
		pthread_join(vcpus[i].thread, NULL);
		munmap(vcpus[i].run, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
		close(vcpus[i].fd);
	}
	atomic_store(&over, 0);
	close(vm);
	qsort(kicks, rounds, sizeof *kicks, by_value);
	qsort(nexts, rounds, sizeof *nexts, by_value);
	int last = rounds - 1 - rounds / 100;
	printf("%u %.1f %.1f %.1f %.1f\n", count, kicks[rounds / 2], kicks[last], nexts[rounds / 2], nexts[last]);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	/* Without SA_RESTART a signal ends KVM_RUN with EINTR. */
	struct sigaction action = { .sa_handler = on_signal };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	memory = mmap(NULL, MEMORY * 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (kvm < 0 || memory == MAP_FAILED || sigaction(SIGUSR1, &action, NULL))
		fail("/dev/kvm");
	for (int arg = 1; arg < argc; arg++)
		measure(kvm, strtoul(argv[arg], NULL, 0));
	return 0;
}
