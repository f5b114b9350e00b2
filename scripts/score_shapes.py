#!/usr/bin/env python
"""Scores a text-to-image model on `shapes`; `--help` tells how."""

import sys
from pathlib import Path

try:
    from latentgen.cli.score_shapes import main
except ModuleNotFoundError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from latentgen.cli.score_shapes import main

if __name__ == "__main__":
    sys.exit(main())
