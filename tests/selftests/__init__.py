"""The kernel's KVM selftests on memory as tests of vmmd: same scenarios, T64 guests, compiled engine, two workers.

| kernel selftest | here |
| --- | --- |
| set_memory_region_test | test_set_memory_region |
| memslot_modification_stress_test | test_memslot_modification |
| dirty_log_test (plain and clear mode), clear_dirty_log_test | test_dirty_log_rounds |
| dirty_log_test (ring mode) | tests/kvm/test_dirty_rings, whose last test is its rounds |
| dirty_log_perf_test | test_dirty_log_phases |
| memslot_perf_test | test_memslot_perf |

Sizes are scaled down; what each scenario demands of the memory is not. `test_resizing` goes beyond the kernel, which
has no call for it. Left out is what vmmd does not have: guest_memfd, second address spaces, exceptions while vectoring.

`old_places` and `unnoticed` are scenarios of the same kind for as many changes as one likes: tests/kvm makes some, and
tests/benchmarks 100,000.
"""
