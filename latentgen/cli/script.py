"""What the programs in scripts/ share: one-line errors, exit statuses, and output folders that are not overwritten."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser that shows a module's docstring as help; its errors are ValueErrors, which `run` says.

    Args:
        prog: Name of the program.
        doc: The docstring; its first line goes before the arguments, the rest after them.
    """

    def __init__(self, prog: str, doc: str | None = None, **settings: Any) -> None:
        what, _, more = (doc or "").partition("\n")
        texts: dict[str, Any] = {"description": what, "epilog": more} | settings
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **texts)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print with the usage."""
        raise ValueError(f"{message}; see `{self.prog} --help`")


def run(work: Callable[[], object]) -> int:
    """Do the work and return the exit status: 2 with one line on stderr for what the user can mend, 130 for Ctrl-C.

    LATENTGEN_DEBUG=1 in the environment shows tracebacks.
    """
    try:
        work()
    except KeyboardInterrupt as stop:
        print(" ".join(str(stop).split()) or "stopped", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse's --help, and jsonargparse's own errors
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("LATENTGEN_DEBUG") == "1":
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def new_file(path: Path, overwrite: bool) -> Path:
    """Check that a file can be written at `path`; makes its folder.

    Raises:
        FileExistsError: It is there and `overwrite` is false.
        OSError: It is a folder, or its folder cannot be made.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or pass --overwrite to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} cannot be written; choose another place")
    return path
