"""``python -m asng_ext.cli``: the same as ``python -m asng_ext``."""

import sys

from asng_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
