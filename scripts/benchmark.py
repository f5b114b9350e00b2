#!/usr/bin/env python
"""Times latentgen against diffusers on the same weights; `--help` tells how."""

import sys
from pathlib import Path

try:
    from latentgen.cli.benchmark import main
except ModuleNotFoundError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from latentgen.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
