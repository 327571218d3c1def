"""The fight of canvases: which way of painting with a gradient is best, and is a robust guide worth more than all?

Both models paint on every canvas, with every number of views, at equal budgets of passes. The step size of each such
method is chosen on development prompts, with equally many trials; the results are of test prompts, paired over them.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically, write_text
from ..images import contact_sheet, from_pil, to_pil
from ..options.base import Options, option
from . import engine
from .compare import difference
from .data import subject
from .records import Record, tiles
from .stats import Interval, Units, holm, mean, p_value, paired_difference
from .suites import Entry, Suite
from .tasks import Resources, find
from .tasks.canvas import METHODS, Painted

CHOSEN_BY = ("imagenet_logp", "similarity")  # the first that was measured
JUDGED_BY = ("imagenet_top5", "r_precision")
SHOWN = 8
Key = tuple[str, str, int, int]  # model, method, views, passes


@dataclass
class Fight(Options):
    """Budgets, methods, prompts and trials."""

    passes: list[int] = option([200, 1600, 6400], "budgets, passes a picture", low=1)
    seeds: list[int] = option([3, 1, 1], "seeds at each of them", low=1)
    whole: int = option(2000, "above it only each model's two best canvases are run", low=1)
    methods: list[str] = option(list(METHODS), "canvases with their rules", choices=tuple(METHODS))
    views: list[int] = option([0, 4, 32], "random views of a step", low=0)
    prompts: str = option("things", "list of names, or a text file")
    count: int = option(40, "test prompts, 0 for all", low=0)
    template: str = option("a photo of a {}", "sentence that a name is put into")
    development: int = option(6, "development prompts on which step sizes are chosen", low=1)
    trials: int = option(5, "step sizes tried for each method, model and budget", low=1)
    factor: float = option(3.0, "between two step sizes", low=1)
    guides: list[str] = option([], "two further vanilla models, for an ensemble of three")
    batch: int = option(10, "pictures that are drawn together", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.seeds) != len(self.passes):
            raise ValueError(
                f"{len(self.passes)} passes and {len(self.seeds)} seeds; give one number of seeds for each"
            )


@dataclass(frozen=True)
class Cell:
    """One method at one budget: its step size, the mean of it on development prompts, and the test records.
    edge: whether the step size was the largest or smallest that was tried."""

    lr: float
    score: float
    edge: bool
    records: list[Record]

    def column(self, key: str) -> list[float]:
        """Values of all items and seeds."""
        return [value for record in self.records for value in record.metrics[key]["values"]]

    @property
    def units(self) -> Units:
        """The prompts, which seeds repeat."""
        return [[item for record in self.records for item in record.items]]


@dataclass
class Arena:
    """Where methods are measured: the models (vanilla, robust), a record for each measurement below `folder`."""

    fight: Fight
    models: Sequence[str]
    judge: str
    folder: Path
    device: str
    progress: Callable[[engine.Done], object]

    def __post_init__(self) -> None:
        self.resources = Resources(self.judge, self.device, split="test")
        self.cells: dict[Key, Cell] = {}

    def run(self) -> None:
        """Fills `cells`, the small budgets first."""
        fight, vanilla = self.fight, self.models[0]
        for budget, seeds in zip(fight.passes, fight.seeds, strict=True):
            for model in self.models:
                if budget <= fight.whole:
                    for method, views in itertools.product(fight.methods, fight.views):
                        key = (model, method, views, budget)
                        self._test(key, self._tuned(key), seeds)
                    continue
                below = max(p for p in fight.passes if p <= fight.whole)
                for method in self.ranked(model, below)[:2]:
                    views = self.best(model, below, method)[1]
                    tuned = self.cells[model, method, views, below]
                    self._test((model, method, views, budget), tuned, seeds)
            if len(fight.guides) == 2 and budget <= fight.whole:
                method, views = self.best(vanilla, budget)
                tuned = self.cells[vanilla, method, views, budget]
                self._test(("ensemble", method, views, budget), tuned, seeds)

    def ranked(self, model: str, budget: int) -> list[str]:
        """Canvases at their best numbers of views, by development prompts."""

        def score(method: str) -> float:
            return self.cells[model, *self.best(model, budget, method), budget].score

        return sorted(self.fight.methods, key=score, reverse=True)

    def best(self, model: str, budget: int, method: str = "") -> tuple[str, int]:
        """The best canvas, or `method`, and number of views on development prompts."""
        scores = {
            (own, views): (cell.score, views)
            for (of, own, views, passes), cell in self.cells.items()
            if (of, passes) == (model, budget) and method in ("", own)
        }
        return max(scores, key=scores.__getitem__)

    def _tuned(self, key: Key) -> Cell:
        """The best step size on development prompts, still without test records."""
        trials, start = self.fight.trials, METHODS[key[1]][1]
        rates = [start * self.fight.factor ** (n - trials // 2) for n in range(trials)]
        scores = []
        for number, rate in enumerate(rates):
            (record,) = self._measure(key, rate, "development", 1, f"tune-{{}}-{number}")
            chosen = next(each for each in CHOSEN_BY if each in record.metrics)
            scores.append(record.metrics[chosen]["value"])
        place = scores.index(max(scores))
        return Cell(rates[place], scores[place], trials > 1 and place in (0, trials - 1), [])

    def _test(self, key: Key, tuned: Cell, seeds: int) -> None:
        name = "ensemble-{}" if key[0] == "ensemble" else "{}"
        records = self._measure(key, tuned.lr, "test", seeds, name)
        self.cells[key] = dataclasses.replace(tuned, records=records)

    def _measure(self, key: Key, rate: float, split: str, seeds: int, name: str) -> list[Record]:
        """Records of one method on a part of the prompts, a seed each."""
        (model, method, views, passes), fight = key, self.fight
        together = model == "ensemble"
        shared = {each: getattr(fight, each) for each in ("prompts", "template", "batch")}
        shared |= {"count": fight.count if split == "test" else fight.development}
        shared |= {"ensemble": fight.guides if together else [], "split": split}
        options = Painted(method, views, passes, rate, **shared)
        name = name.format(f"{method}-{views}-{passes}").replace(" ", "-")
        guides = (self.models[0] if together else model,)
        entries = (Entry(name, name, find("canvas"), options),)
        suite = Suite("canvas", "", guides, self.judge, tuple(range(seeds)), split, entries, ())
        found = []
        for done in engine.run(suite, self.folder, self.resources):
            self.progress(done)
            found.append(done.record)
        return found


def write(arena: Arena, path: Path) -> str:
    """Writes table and answers as PATH.md, curves as PATH.png and a contact sheet as PATH.webp; returns the text."""
    text = "\n".join([*_head(arena), *table(arena), "", *answers(arena)]) + "\n"
    write_text(path.with_suffix(".md"), text, parents=True)
    write_atomically(path.with_suffix(".png"), _figure(arena).savefig)
    sheet = to_pil(_sheet(arena))
    write_atomically(path.with_suffix(".webp"), lambda name: sheet.save(name, "WEBP", quality=90))
    return text


def _head(arena: Arena) -> list[str]:
    fight, cells = arena.fight, list(arena.cells.values())
    first = cells[0].records[0]
    hours = sum(record.seconds for cell in cells for record in cell.records) / 3600
    return [
        "# Canvases",
        "",
        f"`python -m clipag_plug.bench canvas`: {arena.models[0]} (vanilla) and {arena.models[1]} (robust); "
        f"{len(first.items)} test prompts, as {first.items[0]!r}; grey start (phase: its own), cosine loss, cosine "
        f"schedule, last picture. Step sizes: the best of {fight.trials}, a factor of {fight.factor:g} apart, on "
        f"{fight.development} development prompts (^: at the edge of them). {hours:.1f} h of tests on "
        f"{first.environment['threads']} threads.",
        f"Top-1, top-5: {_main(arena)[1]}. Intervals: 95 %, prompts as units. Cosine: the guide's own. Similarity: "
        f"{arena.judge}'s. Fine: share of energy above 0.25 cycles a pixel. Two values: vanilla / robust.",
        "",
    ]


def _main(arena: Arena) -> tuple[str, str]:
    """The metric that decides, and by whom."""
    metrics = next(iter(arena.cells.values())).records[0].metrics
    key = next(key for key in JUDGED_BY if key in metrics)
    return key, f"{metrics[key]['title']} by {metrics[key]['by']}"


def table(arena: Arena) -> list[str]:
    """A Markdown row for each canvas, number of views and budget."""
    key, _ = _main(arena)
    heads = "step size | top-1 | top-5 | cosine | similarity | fine | s a picture"
    lines = [f"| passes | canvas | views | {heads} | top-5, robust - vanilla |"]
    lines.append("|---:|---|---:|" + "---|" * 8)

    def shown(cell: Cell) -> list[str]:
        keys = (key.replace("top5", "top1"), key, "own", "similarity", "fine")
        first, five, own, similar, fine = (statistics.fmean(cell.column(each)) for each in keys)
        seconds = sum(r.seconds for r in cell.records) / sum(len(r.items) for r in cell.records)
        shares = f"{100 * first:.0f}", f"{100 * five:.0f}"
        means = f"{own:.2f}", f"{similar:.3f}", f"{fine:.3f}"
        return [f"{cell.lr:.3g}" + "^" * cell.edge, *shares, *means, f"{seconds:.1f}"]

    for method, views, budget in dict.fromkeys(key[1:] for key in arena.cells):
        theirs, ours = (arena.cells.get((model, method, views, budget)) for model in arena.models)
        both = [shown(cell) if cell else ["not run"] * 7 for cell in (theirs, ours)]
        row = [str(budget), method, str(views), *map(" / ".join, zip(*both)), ""]
        if ours and theirs:
            row[-1] = _gap(paired_difference(ours.column(key), theirs.column(key), ours.units))
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _gap(gap: Interval) -> str:
    ends = [difference(value, "share") for value in (gap.value, gap.low, gap.high)]
    return f"{ends[0]} ({ends[1]} to {ends[2]})"


def questions(arena: Arena, budget: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """What is asked at a budget, and the two columns whose difference answers it: above 0 is yes."""
    key, _ = _main(arena)
    vanilla, robust = arena.models
    methods, views = arena.fight.methods, arena.fight.views

    def column(model: str, method: str = "", views: int | None = None) -> list[float]:
        chosen = arena.best(model, budget, method) if views is None else (method, views)
        return arena.cells[model, *chosen, budget].column(key)

    def gain(ours: list[float], theirs: list[float]) -> list[float]:
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    named = [f"{method}, {n} views" for method, n in (arena.best(m, budget) for m in arena.models)]
    text = f"each at its best (robust: {named[1]}; vanilla: {named[0]}): is robust better?"
    yield text, column(robust), column(vanilla)
    if budget > arena.fight.whole:
        return
    if {"pixels", "pyramid"} <= set(methods):
        text = "is robust on plain pixels better than vanilla on the pyramid?"
        yield text, column(robust, "pixels"), column(vanilla, "pyramid")
    for method in ("pyramid", "phase"):
        if {"pixels", method} <= set(methods):
            text = f"does {method}, instead of pixels, help vanilla more than robust?"
            gains = [gain(column(m, method), column(m, "pixels")) for m in arena.models]
            yield text, gains[0], gains[1]
    if "pixels" in methods and (most := max(views)) > (least := min(views)):
        text = f"do {most} views, instead of {least}, help vanilla more than robust, on pixels?"
        gains = [gain(*(column(m, "pixels", n) for n in (most, least))) for m in arena.models]
        yield text, gains[0], gains[1]
    if arena.fight.guides:
        text = "is one robust guide better than three vanilla ones at a third of the steps each?"
        yield text, column(robust), column("ensemble")


def answers(arena: Arena) -> list[str]:
    """A line for each question at each budget: yes or no where Holm's p within the budget is at most 5 %."""
    lines = [
        "| passes | question | difference, points of top-5 | p (Holm) | answer |",
        "|---:|---|---|---|---|",
    ]
    for budget in dict.fromkeys(key[3] for key in arena.cells):
        found = list(questions(arena, budget))
        units = next(cell for key, cell in arena.cells.items() if key[3] == budget).units
        gaps = [paired_difference(ours, theirs, units) for _, ours, theirs in found]
        adjusted = holm([p_value(ours, theirs, units) for _, ours, theirs in found])
        for (text, *_), gap, p in zip(found, gaps, adjusted):
            clear = p <= 0.05 and gap.excludes(0)
            answer = ("yes" if gap.value > 0 else "no, the opposite") if clear else "not shown"
            lines.append(f"| {budget} | {text} | {_gap(gap)} | {p:.2g} | {answer} |")
    if not arena.fight.guides:
        lines.append(
            "\nThree vanilla guides against one robust guide: not run (no `guides` were named)."
        )
    return lines


