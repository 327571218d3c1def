"""Options of the bench."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option

REQUESTS = ("run", "list", "table", "compare")


@dataclass
class Bench(Options):
    """Measures models against each other: robustness, and whether their gradients paint what the text says."""

    request: str = option("run", "what to do", choices=REQUESTS, positional=True, metavar="REQUEST")
    names: list[str] = option(
        [],
        "after run, list, table: a suite; after compare: two models",
        positional=True,
        metavar="NAME",
    )
    suite: str = option("quick", "suite of the package, or a .toml file")
    models: list[str] = option(
        [],
        "models to measure instead of the suite's, by key or file; the first is the baseline",
        short="-m",
    )
    judge: str = option(
        "", "model that judges pictures instead of the suite's; it may not be one of the models"
    )
    photos: str = option("", "zip of labelled photographs; default: the sample in the package")
    only: list[str] = option([], "measure only these entries of the suite")
    seeds: list[int] = option([], "seeds instead of the suite's", low=0)
    records: str = option("runs/bench", "folder of the records and of the report", short="-o")
    again: bool = option(False, "measure again what has a record")
    report: bool = option(True, "write the HTML report")
    json: bool = option(False, "print the result as JSON instead of a table")
    device: str = option("", "cpu, cuda or mps; empty takes cuda where there is one")
    threads: int = option(0, "CPU threads; 0 leaves the choice to torch", low=0)
    quiet: bool = option(False, "no progress on stderr", short="-q")

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = 2 if self.request == "compare" else 1
        if self.request == "compare" and len(self.names) != 2:
            raise ValueError(
                f"compare takes two models, not {len(self.names)}: compare clip-mini clipag-mini"
            )
        if len(self.names) > wanted:
            raise ValueError(
                f"{self.request} takes one suite, not {' '.join(self.names)!r}; use --suite for a file"
            )
        if self.request != "compare" and self.names:
            self.suite, self.names = self.names[0], []
