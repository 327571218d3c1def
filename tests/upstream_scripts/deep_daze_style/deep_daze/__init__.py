"""A package with a copy of `clip` in it."""
