"""The queue: one job at a time, in the order they came, each of which can be stopped."""

from __future__ import annotations

import collections
import functools
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .events import Channel

log = logging.getLogger(__name__)
_REMEMBERED = 8  # jobs that are over and still listed


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
        self._over: collections.deque[Job] = collections.deque(maxlen=_REMEMBERED)
        self._running: Job | None = None
        self._ending = False
        self._lock = threading.RLock()
        self._filled = threading.Condition(self._lock)
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
        with self._lock:
            for job in [*self._waiting, *filter(None, [self._running])]:
                if job.id == number:
                    job.stopping.set()
                    if job in self._waiting:
                        self._waiting.remove(job)
                        job.state = "stopped"
                        self._over.append(job)
                    break
            else:
                return False
        self.announce()
        return True

    def jobs(self) -> list[dict[str, Any]]:
        """Every job: those that are over, the running one, those that wait."""
        with self._lock:
            listed = [*self._over, *filter(None, [self._running]), *self._waiting]
            return [job.to_dict() for job in listed]

    def announce(self) -> None:
        with self._lock:
            self.channel.publish("queue", "queue", jobs=self.jobs())

    def close(self, seconds: float = 10.0) -> None:
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
                while not self._waiting and not self._ending:
                    self._filled.wait()
                if self._ending:
                    return
                job = self._running = self._waiting.popleft()
                job.state = "running"
            self.channel.forget("preview")
            job.show = functools.partial(self._show, job)
            self.announce()
            self._run(job)
            with self._lock:
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
