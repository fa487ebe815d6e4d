/*
 * Times KVM_SET_USER_MEMORY_REGION of this machine's kernel: for each count of slots that is given, fills that many slots of one
 * page, changes slots at random, and empties them. Prints a line a count:
 *     count fill empty delete create move        (microseconds a call: means of fill and empty, else medians)
 * Every return code is checked, since a refused call takes half a microsecond.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, STRIDE = 2 * PAGE, ROUNDS = 2000 };

static int vm;
static char *memory;

static double now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void set(uint32_t slot, uint64_t gpa, uint64_t size)
{
	struct kvm_userspace_memory_region region = { slot, 0, gpa, size, (uintptr_t)memory + (uint64_t)slot * PAGE };
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) {
		perror("KVM_SET_USER_MEMORY_REGION");
		exit(1);
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *values)
{
	qsort(values, ROUNDS, sizeof *values, by_value);
	return values[ROUNDS / 2];
}

int main(int argc, char **argv)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		perror("/dev/kvm");
		return 1;
	}
	for (int arg = 1; arg < argc; arg++) {
		uint32_t count = strtoul(argv[arg], NULL, 0);
		static double deletes[ROUNDS], creates[ROUNDS], moves[ROUNDS];
		vm = ioctl(kvm, KVM_CREATE_VM, 0);
		memory = mmap(NULL, (size_t)count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (vm < 0 || memory == MAP_FAILED) {
			perror("VM");
			return 1;
		}
		double start = now_us();
		for (uint32_t slot = 0; slot < count; slot++)
			set(slot, (uint64_t)slot * STRIDE, PAGE);
		double fill = (now_us() - start) / count;
		for (int round = 0; round < ROUNDS; round++) {
			uint32_t slot = rand() % count;
			uint64_t gpa = (uint64_t)slot * STRIDE;
			double a = now_us();
			set(slot, gpa, 0);
			double b = now_us();
			set(slot, gpa, PAGE);
			double c = now_us();
			set(slot, gpa + PAGE, PAGE);
			double d = now_us();
			set(slot, gpa, PAGE);
			deletes[round] = b - a, creates[round] = c - b, moves[round] = d - c;
		}
		start = now_us();
		for (uint32_t slot = 0; slot < count; slot++)
			set(slot, (uint64_t)slot * STRIDE, 0);
		double empty = (now_us() - start) / count;
		printf("%u %.1f %.1f %.1f %.1f %.1f\n", count, fill, empty, median(deletes), median(creates), median(moves));
	}
	return 0;
}
