"""Tasks by name. A task is a function of a context that returns what it measured; each file here registers some."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...model import CLIP
from ...options.base import Options
from ..data import Dataset, read_dataset
from ..judges import Classifier, ImageNetJudge, Judge, Predictor, find_predictor
from ..metrics import ranks, top
from ..records import Metric, weights_hash

FILES = ("accuracy", "targeted", "gradients", "heatmaps", "pictures", "canvas", "search")


@dataclass(frozen=True)
class Sheet:
    """Pictures (N, 3, S, S) for the report: a title and a note per picture, and a mark: 'hit', 'near', 'miss' or ''."""

    images: Tensor
    titles: list[str]
    notes: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """What a task returns: the items, a value per item and metric, sheets of pictures, and remarks.
    drawn: for each factor that was drawn, as photographs and styles, the unit of each item; else items are units."""

    items: list[str]
    metrics: dict[str, Metric]
    sheets: dict[str, Sheet] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, list[str]] = field(default_factory=dict)


@dataclass(eq=False)
class Resources:
    """Models, judges and photographs, each loaded once and when first asked for.
    judge_name: key of the judge, "" for none.
    photos, classes, split: as `read_dataset` takes them.
    predictor: folder of the aesthetic predictor's files."""

    judge_name: str = ""
    device: str = "cpu"
    photos: str = ""
    classes: str = ""
    split: str = "all"
    predictor: str = ""

    @functools.cached_property
    def data(self) -> Dataset:
        """Photographs with their classes and captions."""
        return read_dataset(self.photos, self.classes, self.split)

    @functools.cached_property
    def aesthetic(self) -> Predictor | str:
        """The aesthetic predictor, or why there is none."""
        return find_predictor(self.predictor, self.device)

    @functools.cached_property
    def imagenet(self) -> ImageNetJudge | str:
        """The judge of the extra `judge`, or why there is none."""
        try:
            return ImageNetJudge(self.device)
        except ImportError as error:
            return str(error)

    @functools.cache  # noqa: B019 (one object lives as long as the run, here and below)
    def model(self, name: str) -> tuple[CLIP, str]:
        """A model in evaluation mode, frozen, and the hash of its weights."""
        from ... import clip

        model = clip.load_model(name, device=self.device).float().eval().requires_grad_(False)
        return model, weights_hash(model)

    @functools.cache  # noqa: B019
    def classifier(self, name: str) -> Classifier:
        """A model as a classifier of the photographs' classes."""
        return Classifier(self.model(name)[0], self.data.classes)

    @functools.cache  # noqa: B019
    def judge(self, name: str) -> Judge:
        """A model as a judge of pictures."""
        return Judge(self.model(name)[0], name, self.data.classes)


