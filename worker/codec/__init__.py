"""ISAKMP that only the worker reads and writes: header, phase 1 proposals, rules. The rest is `privsep.isakmp`."""
