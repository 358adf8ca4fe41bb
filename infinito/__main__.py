"""``python -m infinito`` is the command ``infinito``."""

import sys

from infinito.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
