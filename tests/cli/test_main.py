"""The `latentgen` command: subcommands, one line an error, exit statuses."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

import latentgen
from latentgen.cli import main as command


@pytest.fixture
def subcommand(monkeypatch: pytest.MonkeyPatch):
    """Put a function behind `latentgen trial`."""

    def put(function) -> None:
        monkeypatch.setattr(command, "trial", function, raising=False)
        monkeypatch.setitem(command.COMMANDS, "trial", command.Command("a trial", f"{command.__name__}:trial"))

    return put


def test_help_names_every_subcommand(capsys) -> None:
    assert command.main(["--help"]) == command.main(["-h"]) == 0
    shown = capsys.readouterr().out
    for name, entry in command.COMMANDS.items():
        assert re.search(rf"^  {name} +{entry.summary}$", shown, re.MULTILINE)


def test_version_is_that_of_the_package(capsys) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"latentgen {latentgen.__version__}\n"


def test_nothing_and_nonsense(capsys) -> None:
    assert command.main([]) == 2
    assert "usage: latentgen" in capsys.readouterr().err
    assert command.main(["draw"]) == 2
    assert capsys.readouterr().err == (
        f"latentgen: error: there is no subcommand 'draw'; choose one of {', '.join(command.COMMANDS)}\n"
    )


def test_a_subcommand_gets_its_arguments_and_gives_the_status(subcommand) -> None:
    seen = []
    subcommand(lambda argv: seen.append(argv))
    assert command.main(["trial", "--help", "x"]) == 0
    assert seen == [["--help", "x"]]
    subcommand(lambda argv: 7)
    assert command.main(["trial"]) == 7


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("two\nlines,  one thing"), "two lines, one thing"),
        (FileNotFoundError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
        (FloatingPointError("the loss is nan"), "the loss is nan"),
        (OSError(), "OSError"),
    ],
)
def test_expected_errors_are_one_line_and_status_2(subcommand, capsys, monkeypatch, error, shown) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    subcommand(fail)
    assert command.main(["trial"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"latentgen: error: {shown}\n")
    monkeypatch.setenv("LATENTGEN_DEBUG", "1")
    with pytest.raises(type(error)):
        command.main(["trial"])


def test_our_own_mistakes_keep_their_traceback(subcommand) -> None:
    def fail(argv: list[str]) -> None:
        raise KeyError("x")

    subcommand(fail)
    with pytest.raises(KeyError):
        command.main(["trial"])


@pytest.mark.parametrize("ask", [lambda: torch.empty(2**60), lambda: bytearray(2**62)], ids=["torch", "python"])
def test_too_little_memory_is_one_line_that_says_what_to_do(subcommand, capsys, ask) -> None:
    subcommand(lambda argv: ask())
    assert command.main(["trial"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("latentgen: error: out of memory (")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (SystemExit(2), 2), (SystemExit(None), 0)])
def test_interrupts_and_exits_are_quiet(subcommand, capsys, raised, status: int) -> None:
    def stop(argv: list[str]) -> None:
        raise raised

    subcommand(stop)
    assert command.main(["trial"]) == status
    assert capsys.readouterr() == ("", "")


def test_warnings_are_one_line_and_deprecations_none(subcommand, capsys) -> None:
    def warn(argv: list[str]) -> None:
        warnings.warn("cut:\n'a b'", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    subcommand(warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert command.main(["trial"]) == 0
    assert capsys.readouterr().err == "latentgen: warning: cut: 'a b'\n"


def test_train_names_its_tasks(capsys) -> None:
    from training.command import TASKS

    assert command.main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(task in shown for task in TASKS)
    assert command.main(["train"]) == 2
    capsys.readouterr()
    assert command.main(["train", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("latentgen: error: there is no training task 'nothing'; choose one of ")