@dataclass
class Context:
    """What a task works with: the model's key, a seed, the task's options, and a call for the share that is done."""

    name: str
    seed: int
    options: Any
    resources: Resources
    progress: Callable[[float], None] = lambda share: None

    @property
    def model(self) -> CLIP:
        """The measured model, frozen."""
        return self.resources.model(self.name)[0]

    @property
    def classifier(self) -> Classifier:
        """The measured model over the classes; differentiable."""
        return self.resources.classifier(self.name)

    @property
    def judge(self) -> Judge:
        """The independent judge, which looks and never steers. ValueError where it is the measured model."""
        self.check_other(self.resources.judge_name, self.name, "judge its own pictures")
        return self.resources.judge(self.resources.judge_name)

    def second_judge(self, name: str) -> Judge:
        """A further judge. ValueError where it is the measured model or the judge, by key or by weights."""
        self.check_other(name, self.name, "judge its own pictures")
        self.check_other(name, self.judge.name, "be its own second judge")
        return self.resources.judge(name)

    def check_other(self, name: str, other: str, what: str) -> None:
        """ValueError where two models are one, by key or by weights."""
        if name == other or self.resources.model(name)[1] == self.resources.model(other)[1]:
            raise ValueError(
                f"{other} would {what}: pictures made with a model's gradients please that model whatever they show, "
                f"and a judge agrees with itself; choose another model than {name}"
            )

    @property
    def data(self) -> Dataset:
        """Photographs, their classes and captions."""
        return self.resources.data

    @property
    def side(self) -> int:
        """The side of the images that the model asks for."""
        return int(self.model.visual.input_resolution)

    def rows(self) -> Tensor:
        """The photographs that the task's option `count` asks for, spread over the classes; all for 0."""
        return spread(self.data.photos.labels, self.options.count)

    def pixels(self, rows: Tensor) -> Tensor:
        """Photographs (N, 3, side, side) as the model asks for them, on its device."""
        return self.data.photos.pixels(rows, self.side).to(self.resources.device)

    def keys(self, rows: Tensor) -> list[str]:
        """Names of photographs."""
        return [self.data.photos.keys[int(row)] for row in rows]

    def generator(self, stream: int = 0) -> torch.Generator:
        """A fresh random stream of this job's seed: the same for every model."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)


Run = Callable[[Context], Measured]
R = TypeVar("R", bound=Run)


@dataclass(frozen=True)
class Task:
    """A measurement.
    judged: whether pictures that the model made are scored; the judge may not be the model. reads: options that
    name a file or a model: what they name belongs to a record's fingerprint."""

    name: str
    title: str
    options: type[Options]
    judged: bool
    reads: tuple[str, ...]
    run: Run

    @property
    def about(self) -> str:
        """What the task says of itself."""
        return " ".join((self.run.__doc__ or "").split())


_TASKS: dict[str, Task] = {}


def task(
    name: str, title: str, options: type[Options], judged: bool = False, reads: Sequence[str] = ()
) -> Callable[[R], R]:
    """Registers the function below as the task `name`; see `Task`. ValueError for a name that is taken."""
    if name in _TASKS:
        raise ValueError(f"there is a task {name!r} already; choose another name")

    def register(run: R) -> R:
        _TASKS[name] = Task(name, title, options, judged, tuple(reads), run)
        return run

    return register


def find(name: str) -> Task:
    """The task of this name. ValueError names the closest known one."""
    for file in FILES:
        importlib.import_module(f"{__name__}.{file}")
    if name not in _TASKS:
        close = difflib.get_close_matches(name, _TASKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"tasks: {', '.join(_TASKS)}"
        raise ValueError(f"there is no task {name!r}; {hint}")
    return _TASKS[name]


def spread(labels: Tensor, count: int) -> Tensor:
    """`count` rows of `labels`, 0 for all, in order: every class comes once before one comes twice.
    Which classes, and which rows of a class, is drawn once for all with a fixed seed: a rule that follows the order of
    the rows would take every second class."""
    if not 0 < count < len(labels):
        return torch.arange(len(labels))
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    seen: dict[int, int] = {}
    turns = []
    for place, label in enumerate(labels[drawn].tolist()):
        seen[label] = seen.get(label, -1) + 1
        turns.append((seen[label], place))
    return drawn[[place for _, place in sorted(turns)[:count]]].sort().values


def evenly(total: int, count: int) -> Tensor:
    """`count` of `total` places at equal distances, the first included."""
    count = min(count, total)
    return torch.arange(count) * total // count


def marks(scores: Tensor, truth: Tensor) -> list[str]:
    """'hit' where the true column of scores (N, C) is the first, 'near' among the first five, else 'miss'."""
    places = ranks(scores, truth).tolist()
    return ["hit" if place < 1 else "near" if place < 5 else "miss" for place in places]


def tops(title: str, scores: Tensor, truth: Tensor, by: str) -> dict[str, Metric]:
    """Whether the true column of scores (N, C) is the first, and among the first five."""
    return {
        f"top{k}": Metric(f"{title}, top-{k}", "share", by, top(scores, truth, k)) for k in (1, 5)
    }
