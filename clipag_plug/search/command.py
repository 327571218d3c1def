"""`clipag search`: from options to a picture."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from ..guide import Guide, frozen, guide_for
from ..images import write_image
from ..options.search import Search
from . import methods
from .methods import Found, Problem
from .protocol import Generator
from .scoring import nearest_labels, scorer

log = logging.getLogger(__name__)


def run(options: Search) -> None:
    """Searches, writes the best picture, and prints where it is, its class and its score."""
    if Path(options.output).suffix.lower() != ".png":
        raise ValueError(
            f"--output is {options.output!r}; a picture with its recipe must end in .png"
        )
    if not Path(options.output).absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {options.output!r} does not exist; create it first")
    started = time.monotonic()
    generator = load_generator(options)
    found = find(options, None, generator)
    name = generator.classes[found.label]
    recipe = {
        "command": "search",
        **options.to_dict(),
        "score": round(found.score, 6),
        "class": name,
    }
    write_image(options.output, found.image, recipe)
    log.info("%d pictures in %.1f s", len(found.scores), time.monotonic() - started)
    print(f"{options.output}\t{name}\t{found.score:.4f}")


def find(options: Search, model: Any = None, generator: Generator | None = None) -> Found:
    """Searches as the options say; model and generator override the options' names."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    guide: Guide = guide_for(options.model if model is None else model, device=device)
    generator = generator or load_generator(options)
    if hasattr(generator, "to"):
        generator = generator.to(guide.device)
    text = guide.texts([options.prompt])[0]
    with frozen([guide.model]):
        labels = nearest_labels(guide, text, generator.classes, options.k, options.template)
        if options.k:
            log.info("classes: %s", ", ".join(generator.classes[int(i)] for i in labels[:10]))
        problem = Problem(
            generator,
            scorer(guide, text, options.range),
            labels,
            options.seed,
            options.batch,
            guide.device,
        )
        return solve(problem, options)


def solve(problem: Problem, options: Search) -> Found:
    """The method that the options name, on a problem."""
    if options.method == "evolve":
        return methods.evolve(
            problem, options.budget, population=options.population, mutation=options.mutation
        )
    if options.method == "refine":
        return methods.refine(problem, options.budget, bases=options.bases, rate=options.rate)
    return methods.random(problem, options.budget)


def load_generator(options: Search) -> Generator:
    """The generator that the options name. FileNotFoundError or ImportError says what is missing."""
    from .bundled import PrototypeGenerator, bundled_generator

    kind, _, name = options.generator.partition(":")
    if kind == "biggan":
        from .biggan import load_biggan

        return load_biggan(name or "biggan-deep-256", options.truncation)
    if options.generator == "bundled":
        generator = bundled_generator()
    elif Path(options.generator).suffix == ".safetensors":
        generator = PrototypeGenerator.load(options.generator)
    else:
        raise ValueError(
            f"--generator is {options.generator!r}; it must be bundled, a .safetensors file, or biggan:NAME"
        )
    generator.truncation = options.truncation
    return generator
