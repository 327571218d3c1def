"""Vanilla above CLIPAG: the same prompts, seed, start and steps; one picture for the README.

python benchmarks/make/readme_picture.py -o docs/vanilla-clipag.png
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from torch.nn import functional as F

from clipag_plug.images import contact_sheet, write_image
from clipag_plug.paint import synthesize

PROMPTS = ["a goldfish", "a lemon", "a school bus", "a jellyfish", "a king penguin", "a brown bear"]
MODELS = {"vanilla": "clip-mini", "CLIPAG": "clipag-mini"}


def picture(prompts: list[str], models: dict[str, str], *, cell: int, **options: Any) -> Any:
    """The sheet (3, H, W): a row a model, a column a prompt. Nothing is picked: one seed, every prompt shown."""
    rows = []
    for title, model in models.items():
        started = time.monotonic()
        results = synthesize(prompts, model=model, **options)
        print(f"{title} ({model}): {time.monotonic() - started:.1f} s")
        images = [result.image[None] for result in results]
        rows.append([F.interpolate(each, size=(cell, cell), mode="area")[0] for each in images])
    captions = [f"{title}: {model}" for title, model in models.items()]
    return contact_sheet(rows, headings=prompts, captions=captions, margin=8, text=15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="*", default=PROMPTS, help="what to paint")
    parser.add_argument("-o", "--output", default="docs/vanilla-clipag.png", help="file to write")
    parser.add_argument("-s", "--seed", type=int, default=0)
    parser.add_argument("-p", "--preset", default="fast")
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument("--vanilla", default=MODELS["vanilla"])
    parser.add_argument("-m", "--model", default=MODELS["CLIPAG"])
    parser.add_argument("--cell", type=int, default=160, help="side of a picture in pixels")
    given = parser.parse_args()
    models = {"vanilla": given.vanilla, "CLIPAG": given.model}
    options = {"seed": given.seed, "preset": given.preset, "steps": given.steps}
    sheet = picture(given.prompts, models, cell=given.cell, **options)
    recipe = {"prompts": given.prompts, "models": models, **options}
    print(write_image(given.output, sheet, recipe))


if __name__ == "__main__":
    main()
