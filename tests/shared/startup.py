"""An interpreter that runs code of a test's before anything else, as do all those that it starts.

So a process is started, isolated and shown by the kernel exactly as it is at work, and still differs in one thing.
"""

import site
import sys
from pathlib import Path


class Interpreter:
    """Of the same installation, at `path`; `run_first` says what it does at its next start."""

    def __init__(self, directory: Path) -> None:
        real = Path(sys.executable).resolve()
        self.path = directory / "bin/python"
        self._code = directory / "sitecustomize.py"
        packages = directory / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        packages.mkdir(parents=True)
        self.path.parent.mkdir()
        self.path.symlink_to(real)
        (directory / "pyvenv.cfg").write_text(f"home = {real.parent}\n")
        # not from here: this file is still open while its lines are run
        add = f"import site, sys; list(map(site.addsitedir, {site.getsitepackages()}))"
        (packages / "first.pth").write_text(f"{add}; sys.path.insert(0, {str(directory)!r})")

    def run_first(self, code: str) -> None:
        """It is a module, `sitecustomize`: when it ends, the interpreter goes on to what its command line says."""
        self._code.write_text(code)
