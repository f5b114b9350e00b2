"""What all commands share: one-line errors, exit statuses, and output files that are not overwritten."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# What a user can cause and can mend; anything else is a mistake of ours and keeps its traceback.
_EXPECTED = (ValueError, OSError, FloatingPointError, argparse.ArgumentError)

_TOO_MUCH = (
    "out of memory ({}); ask for less at once: a smaller batch size, smaller pictures, a model of fewer channels, "
    "or 16 bits a number"
)


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


def run(work: Callable[[], int | None], program: str = "") -> int:
    """Do the work and return the exit status.

    It is what the work returns (0 for None), 2 with one line on stderr for bad input or an operation that failed, and
    130 for the user's Ctrl-C. LATENTGEN_DEBUG=1 in the environment shows tracebacks.

    Args:
        work: What to do.
        program: A name for the line to begin with.
    """
    before = f"{program}: " if program else ""
    try:
        return work() or 0
    except KeyboardInterrupt as stop:
        if stop.args:
            print(f"{before}{one_line(stop)}", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse's --help, and jsonargparse's own errors
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        out_of_memory = _is_out_of_memory(error)
        if os.environ.get("LATENTGEN_DEBUG") == "1" or not (out_of_memory or isinstance(error, _EXPECTED)):
            raise
        told = one_line(error) or type(error).__name__
        print(f"{before}error: {_TOO_MUCH.format(told) if out_of_memory else told}", file=sys.stderr)
        return 2


def one_line(message: object) -> str:
    """A message without its line breaks."""
    return " ".join(str(message).split())


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own, torch's of accelerators, and torch's of the CPU, which has no class of its own."""
    told = f"{type(error).__name__}: {error}".lower()
    signs = ("outofmemory", "out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(sign in told for sign in signs)


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
