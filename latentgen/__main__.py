"""`python -m latentgen` is the `latentgen` command."""

from __future__ import annotations

import sys

from latentgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
