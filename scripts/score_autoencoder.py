#!/usr/bin/env python
"""Measures how well an autoencoder rebuilds pictures; `--help` tells how."""

import sys
from pathlib import Path

try:
    from latentgen.cli.score_autoencoder import main
except ModuleNotFoundError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from latentgen.cli.score_autoencoder import main

if __name__ == "__main__":
    sys.exit(main())
