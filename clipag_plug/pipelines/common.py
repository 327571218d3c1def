"""What the three pipelines share: a run that can be iterated over, its result, and one job under two models."""

from __future__ import annotations

import abc
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_text
from ..guide import frozen, guide_for
from ..images import contact_sheet, write_animation, write_image
from ..options.base import Options
from ..paint import Guide, NotFiniteError, Step
from ..version import __version__

FRAMES = 48  # of an animation
# Where a result goes does not change it.
PRESENTATION = ("output", "animation", "svg", "frames", "compare", "vanilla", "quiet")


@dataclasses.dataclass
class Artwork:
    """One finished picture (3, H, W) in [0, 1] on the CPU and what made it.

    frames: pictures of the trajectory, the start first. svg: the drawing's strokes as text, for CLIPDraw.
    """

    image: Tensor
    prompt: str
    model: str
    seed: int
    losses: list[float]
    frames: list[Tensor]
    recipe: dict[str, Any]
    svg: str | None = None

    def save(self, path: str | Path) -> Path:
        """Writes a .png with the recipe inside, or the strokes as .svg. ValueError for another suffix."""
        if Path(path).suffix.lower() == ".svg":
            if self.svg is None:
                raise ValueError(f"{str(path)!r}: this picture is not made of strokes; give a .png")
            return write_text(path, self.svg)
        return write_image(path, self.image, self.recipe)


class Run(abc.ABC):
    """A picture in the making: iterate over it for `Step` records, then ask for `result()`, at any moment.

    The model is frozen during each step and left as it was.
    """

    options: Any
    guide: Guide
    prompt: str
    steps: int

    def prepare(self, options: Any, guide: Guide, prompt: str) -> None:
        """Common fields; called first by the subclasses."""
        self.options, self.guide, self.prompt = options, guide, prompt
        self.steps = int(options.steps)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.losses: list[float] = []
        self._frames: list[Tensor] = []
        wanted = options.frames or (FRAMES if options.animation else 0)
        self._kept = {round(i * self.steps / max(wanted - 1, 1)) for i in range(wanted)}

    @abc.abstractmethod
    def picture(self) -> Tensor:
        """The picture (3, H, W) as it is now."""

    @abc.abstractmethod
    def loss(self, index: int) -> Tensor:
        """The scalar loss of step `index`, with its graph."""

    @abc.abstractmethod
    def update(self, index: int, loss: Tensor) -> float:
        """One step of the optimiser; returns its step size."""

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        """Runs to the end. NotFiniteError where a model fails; the last sound picture stays."""
        with frozen([self.guide.model]):
            for index in range(len(self.losses), self.steps):
                self._keep(index)
                yield self._step(index)
        self._keep(self.steps)

    def _step(self, index: int) -> Step:
        with torch.enable_grad():
            loss = self.loss(index)
            value = float(loss.detach())
            if value != value or value in (float("inf"), float("-inf")):
                raise NotFiniteError(
                    f"stopped at step {index}: {self.guide.name} gave a loss that is not finite"
                )
            rate = self.update(index, loss)
        self.losses.append(value)
        return Step(index, torch.tensor([value]), rate)

    def _keep(self, index: int) -> None:
        if index in self._kept:
            self._frames.append((self.picture() * 255).round().to(torch.uint8))

    def result(self) -> Artwork:
        """The picture so far and its recipe."""
        return Artwork(
            image=self.picture(),
            prompt=self.prompt,
            model=self.guide.name,
            seed=self.options.seed,
            losses=list(self.losses),
            frames=[frame.float() / 255 for frame in self._frames],
            recipe=self.recipe(),
            svg=self.svg(),
        )

    def svg(self) -> str | None:
        """The picture as strokes, where it is made of them."""
        return None

    def recipe(self) -> dict[str, Any]:
        """Everything that made the picture, ready for JSON. No time and no place: equal runs, equal bytes."""
        options = {
            name: value
            for name, value in self.options.to_dict().items()
            if name not in PRESENTATION
        }
        options.update(model=self.guide.name, device=self.guide.device.type)
        return {
            "clipag_plug": __version__,
            "torch": torch.__version__,
            "job": type(self.options).__name__,
            "prompt": self.prompt,
            "seed": self.options.seed,
            "stopped_after": len(self.losses) if len(self.losses) < self.steps else None,
            "options": options,
        }


