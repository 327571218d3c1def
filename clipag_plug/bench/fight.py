"""The fight of canvases: which way of painting with a gradient is best, and is a robust guide worth more than all?

Both models paint on every canvas, with every number of views, at equal budgets of passes. The step size of each such
method is chosen on development prompts, with equally many trials; the results are of test prompts, paired over them.
"""

from __future__ import annotations

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
from .stats import Interval, holm, mean, p_value, paired_difference
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

    edge: whether the step size was the largest or smallest that was tried.
    """

    lr: float
    score: float
    edge: bool
    records: list[Record]

    def column(self, key: str) -> list[float]:
        """Values of all items and seeds."""
        return [value for record in self.records for value in record.metrics[key]["values"]]

    def value(self, key: str) -> float:
        """Mean over items."""
        return statistics.fmean(self.column(key))

    def mean(self, key: str) -> Interval:
        """Mean over items with its interval, prompts as units."""
        return mean(self.column(key), [[item for record in self.records for item in record.items]])


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

    def run(self) -> dict[Key, Cell]:
        """All cells, the small budgets first."""
        fight = self.fight
        for budget, seeds in zip(fight.passes, fight.seeds, strict=True):
            for model in self.models:
                if budget <= fight.whole:
                    for method, views in itertools.product(fight.methods, fight.views):
                        chosen = self._tuned(model, method, views, budget)
                        self._test((model, method, views, budget), seeds, *chosen)
                    continue
                below = max(p for p in fight.passes if p <= fight.whole)
                for method in self.ranked(model, below)[:2]:
                    views = self.best_views(model, method, below)
                    cell = self.cells[model, method, views, below]
                    key = (model, method, views, budget)
                    self._test(key, seeds, cell.lr, cell.score, cell.edge)
            if len(fight.guides) == 2 and budget <= fight.whole:
                method, views = self.best(self.models[0], budget)
                cell = self.cells[self.models[0], method, views, budget]
                key = ("ensemble", method, views, budget)
                self._test(key, seeds, cell.lr, cell.score, cell.edge)
        return self.cells

    def ranked(self, model: str, budget: int) -> list[str]:
        """Canvases at their best numbers of views, by development prompts."""
        scores = {m: self._at(model, m, budget)[0] for m in self.fight.methods}
        return sorted(scores, key=scores.__getitem__, reverse=True)

    def best_views(self, model: str, method: str, budget: int) -> int:
        """The number of views that is best on development prompts."""
        return self._at(model, method, budget)[1]

    def best(self, model: str, budget: int) -> tuple[str, int]:
        """The best canvas and number of views on development prompts."""
        own = {
            (m, v): c.score for (o, m, v, p), c in self.cells.items() if (o, p) == (model, budget)
        }
        return max(own, key=own.__getitem__)

    def _at(self, model: str, method: str, budget: int) -> tuple[float, int]:
        return max(
            (c.score, v)
            for (o, m, v, p), c in self.cells.items()
            if (o, m, p) == (model, method, budget)
        )

    def _tuned(self, model: str, method: str, views: int, budget: int) -> tuple[float, float, bool]:
        """Step size, its score on development prompts, and whether it is at the edge of what was tried."""
        fight, start = self.fight, METHODS[method][1]
        rates = [start * fight.factor ** (n - fight.trials // 2) for n in range(fight.trials)]
        scores = []
        for number, rate in enumerate(rates):
            options = self._options(method, views, budget, rate, fight.development)
            options = options.replace(split="development")
            name = f"tune-{method}-{views}-{budget}-{number}".replace(" ", "-")
            (record,) = self._measure(model, name, options, 1)
            key = next(key for key in CHOSEN_BY if key in record.metrics)
            scores.append(record.metrics[key]["value"])
        place = scores.index(max(scores))
        return rates[place], scores[place], len(rates) > 1 and place in (0, len(rates) - 1)

    def _test(self, key: Key, seeds: int, rate: float, score: float, edge: bool) -> None:
        model, method, views, budget = key
        options = self._options(method, views, budget, rate, self.fight.count)
        name = f"{method}-{views}-{budget}".replace(" ", "-")
        if model == "ensemble":
            options, name = options.replace(ensemble=self.fight.guides), f"ensemble-{name}"
        guide = self.models[0] if model == "ensemble" else model
        self.cells[key] = Cell(rate, score, edge, self._measure(guide, name, options, seeds))

    def _options(self, method: str, views: int, budget: int, rate: float, count: int) -> Painted:
        fight = self.fight
        shared: dict[str, Any] = {
            "prompts": fight.prompts,
            "template": fight.template,
            "batch": fight.batch,
        }
        return Painted(method=method, views=views, passes=budget, lr=rate, count=count, **shared)

    def _measure(self, model: str, name: str, options: Painted, seeds: int) -> list[Record]:
        entry = Entry(name, name, find("canvas"), options)
        suite = Suite(
            "canvas", "", (model,), self.judge, tuple(range(seeds)), options.split, (entry,), ()
        )
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
    columns: dict[str, Callable[[Cell], str]] = {
        "step size": lambda cell: f"{cell.lr:.3g}" + "^" * cell.edge,
        "top-1": lambda cell: f"{100 * cell.value(key.replace('top5', 'top1')):.0f}",
        "top-5": lambda cell: f"{100 * cell.value(key):.0f}",
        "cosine": lambda cell: f"{cell.value('own'):.2f}",
        "similarity": lambda cell: f"{cell.value('similarity'):.3f}",
        "fine": lambda cell: f"{cell.value('fine'):.3f}",
        "s a picture": _seconds,
    }
    lines = [f"| passes | canvas | views | {' | '.join(columns)} | top-5, robust - vanilla |"]
    lines.append("|---:|---|---:|" + "---|" * (len(columns) + 1))
    for method, views, budget in dict.fromkeys(key[1:] for key in arena.cells):
        pair = [arena.cells.get((model, method, views, budget)) for model in arena.models]
        found = [
            " / ".join("not run" if cell is None else show(cell) for cell in pair)
            for show in columns.values()
        ]
        theirs, ours = pair
        gap = _shown(_gap(ours, theirs, key)) if ours and theirs else ""
        lines.append(f"| {budget} | {method} | {views} | {' | '.join(found)} | {gap} |")
    return lines


def _seconds(cell: Cell) -> str:
    return f"{sum(r.seconds for r in cell.records) / sum(len(r.items) for r in cell.records):.1f}"


def _gap(ours: Cell, theirs: Cell, key: str) -> Interval:
    units = [[item for record in ours.records for item in record.items]]
    return paired_difference(ours.column(key), theirs.column(key), units)


def _shown(gap: Interval) -> str:
    ends = [difference(value, "share") for value in (gap.value, gap.low, gap.high)]
    return f"{ends[0]} ({ends[1]} to {ends[2]})"


def questions(arena: Arena, budget: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """What is asked at a budget, and the two columns whose difference answers it: above 0 is yes."""
    key, _ = _main(arena)
    vanilla, robust = arena.models
    largest, least = max(arena.fight.views), min(arena.fight.views)

    def column(model: str, method: str, views: int | None = None) -> list[float]:
        views = arena.best_views(model, method, budget) if views is None else views
        return arena.cells[model, method, views, budget].column(key)

    def gains(model: str, method: str) -> list[float]:
        return _less(column(model, method), column(model, "pixels"))

    chosen = [arena.best(model, budget) for model in arena.models]
    named = [f"{method}, {views} views" for method, views in chosen]
    yield (
        f"each at its best (robust: {named[1]}; vanilla: {named[0]}): is robust better?",
        column(robust, *chosen[1]),
        column(vanilla, *chosen[0]),
    )
    if budget > arena.fight.whole:
        return
    if {"pixels", "pyramid"} <= set(arena.fight.methods):
        yield (
            "is robust on plain pixels better than vanilla on the pyramid?",
            column(robust, "pixels"),
            column(vanilla, "pyramid"),
        )
    for method in ("pyramid", "phase"):
        if {"pixels", method} <= set(arena.fight.methods):
            text = f"does {method}, instead of pixels, help vanilla more than robust?"
            yield text, gains(vanilla, method), gains(robust, method)
    if "pixels" in arena.fight.methods and largest > least:
        yield (
            f"do {largest} views, instead of {least}, help vanilla more than robust, on pixels?",
            _less(column(vanilla, "pixels", largest), column(vanilla, "pixels", least)),
            _less(column(robust, "pixels", largest), column(robust, "pixels", least)),
        )
    if arena.fight.guides:
        ensemble = next(
            c for (m, *_, p), c in arena.cells.items() if (m, p) == ("ensemble", budget)
        )
        text = "is one robust guide better than three vanilla ones at a third of the steps each?"
        yield text, column(robust, *chosen[1]), ensemble.column(key)


def _less(ours: list[float], theirs: list[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def answers(arena: Arena) -> list[str]:
    """A line for each question at each budget: yes or no where Holm's p within the budget is at most 5 %."""
    lines = [
        "| passes | question | difference, points of top-5 | p (Holm) | answer |",
        "|---:|---|---|---|---|",
    ]
    for budget in dict.fromkeys(key[3] for key in arena.cells):
        found = list(questions(arena, budget))
        records = next(c for k, c in arena.cells.items() if k[3] == budget).records
        units = [[item for record in records for item in record.items]]
        gaps = [paired_difference(ours, theirs, units) for _, ours, theirs in found]
        adjusted = holm([p_value(ours, theirs, units) for _, ours, theirs in found])
        for (text, _, _), gap, p in zip(found, gaps, adjusted):
            clear = p <= 0.05 and gap.excludes(0)
            answer = ("yes" if gap.value > 0 else "no, the opposite") if clear else "not shown"
            lines.append(f"| {budget} | {text} | {_shown(gap)} | {p:.2g} | {answer} |")
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
            cells = [
                arena.cells[model, method, arena.best_views(model, method, budget), budget].mean(
                    key
                )
                for budget in budgets
            ]
            low, high = [c.value - c.low for c in cells], [c.high - c.value for c in cells]
            values = [c.value for c in cells]
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
        views = arena.best_views(model, method, budget)
        record = arena.cells[model, method, views, budget].records[0]
        shown = tiles(record, "pictures", arena.folder)[:SHOWN]
        rows.append([from_pil(tile.resize((112, 112))) for tile in shown])
        captions.append(f"{model}: {method}, {views} views, {budget} passes")
        prompts = [subject(title) for title in record.pictures["pictures"]["titles"][:SHOWN]]
    return contact_sheet(rows, headings=prompts, captions=captions)
