"""Options that all commands share whose result is a picture: where it goes, who guides, how many."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

from ..files import halved
from .base import PRECISION, PRECISIONS, Options, option

PER_PRESET = "; the preset decides"
SHOWN = 448  # px, short side of a written picture whose size nobody asked for
# Fields that say where results go and how they are shown. They do not change a picture and stay out of its recipe.
PRESENTATION = (
    *("output", "overwrite", "animation", "svg", "frames", "compare", "vanilla", "variations"),
    *("json", "quiet"),
)


@dataclasses.dataclass
class Picture(Options):
    """Base of the option sets of `clipag generate`, `clipdraw`, `vqgan`, `style` and `search`.

    In each of them `size` is that of the picture that is written. Where it is left out, `generate` (without --image)
    and `vqgan` make what their model or preset says and write it with a short side of 448 pixels, resampled; `search`
    writes 448, resampled from what its generator makes; `clipdraw` renders its strokes at 448; `style` keeps the
    photograph's own size, up to 2048 pixels a side.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    prompts: list[str] = option(
        [],
        "what to make; several make several pictures; 'a fox | fog:0.5 | text:-1' has weights",
        positional=True,
        metavar="PROMPT",
    )
    output: str = option(
        "",
        "picture (.png; with --compare the sheet) or folder to write; default: runs/DATE-PROMPT-SEED",
        short="-o",
    )
    overwrite: bool = option(False, "replace files, even if they are no pictures of clipag_plug")
    animation: str | None = option(None, "the picture's course as .gif, .webp, .png or .mp4")
    frames: int = option(0, "pictures of the course to keep", low=0)
    model: str = option("clipag-mini", "key or file of the guiding model", short="-m")
    compare: bool = option(False, "use its vanilla counterpart as well, side by side")
    vanilla: str | None = option(
        None, "that counterpart; default: what the model was fine-tuned from"
    )
    seed: int = option(
        0, "seed of the first variation", low=0, high=2**63 - 1, short="-s", drawn=True
    )
    variations: int = option(
        1, "pictures per prompt, with seeds seed, seed + 1, ...", low=1, high=10_000, short="-n"
    )
    device: str | None = option(None, "cpu, cuda, cuda:1 or mps; default: cuda if there is one")
    precision: str = option("auto", PRECISION, choices=PRECISIONS)
    json: bool = option(False, "print paths, seeds and losses as JSON instead of the paths")
    quiet: bool = option(False, "no bar and no remarks on stderr", short="-q")

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("a prompt is empty; write what the picture should show")
        if halved("".join(self.prompts)):
            raise ValueError("a prompt holds bytes that are no text in UTF-8; write it again")

    def count(self) -> int:
        """Pictures that are made under one model."""
        return max(len(self.prompts), 1) * self.variations

    def shown(self) -> int:
        """Short side to which a smaller picture is enlarged when it is written; 0 where the options say its size."""
        own = getattr(self, "image", None)  # what starts from a picture keeps its size
        return SHOWN if getattr(self, "size", 0) in ("", None) and not own else 0

    def decided(self) -> dict[str, Any]:
        """What the preset says about fields that were left at None."""
        return self.PRESETS[self.preset] if self.PRESETS else {}  # type: ignore[attr-defined]

    def resolved(self) -> Self:
        """A copy in which the preset has filled every field left at None that it decides."""
        decided = self.decided().items()
        return dataclasses.replace(
            self, **{name: value for name, value in decided if getattr(self, name) is None}
        )
