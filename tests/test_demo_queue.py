"""The demo's jobs run one at a time and in order, and its pages are told what holds."""

from __future__ import annotations

import threading
import time

import pytest

from clipag_plug.demo.jobs import Channel, Job, Queue, QueueFullError, Task


class Slow:
    """Work that goes on until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.together = self.most = 0

    def __call__(self, job: Job) -> str:
        self.together += 1
        self.most = max(self.most, self.together)
        self.begun.set()
        while not (self.end.is_set() or job.stopping.is_set()):
            time.sleep(0.005)
        self.together -= 1
        return "run"


def until(queue: Queue, states: list[str]) -> None:
    end = time.monotonic() + 10
    while [job["state"] for job in queue.jobs()] != states:
        assert time.monotonic() < end, queue.jobs()
        time.sleep(0.005)


def test_one_job_at_a_time_and_the_others_wait_in_order() -> None:
    slow = Slow()
    queue = Queue(Channel(), most=2)
    jobs = [queue.submit(Task("paint", "1", slow))]
    assert slow.begun.wait(10)
    jobs += [queue.submit(Task("paint", title, slow)) for title in "23"]
    with pytest.raises(QueueFullError, match="2 jobs wait"):
        queue.submit(Task("paint", "4", slow))
    until(queue, ["running", "waiting", "waiting"])
    assert queue.stop(jobs[1].id) and not queue.stop("99")
    until(queue, ["stopped", "running", "waiting"])
    slow.end.set()
    until(queue, ["stopped", "done", "done"])
    assert slow.most == 1 and not queue.stop(jobs[0].id)
    queue.close()


def test_a_job_goes_before_the_rest_of_the_warm_up() -> None:
    slow = Slow()
    queue = Queue(Channel())
    queue.submit(Task("warm-up", "Loading", slow, yields=True))
    assert slow.begun.wait(10)
    queue.submit(Task("paint", "a goldfish", lambda job: "run"))
    until(queue, ["stopped", "done"])
    queue.close()


def test_one_page_too_many_is_told_so_and_gets_the_next_free_place() -> None:
    channel = Channel(most=3)
    boxes = [channel.open() for _ in range(5)]
    assert [box is not None for box in boxes] == [True] * 3 + [False] * 2
    channel.leave(boxes[0])  # type: ignore[arg-type]
    box = channel.open()
    channel.publish("queue", "queue", jobs=[])
    assert box is not None and box.take() == [{"kind": "queue", "jobs": []}]


def test_a_bug_fails_its_job_and_not_the_queue() -> None:
    def broken(job: Job) -> str:
        raise KeyError("x")

    queue = Queue(Channel())
    queue.submit(Task("paint", "broken", broken))
    queue.submit(Task("paint", "fine", lambda job: "run"))
    until(queue, ["failed", "done"])
    queue.close()


def test_a_page_that_opens_late_is_told_what_holds_and_the_newest_wins() -> None:
    channel = Channel(most=2)
    for step in range(3):
        channel.publish("preview-a", "preview", step=step)
    channel.publish("queue", "queue", jobs=[])
    woken = []
    box = channel.open(lambda: woken.append(1))
    assert box is not None and [m.get("step") for m in box.take() or []] == [2, None]
    before = len(woken)
    for step in range(5):
        channel.publish("preview-a", "preview", step=step)
    assert len(woken) == before + 5
    assert [m["step"] for m in box.take() or []] == [4] and box.take() == []
    channel.forget("preview")
    late = channel.open()
    assert late is not None and [m["kind"] for m in late.take() or []] == ["queue"]
    channel.close()
    assert box.take() is None
