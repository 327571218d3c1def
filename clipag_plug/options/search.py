"""Options of `clipag search`: which prompt, which generator, how to search and for how long."""

from __future__ import annotations

import dataclasses

from .base import Options, option

METHODS = ("random", "evolve", "refine")
RANGES = ("correct", "legacy")


@dataclasses.dataclass
class Search(Options):
    """CLIP-guided search over a class-conditional generator: the picture that fits a prompt best."""

    prompt: str = option(help="what to look for", positional=True, metavar="PROMPT")
    output: str = option("search.png", "picture to write (.png), its recipe inside", short="-o")
    model: str = option("clipag-mini", "key or file of the CLIP that scores", short="-m")
    generator: str = option(
        "bundled",
        "bundled, a file written by clipag_plug.search.fitting, or biggan:NAME, as biggan:biggan-deep-256, "
        "or biggan:FOLDER",
    )
    method: str = option(
        "random",
        "random draws; evolve the best ones; or refine the best ones of half the budget by gradients",
        choices=METHODS,
    )
    k: int = option(10, "classes nearest to the prompt that are drawn from; 0 for all", low=0)
    budget: int = option(100, "pictures to make in all", low=1)
    seed: int = option(0, "seed of the draws", short="-s", low=0)
    template: str = option("An image of {}", "text of a class, from which the nearest are found")
    range: str = option(
        "correct",
        "what the model is shown: pictures as it was trained on, or the generator's [-1, 1] as they are",
        choices=RANGES,
    )
    truncation: float = option(0.3, "spread of the generator's noise", low=1e-3, high=1)
    population: int = option(16, "evolve: pictures kept from generation to generation", low=2)
    mutation: float = option(0.3, "evolve: standard deviation added to z", low=0)
    bases: int = option(4, "refine: best draws that are refined", low=1)
    rate: float = option(0.05, "refine: learning rate of Adam on z and the class weights", low=0)
    batch: int = option(32, "pictures at a time; the result does not depend on it", low=1)
    device: str = option("", "cpu, cuda or mps; empty takes cuda where there is one")
    quiet: bool = option(False, "no remarks on stderr", short="-q")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.strip():
            raise ValueError(
                "the prompt is empty; write what to look for, as: clipag search 'a goldfish'"
            )
        if "{}" not in self.template:
            raise ValueError(f"--template is {self.template!r}; it must hold {{}} for the class")
        if self.method == "refine" and self.budget < 2:
            raise ValueError("--method refine needs a --budget of at least 2: draws, then steps")
