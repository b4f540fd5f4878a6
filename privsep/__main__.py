"""`python -m privsep` is `privsep-ike`."""

import sys

from privsep.cli import main

if __name__ == "__main__":
    sys.exit(main())
