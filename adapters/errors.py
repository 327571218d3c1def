"""Errors of `clipag run` that are the user's to mend: one sentence, no traceback."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that the script cannot be run with; the message says what to type instead."""


class MissingWeightsError(FileNotFoundError):
    """A pipeline's weight file is not there; the message says which, where it belongs and where to get it."""
