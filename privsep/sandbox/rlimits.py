"""Resource limits, soft and hard alike, so that they only ever shrink (setrlimit(2))."""

import resource
from collections.abc import Mapping

from privsep.sandbox.errors import SandboxError


def apply(limits: Mapping[int, int]) -> None:
    """Lower each to its value, or keep what is lower already."""
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        new = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (new, new))
        if resource.getrlimit(kind) != (new, new):
            raise SandboxError(f"resource limit {kind} did not take effect")
