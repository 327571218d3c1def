"""Stands for a copy of `clip` that downloads its weights, and that torch of today cannot import."""

raise ImportError("this copy is broken")


def load(name, device="cuda", jit=True):
    """Of the copy."""


def tokenize(texts):
    """Of the copy."""
