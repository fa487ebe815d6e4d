"""T64, the toy machine: one table of instructions and two engines that read it. Knows memory, and no vCPU."""
