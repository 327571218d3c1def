"""Signals that stop a run: noted at once, obeyed between two steps."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """Turns SIGINT and SIGTERM into a flag for the time of a `with`, so that a step in progress ends whole."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: the caller's own handling stays
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
