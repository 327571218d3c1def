"""Many short strings in little memory: the paths and captions of a table with millions of rows."""

from __future__ import annotations

from array import array


class Strings:
    """A list of strings, or of None, that keeps them as one run of bytes: 8 bytes each beside the text itself."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, text: str | None) -> None:
        """Undecodable bytes that `surrogateescape` brought in are kept as they were."""
        data = b"\xff" if text is None else b" " + text.encode("utf-8", "surrogateescape")
        self._bytes += data
        self._ends.append(len(self._bytes))

    def __getitem__(self, index: int) -> str | None:
        start = self._ends[index - 1] if index else 0
        data = self._bytes[start : self._ends[index]]
        return None if data == b"\xff" else data[1:].decode("utf-8", "surrogateescape")
