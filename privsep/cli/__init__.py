"""The operator's command `privsep-ike`: one module for each group of commands; it holds no secret and no privilege."""

from privsep.cli.main import main

__all__ = ["main"]
