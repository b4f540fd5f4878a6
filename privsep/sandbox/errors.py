"""What a step that did not take effect raises. Nobody catches it: the process ends."""

from privsep.config.model import Layer
from privsep.errors import OperatorError


class SandboxError(OperatorError):
    """A confinement step did not take effect on this machine."""


def missing(layer: Layer, why: str) -> SandboxError:
    """A layer that the machine lacks and the configuration does not name."""
    return SandboxError(
        f"sandbox layer {layer.value} cannot be applied ({why}); give the daemon what it needs, "
        f'or accept the loss with absent = ["{layer.value}"] under [gateway]'
    )