def _figure(arena: Arena) -> Any:
    """Top-5 against passes, a panel a model, a line a canvas at its best number of views on development prompts."""
    from matplotlib.figure import Figure

    key, by = _main(arena)
    figure = Figure(figsize=(9, 4), layout="constrained", dpi=150)
    for axes, model in zip(figure.subplots(1, 2, sharey=True), arena.models):
        for method in arena.fight.methods:
            budgets = sorted({k[3] for k in arena.cells if k[:2] == (model, method)})
            cells = [arena.cells[model, *arena.best(model, p, method), p] for p in budgets]
            means = [mean(cell.column(key), cell.units) for cell in cells]
            values, low, high = zip(*((m.value, m.value - m.low, m.high - m.value) for m in means))
            axes.errorbar(budgets, values, (low, high), marker="o", capsize=2, label=method)
        axes.set(xscale="log", xlabel="passes a picture", title=model, ylim=(0, 1))
    figure.axes[0].set_ylabel(by)
    figure.axes[1].legend(fontsize=7, frameon=False)
    return figure


def _sheet(arena: Arena) -> Any:
    """The first prompts by every canvas at its best number of views, at the largest budget that all were run at."""
    budget = max(p for p in arena.fight.passes if p <= arena.fight.whole)
    rows, captions, prompts = [], [], []
    for method, model in itertools.product(arena.fight.methods, arena.models):
        views = arena.best(model, budget, method)[1]
        record = arena.cells[model, method, views, budget].records[0]
        shown = tiles(record, "pictures", arena.folder)[:SHOWN]
        rows.append([from_pil(tile.resize((112, 112))) for tile in shown])
        captions.append(f"{model}: {method}, {views} views, {budget} passes")
        prompts = [subject(title) for title in record.pictures["pictures"]["titles"][:SHOWN]]
    return contact_sheet(rows, headings=prompts, captions=captions)
