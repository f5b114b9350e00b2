"""SIGINT, SIGTERM and SIGHUP during training: finish the step, save, then leave."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


def handle_ending(handler: Callable[[int, FrameType | None], Any]) -> dict[int, Any]:
    """Has `handler` take the signals to end, those that are ignored excepted; returns who took them before."""
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


class Interrupts:
    """While entered, the first signal to end is only noted in `received`; a second one acts as usual.

    That is SIGINT, SIGTERM, and SIGHUP (the terminal has gone), unless nohup has it ignored.
    """

    def __init__(self) -> None:
        self.received = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._previous = handle_ending(self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()
