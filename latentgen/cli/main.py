"""`latentgen SUBCOMMAND ...`: finds the subcommand and turns its errors into one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import latentgen


class Command(NamedTuple):
    """A subcommand: one line for the help, and the "module:function" that takes its arguments, a list of strings."""

    summary: str
    run: str


COMMANDS = {
    "generate": Command("draw pictures from sentences", "latentgen.cli.generate:run"),
    "train": Command("make a model from pictures with captions", "latentgen.cli.train:run"),
}

# What a user can cause and can mend; anything else is a mistake of ours and keeps its traceback.
_EXPECTED = (ValueError, OSError, FloatingPointError, argparse.ArgumentError)

_TOO_MUCH = (
    "out of memory ({}); ask for less at once: a smaller batch size, smaller pictures, a model of fewer channels, "
    "or 16 bits a number"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, that of the process if None, and return the exit status.

    0 is success, 2 bad input or an operation that failed, with one line on stderr that says what to do, and 130 the
    user's Ctrl-C. LATENTGEN_DEBUG=1 in the environment shows tracebacks.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            # What libraries deprecate is no news for somebody who draws a picture.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.showwarning = _show_warning
            return _dispatch(arguments)
    except KeyboardInterrupt as stop:
        if stop.args:
            print(f"latentgen: {_one_line(stop)}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        out_of_memory = _is_out_of_memory(error)
        if os.environ.get("LATENTGEN_DEBUG") == "1" or not (out_of_memory or isinstance(error, _EXPECTED)):
            raise
        told = _one_line(error) or type(error).__name__
        print(f"latentgen: error: {_TOO_MUCH.format(told) if out_of_memory else told}", file=sys.stderr)
        return 2


def usage() -> str:
    """The text of `latentgen --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: latentgen [--help] [--version] SUBCOMMAND ...",
            "",
            "Text-to-image by latent diffusion: draw pictures from sentences, and train models that do.",
            "",
            "subcommands:",
            *lines,
            "",
            "`latentgen SUBCOMMAND --help` tells more.",
        ]
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(usage(), file=sys.stderr)
        return 2
    first, *rest = arguments
    if first in ("-h", "--help"):
        print(usage())
        return 0
    if first in ("-V", "--version"):
        print(f"latentgen {latentgen.__version__}")
        return 0
    if first not in COMMANDS:
        raise ValueError(f"there is no subcommand {first!r}; choose one of {', '.join(COMMANDS)}")
    module, function = COMMANDS[first].run.split(":")
    return getattr(import_module(module), function)(rest) or 0


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own, torch's of accelerators, and torch's of the CPU, which has no class of its own."""
    told = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or "OutOfMemory" in told or "can't allocate memory" in told


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    print(f"latentgen: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
