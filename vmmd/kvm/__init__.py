"""The ioctls, a module for each level of file descriptor as in KVM: system, VM, vCPU."""
