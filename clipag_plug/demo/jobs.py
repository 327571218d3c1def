"""The queue, one job at a time in the order they came, and what every open page is told of it."""

from __future__ import annotations

import collections
import functools
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)
REMEMBERED = 8  # jobs that are over and still listed
PAGES = 64  # open pages that are kept informed


class Mailbox:
    """Messages for one page, the newest of each key. A slow page misses pictures; it never makes the others wait.

    wake: called, from any thread, when there is something to take.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._messages: dict[str, dict[str, Any]] = {}
        self._lock, self._wake = threading.Lock(), wake
        self._closed = False

    def put(self, key: str, message: dict[str, Any]) -> None:
        """Replaces what waits under this key."""
        with self._lock:
            self._messages.pop(key, None)
            self._messages[key] = message
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def take(self) -> list[dict[str, Any]] | None:
        """The messages, oldest first, perhaps none; None once closed."""
        with self._lock:
            found = list(self._messages.values())
            self._messages.clear()
        return None if self._closed else found


class Channel:
    """Hands each message to every open page, and to those that open later what still holds."""

    def __init__(self, most: int = PAGES) -> None:
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
            self._last = {key: m for key, m in self._last.items() if not key.startswith(prefix)}

    def open(self, wake: Callable[[], None] = lambda: None) -> Mailbox | None:
        """A mailbox with what holds now in it; None where too many pages are open."""
        with self._lock:
            if len(self._boxes) >= self.most:
                return None
            box = Mailbox(wake)
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


@dataclass(frozen=True)
class Task:
    """What a job does: `work` takes the job and returns the id of its run, or nothing. yields: ends for the next."""

    kind: str
    title: str
    work: Callable[[Job], str]
    models: list[str] = field(default_factory=list)
    yields: bool = False


class QueueFullError(ValueError):
    """More jobs than may wait."""


class Job:
    """One request on its way: what it is, how far it has come, and whether it shall stop."""

    def __init__(self, number: int, task: Task) -> None:
        self.id, self.task, self.kind, self.title = str(number), task, task.kind, task.title
        self.state, self.message, self.run = "waiting", "", ""
        self.step, self.total = 0, 0
        self.stopping = threading.Event()
        self.changed: Callable[[], None] = lambda: None
        self.show: Callable[..., None] = lambda *args, **kwargs: None

    def progress(self, step: int, total: int) -> None:
        self.step, self.total = step, total
        self.changed()

    def to_dict(self) -> dict[str, Any]:
        names = ("id", "kind", "title", "state", "message", "run", "step", "total")
        return {**{name: getattr(self, name) for name in names}, "models": self.task.models}


class Queue:
    """Runs jobs in a thread of its own and tells the channel of every change."""

    def __init__(self, channel: Channel, most: int = 20) -> None:
        self.channel, self.most = channel, most
        self._numbers = itertools.count(1)
        self._waiting: collections.deque[Job] = collections.deque()
        self._over: collections.deque[Job] = collections.deque(maxlen=REMEMBERED)
        self._running: Job | None = None
        self._ending = False
        self._filled = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._work, name="clipag-demo-jobs", daemon=True)
        self._thread.start()
        self.announce()

    def submit(self, task: Task) -> Job:
        """Puts a job at the end. QueueFullError where too many wait."""
        with self._filled:
            if len(self._waiting) >= self.most:
                raise QueueFullError(f"{self.most} jobs wait already; stop one, or try again later")
            job = Job(next(self._numbers), task)
            job.changed = self.announce
            self._waiting.append(job)
            if self._running and self._running.task.yields:
                self._running.stopping.set()
            self._filled.notify()
            self.announce()
        return job

    def stop(self, number: str) -> bool:
        """Takes a waiting job out, or asks the running one to end with what it has. False if there is none."""
        with self._filled:
            there = [*self._waiting, *filter(None, [self._running])]
            job = next((job for job in there if job.id == number), None)
            if job is None:
                return False
            job.stopping.set()
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = "stopped"
                self._over.append(job)
            self.announce()
            return True

    def jobs(self) -> list[dict[str, Any]]:
        """Every job: those that are over, the running one, those that wait."""
        with self._filled:
            listed = [*self._over, *filter(None, [self._running]), *self._waiting]
            return [job.to_dict() for job in listed]

    def announce(self) -> None:
        with self._filled:
            self.channel.publish("queue", "queue", jobs=self.jobs())

    def close(self, seconds: float = 60.0) -> None:
        """Stops what runs, which still saves its pictures, and waits for that."""
        with self._filled:
            self._ending = True
            self._waiting.clear()
            if self._running:
                self._running.stopping.set()
            self._filled.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._filled:
                self._filled.wait_for(lambda: self._waiting or self._ending)
                if self._ending:
                    return
                job = self._running = self._waiting.popleft()
                job.state = "running"
            self.channel.forget("preview")
            job.show = functools.partial(self._show, job)
            self.announce()
            self._run(job)
            with self._filled:
                self._running = None
                self._over.append(job)
                self.announce()

    def _show(self, job: Job, side: str, **content: Any) -> None:
        self.channel.publish(f"preview-{side}", "preview", job=job.id, side=side, **content)

    def _run(self, job: Job) -> None:
        try:
            job.run = job.task.work(job)
            job.state = "stopped" if job.stopping.is_set() else "done"
        except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
            job.state, job.message = "failed", " ".join(str(error).split()) or type(error).__name__
            log.warning("%s %r failed: %s", job.kind, job.title, job.message)
        except Exception as error:  # a bug must not end the only thread that works
            job.state, job.message = "failed", f"{type(error).__name__}; the terminal shows where"
            log.exception("%s %r failed", job.kind, job.title)
