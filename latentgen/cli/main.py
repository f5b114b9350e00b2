"""`latentgen SUBCOMMAND ...`: finds the subcommand and turns its errors into one line and an exit status."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import latentgen
from latentgen.cli import script


class Command(NamedTuple):
    """A subcommand: one line for the help, and the "module:function" that takes its arguments, a list of strings."""

    summary: str
    run: str


COMMANDS = {
    "generate": Command("draw pictures from sentences", "latentgen.cli.generate:run"),
    "train": Command("make a model from pictures with captions", "latentgen.cli.train:run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, that of the process if None, and return the exit status.

    See `latentgen.cli.script.run` for what it means.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        # What libraries deprecate is no news for somebody who draws a picture.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = _show_warning
        return script.run(lambda: _dispatch(arguments), "latentgen")


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


def _show_warning(message: Warning | str, *args: object, **kwargs: object) -> None:
    print(f"latentgen: warning: {script.one_line(message)}", file=sys.stderr)
