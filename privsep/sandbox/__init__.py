"""Confinement: one mechanism a module, in order in `confine`; each process's own grants stand in its `sandbox.py`."""
