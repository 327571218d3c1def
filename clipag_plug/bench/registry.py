"""Tasks by name. A task is a function of a context that returns what it measured."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..bundled.photos import Photographs
from ..model import CLIP
from ..options.base import Options
from ..vocabulary import bundled_vocabulary
from .aesthetics import Predictor
from .datasets import Dataset
from .judge import Classifier, Judge
from .records import Metric

MODULES = (
    *("zeroshot", "robustness", "retrieval", "generation", "targeted", "gradients", "heatmaps"),
    *("gan_search", "paper"),
)
NEEDS = ("photos", "judge")


@dataclass(frozen=True)
class Sheet:
    """Pictures (N, 3, S, S) for the report: a title and a note per picture, and a mark: 'hit', 'near', 'miss' or ''."""

    images: Tensor
    titles: list[str]
    notes: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """What a task returns: the items, a value per item and metric, sheets of pictures, and remarks."""

    items: list[str]
    metrics: dict[str, Metric]
    sheets: dict[str, Sheet] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def _no_judge(name: str) -> Judge:
    raise RuntimeError(f"this run has no second judge {name!r}")


@dataclass
class Context:
    """What a task works with. `photos` and `judge` are there only where the task says that it needs them.

    classifier: the model itself over the classes, built once for all tasks. aesthetic: the predictor, or why there is
    none. other_judge: a further judge by key; refuses the guide.
    """

    model: CLIP
    name: str
    seed: int
    options: Any
    device: torch.device
    progress: Callable[[float], None]
    classifier: Callable[[], Classifier]
    photos: Photographs | None = None
    judge: Judge | None = None
    dataset: Dataset | None = None
    aesthetic: Predictor | str = "this run has no aesthetic predictor"
    other_judge: Callable[[str], Judge] = _no_judge

    @property
    def classes(self) -> list[str]:
        """Names of the classes of the photographs; those of the bundled vocabulary without photographs."""
        return self.dataset.classes if self.dataset else bundled_vocabulary().class_names

    @property
    def captions(self) -> list[str]:
        """A caption for each photograph."""
        self.need_photos()
        return self.dataset.captions if self.dataset else []

    @property
    def boxed(self) -> bool:
        """Whether the photographs have boxes around their objects."""
        return self.dataset is None or self.dataset.boxed

    def generator(self, stream: int = 0) -> torch.Generator:
        """A fresh random stream of this job's seed: the same for every model."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)

    def need_photos(self) -> Photographs:
        """The photographs. RuntimeError where the task did not declare the need."""
        if self.photos is None:
            raise RuntimeError("this task did not say that it needs photos; add needs=('photos',)")
        return self.photos

    def need_judge(self) -> Judge:
        """The judge. RuntimeError where the task did not declare the need."""
        if self.judge is None:
            raise RuntimeError("this task did not say that it needs a judge; add needs=('judge',)")
        return self.judge


Run = Callable[[Context], Measured]
R = TypeVar("R", bound=Run)


@dataclass(frozen=True)
class Task:
    """A measurement: its options and its needs. A task that needs a judge may not be judged by its own guide."""

    name: str
    title: str
    options: type[Options]
    needs: tuple[str, ...]
    run: Run

    @property
    def judged(self) -> bool:
        """Whether pictures that the model made are scored, which another model must do."""
        return "judge" in self.needs


_TASKS: dict[str, Task] = {}


def task(
    name: str, title: str, options: type[Options], needs: tuple[str, ...] = ()
) -> Callable[[R], R]:
    """Registers the function below as the task `name`."""
    unknown = set(needs) - set(NEEDS)
    if unknown:
        raise ValueError(
            f"task {name!r} needs {', '.join(unknown)}; known needs: {', '.join(NEEDS)}"
        )

    def register(run: R) -> R:
        if name in _TASKS:
            raise ValueError(f"there is a task {name!r} already; choose another name")
        _TASKS[name] = Task(name, title, options, needs, run)
        return run

    return register


def tasks() -> dict[str, Task]:
    """All tasks by name, those of the package included."""
    for module in MODULES:
        importlib.import_module(f"{__package__}.{module}")
    return dict(_TASKS)


def find(name: str) -> Task:
    """The task of this name. ValueError names the closest known one."""
    known = tasks()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"tasks: {', '.join(known)}"
        raise ValueError(f"there is no task {name!r}; {hint}")
    return known[name]
