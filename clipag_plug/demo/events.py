"""What the page is told while it is open: a mailbox for every open page, the newest of each kind wins."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any


class Mailbox:
    """Messages for one page. A slow page misses pictures in between; it never makes the others wait."""

    def __init__(self) -> None:
        self._messages: dict[str, dict[str, Any]] = {}
        self._arrived = threading.Condition()
        self._closed = False

    def put(self, key: str, message: dict[str, Any]) -> None:
        """Replaces what waits under this key."""
        with self._arrived:
            self._messages.pop(key, None)
            self._messages[key] = message
            self._arrived.notify()

    def close(self) -> None:
        with self._arrived:
            self._closed = True
            self._arrived.notify()

    def take(self, seconds: float) -> list[dict[str, Any]] | None:
        """The messages, oldest first; an empty list after `seconds` without one, None once closed."""
        with self._arrived:
            if not self._messages and not self._closed:
                self._arrived.wait(seconds)
            if self._closed:
                return None
            found = list(self._messages.values())
            self._messages.clear()
            return found


class Channel:
    """Hands each message to every open page, and to those that open later what still holds."""

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self._boxes: list[Mailbox] = []
        self._last: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def publish(self, key: str, kind: str, **content: Any) -> None:
        message = {"kind": kind, **content}
        with self._lock:
            self._last[key] = message
            for box in self._boxes:
                box.put(key, message)

    def forget(self, prefix: str) -> None:
        """Later pages are not told what is under these keys any more."""
        with self._lock:
            for key in [key for key in self._last if key.startswith(prefix)]:
                del self._last[key]

    def open(self) -> Mailbox:
        """A mailbox with what holds now in it. ValueError where too many pages are open."""
        with self._lock:
            if len(self._boxes) >= self.most:
                raise ValueError(f"{self.most} pages are open already; close one and reload")
            box = Mailbox()
            for key, message in self._last.items():
                box.put(key, message)
            self._boxes.append(box)
            return box

    def leave(self, box: Mailbox) -> None:
        with self._lock:
            if box in self._boxes:
                self._boxes.remove(box)

    def close(self) -> None:
        """Ends every stream."""
        with self._lock:
            for box in self._boxes:
                box.close()


def stream(box: Mailbox, heartbeat: float = 10.0) -> Iterator[bytes]:
    """Server-sent events (WHATWG HTML, section 9.2); a comment now and then finds out who is gone."""
    yield b": open\n\n"
    while True:
        messages = box.take(heartbeat)
        if messages is None:
            return
        if not messages:
            yield b": still here\n\n"
        for message in messages:
            yield b"data: " + json.dumps(message, ensure_ascii=False).encode() + b"\n\n"
