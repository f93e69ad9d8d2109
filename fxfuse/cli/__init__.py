"""The command line: `fxfuse fuse`, `fxfuse inspect`, `fxfuse plan` and others, one file each.

Exit codes: 0 done (written, or would be with --dry-run); 1 verification failed or an internal error; 2 bad
arguments or unreadable input; 3 nothing to fuse or to split, or nothing within budget; 130 and 143
interrupted. No model is written but for 0.
"""

from fxfuse.cli.entry import main, parser

__all__ = ["main", "parser"]
