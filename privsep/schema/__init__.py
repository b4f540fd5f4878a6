"""Typed messages between the processes; each module is one channel and all that may be said on it."""
