"""ESP without a kernel that has it: a process of its own, under its own uid."""