def guides(options: Any, model: Any = None) -> list[Guide]:
    """The guiding model; with `compare` the vanilla one first.

    ValueError where nobody says which model is its vanilla counterpart.
    """
    chosen = guide_for(options.model if model is None else model, device=options.device)
    if not options.compare:
        return [chosen]
    from ..weights import registry

    record, card = registry.get(chosen.name), getattr(chosen.model, "card", None) or {}
    vanilla = options.vanilla or card.get("base") or (record.base if record else None)
    if not vanilla:
        raise ValueError(
            f"it is not known which model {chosen.name} was fine-tuned from; add --vanilla KEY"
        )
    return [guide_for(vanilla, device=options.device), chosen]


def perform(
    runs: Iterable[Run], callback: Callable[[Step], object] | None = None, bar: bool = False
) -> list[Artwork]:
    """Runs everything, and gives the artworks in order."""
    done = []
    for run in runs:
        for step in _shown(run) if bar else run:
            if callback is not None:
                callback(step)
        done.append(run.result())
    return done


def _shown(run: Run) -> Iterator[Step]:
    from tqdm.auto import tqdm

    label = f"{run.guide.name}: {run.prompt}"[:40]
    with tqdm(
        total=run.steps, file=sys.stderr, disable=not sys.stderr.isatty(), unit="step", desc=label
    ) as shown:
        for step in run:
            shown.set_postfix_str(f"loss {float(step.losses[0]):.4f}", refresh=False)
            shown.update()
            yield step


def check_targets(options: Any) -> None:
    """Refuses, before any work, a file that could not be written at the end."""
    wanted = {"output": (".png",), "animation": (".gif", ".webp", ".png", ".mp4"), "svg": (".svg",)}
    given = {name: getattr(options, name, None) for name in wanted}
    for name, path in given.items():
        if not path:
            continue
        if Path(path).suffix.lower() not in wanted[name]:
            raise ValueError(f"--{name} is {path!r}; it must end in {' or '.join(wanted[name])}")
        if not Path(path).parent.is_dir():
            raise FileNotFoundError(
                f"the folder of {path!r} does not exist; create it or choose another"
            )
    if given["animation"] and given["animation"] == given["output"]:
        raise ValueError("--animation and --output name the same file; give two")


def write_artworks(options: Any, works: Sequence[Artwork], rows: int) -> list[Path]:
    """Writes what was asked for and returns the paths. With `compare`, --output is a sheet of vanilla beside robust.

    rows: number of different prompts or pictures, of which `works` holds all under one model after the other.
    """
    output, written = Path(options.output), []
    if options.compare:
        columns = [works[i : i + rows] for i in range(0, len(works), rows)]
        sheet = contact_sheet(
            [[column[row].image for column in columns] for row in range(rows)],
            captions=[works[row].prompt for row in range(rows)],
            headings=[column[0].model for column in columns],
        )
        written.append(write_image(output, sheet, {**works[-1].recipe, "sheet_of": len(works)}))
    else:
        written += [work.save(name) for name, work in zip(names(output, works), works)]
    for target in (getattr(options, "svg", None), options.animation):
        for name, work in zip(names(Path(target), works) if target else [], works):
            svg = name.suffix.lower() == ".svg"
            written.append(work.save(name) if svg else write_animation(name, work.frames))
    return written


def names(path: Path, works: Sequence[Artwork]) -> list[Path]:
    """One file name for each: with -1, -2, ... where there are several, and the model's where there are two."""
    models = list(dict.fromkeys(work.model for work in works))
    each = len(works) // len(models)
    found = []
    for index, work in enumerate(works):
        stem = path.stem
        if len(models) > 1:
            stem += f"-{Path(work.model).name}"
        if each > 1:
            stem += f"-{index % each + 1:0{len(str(each))}d}"
        found.append(path.with_stem(stem))
    return found


def filled(options: Any, presets: dict[str, dict[str, Any]]) -> Any:
    """A copy in which the preset has decided every field that is None and that it knows."""
    decided = presets[options.preset]
    chosen = {name: value for name, value in decided.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **chosen)


def options_of(cls: type[Options], given: dict[str, Any], model: Any) -> Any:
    """Options from keywords of a Python call; `model` may be an object instead of a name."""
    name = model if isinstance(model, str) else "custom"
    return cls.from_dict({**given, "model": name})
