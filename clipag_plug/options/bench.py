"""Options of the bench."""

from __future__ import annotations

from dataclasses import dataclass

from .base import DEVICE, Options, option

REQUESTS = ("run", "list", "table", "compare", "paper", "blind", "canvas")
SUITES = {"blind": "blind", "canvas": ""}  # of requests that have one of their own
FORMATS = ("text", "markdown", "csv", "latex", "json")


@dataclass
class Bench(Options):
    """Measures models against each other: robustness, and whether their gradients paint what the text says."""

    request: str = option("run", "what to do", choices=REQUESTS, positional=True, metavar="REQUEST")
    names: list[str] = option(
        [],
        "run, table, blind: a suite; compare: two models; paper: list, all, or names as clipag:figure4",
        positional=True,
        metavar="NAME",
    )
    suite: str = option(
        "",
        "suite of the package, or a .toml file; default: quick, after blind the suite blind; after canvas a .toml "
        "file with other budgets, methods or prompts",
    )
    models: list[str] = option(
        [],
        "models to measure instead of the suite's, by key or file; the first is the baseline",
        short="-m",
    )
    judge: str = option(
        "", "model that judges pictures instead of the suite's; it may not be one of the models"
    )
    photos: str = option(
        "",
        "labelled photographs: a zip with boxes, WebDataset shards, a folder, or hf:NAME:SPLIT; "
        "default: the sample in the package",
    )
    classes: str = option("", "file with a class name a line, in the order of the class numbers")
    aesthetic: str = option(
        "",
        "folder with the aesthetic predictor's head and OpenAI's ViT-L-14.pt; without it that column is empty",
    )
    only: list[str] = option([], "measure only these entries of the suite")
    seeds: list[int] = option([], "seeds instead of the suite's", low=0)
    records: str = option("runs/bench", "folder of the records and of the report", short="-o")
    again: bool = option(False, "measure again what has a record")
    report: bool = option(True, "write the HTML report")
    format: str = option("text", "how the result is printed", choices=FORMATS)
    json: bool = option(False, "the same as --format json")
    split: str = option(
        "",
        "part of the package's photographs and prompts instead of the suite's",
        choices=("", "all", "development", "test"),
    )
    answers: list[str] = option(
        [],
        'after blind: JSON files of what viewers named, {number: [guess, guess], "by": who}; they are scored',
    )
    choices: bool = option(False, "after blind: offer four names for each picture")
    wordnet: str = option("", "folder of WordNet's files; default: what the extra wordnet brings")
    size: str = option(
        "demo",
        "size of a paper's figure: minutes, as published, or only to see that it runs",
        choices=("demo", "paper", "tiny"),
    )
    device: str = option("", DEVICE)
    threads: int = option(0, "CPU threads; 0 leaves the choice to torch", low=0)
    quiet: bool = option(False, "no progress on stderr", short="-q")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.request == "compare" and len(self.names) != 2:
            raise ValueError(
                f"compare takes two models, not {len(self.names)}: compare clip-mini clipag-mini"
            )
        if self.request in ("run", "list", "table", "blind") and self.names:
            if len(self.names) > 1:
                raise ValueError(
                    f"{self.request} takes one suite, not {' '.join(self.names)!r}; use --suite for a file"
                )
            self.suite, self.names = self.names[0], []
        self.suite = self.suite or SUITES.get(self.request, "quick")
