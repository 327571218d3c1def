"""Options of `clipag search` and `clipag_plug.pipelines.search`."""

from __future__ import annotations

import dataclasses

from .base import option
from .picture import Picture

METHODS = ("random", "evolve", "refine")
RANGES = ("correct", "legacy")


@dataclasses.dataclass
class Search(Picture):
    """CLIP-guided search over a class-conditional generator (Du, Yin & Gu): the picture that fits a prompt best."""

    generator: str = option(
        "bundled",
        "bundled, a .safetensors file of its kind, biggan:biggan-deep-256 or biggan:FOLDER",
    )
    method: str = option("random", "draws alone; or evolve, or refine the best", choices=METHODS)
    k: int = option(10, "classes nearest to the prompt that are drawn from; 0 for all", low=0)
    budget: int = option(100, "pictures to make in all", low=1)
    size: int = option(448, "side of the picture, resampled; 0: as made", low=0, high=8192)
    template: str = option("An image of {}", "text of a class, from which the nearest are found")
    range: str = option("correct", "what is scored: pictures in [0, 1], or [-1, 1]", choices=RANGES)
    truncation: float = option(0.3, "spread of the generator's noise", low=1e-3, high=1)
    population: int = option(16, "evolve: pictures kept from generation to generation", low=2)
    mutation: float = option(0.3, "evolve: standard deviation added to z", low=0)
    bases: int = option(4, "refine: best draws that are refined", low=1)
    rate: float = option(0.05, "refine: learning rate of Adam on z and the class weights", low=0)
    batch: int = option(32, "pictures at a time; the result does not depend on it", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{}" not in self.template:
            raise ValueError(f"--template is {self.template!r}; it must hold {{}} for the class")
        if self.method == "refine" and self.budget < 2:
            raise ValueError("--method refine needs a --budget of at least 2: draws, then steps")
