"""Errors that say which file, what is wrong with it, and what to do."""

from __future__ import annotations

import os
from typing import Any


class BadFileError(ValueError):
    """A weight file that is damaged, hostile, or of a kind that is not read here."""

    def __init__(self, path: Any, reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(f"refused {self.path!r}: {reason}")


class UnknownActivationError(ValueError):
    """Nothing says whether a file needs GELU or QuickGELU, or two sources say different things."""


class FetchError(RuntimeError):
    """A download that did not end with the right file; nothing was put in its place."""
