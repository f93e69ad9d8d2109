"""The same as the command `fxfuse`, as `python -m fxfuse.cli`."""

import sys

from fxfuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
