"""``python -m asng_ext``: the command line, for launchers that start modules."""

import sys

from asng_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
