"""A process that asks the C library for one name, on behalf of the monitor, and ends."""
