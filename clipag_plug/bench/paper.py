"""The protocols of Ganz & Elad 2024 and its supplement: pictures by each pipeline, scored by judges alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..options.base import Options, option
from ..pipelines.gan_search import enlarged
from .generation import draw, verdicts
from .metrics import similarity
from .prompts import read_prompts
from .records import Metric
from .registry import Context, Measured, Sheet, task
from .scoring import scores
from .zeroshot import spread


@dataclass
class Pictures(Options):
    """Which prompts, and who scores besides the judge."""

    prompts: str = option(
        "captions", "captions, drawings, styles, a text file, or MS-COCO's captions_*.json"
    )
    count: int = option(100, "prompts to take, 0 for all", low=0)
    prefix: str = option("", "put before every prompt, as 'an oil painting of '")
    second: str = option("", "a second CLIP to score with, by key or file; it may not guide")
    inception: str = option(
        "", "weight file of torch-fidelity's Inception v3; empty takes the judge's features"
    )


@dataclass
class GeneratorFree(Pictures):
    """Settings of `synthesize`."""

    preset: str = option("fast", "preset of synthesize")
    views: int = option(4, "random views of a step, 0 for none", low=0)
    steps: int = option(60, "updates of the picture", low=1)
    init: str = option("gmm", "start of a picture", choices=("noise", "gray", "gmm"))
    batch: int = option(25, "pictures that are drawn together and share their start", low=1)


@dataclass
class Drawings(Pictures):
    """Settings of the port of CLIPDraw."""

    prompts: str = option(
        "drawings", "drawings, captions, a text file, or MS-COCO's captions_*.json"
    )
    preset: str = option("demo", "preset of clipdraw")
    augment: bool = option(True, "look at random views")
    steps: int = option(60, "updates", low=1)


@dataclass
class Codes(Pictures):
    """Settings of the port of VQGAN+CLIP."""

    preset: str = option("demo", "preset of vqgan_clip")
    autoencoder: str = option("vqgan-mini", "its autoencoder, by name or file")
    steps: int = option(60, "updates", low=1)


@dataclass
class Styles(Pictures):
    """Settings of the port of CLIPStyler."""

    prompts: str = option("styles", "styles, or a text file")
    count: int = option(0, "styles to take, 0 for all", low=0)
    photographs: int = option(4, "photographs that are put into each style", low=1)
    preset: str = option("demo", "preset of clipstyler")
    mode: str = option("network", "what is optimised", choices=("network", "pixels"))
    steps: int = option(40, "updates", low=1)


@task(
    "generator_free",
    "generator-free pictures of captions",
    GeneratorFree,
    needs=("photos", "judge"),
)
def generator_free(context: Context) -> Measured:
    """Main paper's generator-free synthesis: CLIPSIM, R-Precision, FID, KID and IS against the photographs."""
    return _measured(context, lambda prompts: draw(context, prompts), sets=True)


@task("clipdraw", "CLIPDraw", Drawings, needs=("photos", "judge"))
def clipdraw(context: Context) -> Measured:
    """Supplement 1.2: drawings with and without augmentations; aesthetics, similarity by two CLIPs, R-Precision."""
    options: Drawings = context.options

    def made(prompt: str, place: int) -> Tensor:
        from ..pipelines import clipdraw as port

        return port(
            prompt,
            model=context.model,
            seed=_seed(context, place),
            preset=options.preset,
            augment=options.augment,
            steps=options.steps,
            size=0,
        )[0].image

    return _measured(context, lambda prompts: _each(context, prompts, made))


@task("vqgan_clip", "VQGAN+CLIP", Codes, needs=("photos", "judge"))
def vqgan_clip(context: Context) -> Measured:
    """Supplement 1.2: pictures of 100 captions through an autoencoder's codes; similarity by two CLIPs."""
    options: Codes = context.options

    def made(prompt: str, place: int) -> Tensor:
        from ..pipelines import vqgan_clip as port

        return port(
            prompt,
            model=context.model,
            autoencoder=options.autoencoder,
            seed=_seed(context, place),
            preset=options.preset,
            steps=options.steps,
        )[0].image

    return _measured(context, lambda prompts: _each(context, prompts, made))


@task("clipstyler", "CLIPStyler", Styles, needs=("photos", "judge"))
def clipstyler(context: Context) -> Measured:
    """Supplement 1.2: photographs in the style of a text, with the style network or on bare pixels.

    Similarity to the style, and to the photograph, by the judge: a style that eats the picture wins only the first.
    """
    options: Styles = context.options
    photos = context.need_photos()
    rows = spread(len(photos), options.photographs)
    styles = _prompts(context)
    contents = photos.pixels(rows)
    pairs = [(style, place) for style in styles for place in range(len(rows))]
    images = []
    for done, (style, place) in enumerate(pairs):
        from ..pipelines import clipstyler as port

        images.append(
            port(
                style,
                contents[place],
                model=context.model,
                seed=_seed(context, done),
                preset=options.preset,
                mode=options.mode,
                steps=options.steps,
            )[0].image
        )
        context.progress((done + 1) / len(pairs))
    stacked = torch.stack(images)
    judge = context.need_judge()
    looks = judge.features(enlarged(stacked, judge.side))
    texts = judge.texts([style for style, _ in pairs]).cpu()
    kept = judge.features(enlarged(contents, judge.side))[[place for _, place in pairs]]
    found = {
        "style": ("similarity to the style", similarity(looks, texts)),
        "content": ("similarity to the photograph", similarity(looks, kept)),
    }
    metrics = {
        key: Metric(title, "cosine", judge.name, column.tolist())
        for key, (title, column) in found.items()
    }
    items = [f"{photos.keys[int(rows[place])]}: {style}" for style, place in pairs]
    return Measured(
        items, metrics, {"pictures": Sheet(stacked, items)}, {"side": stacked.shape[-1]}
    )


def _measured(
    context: Context, make: Callable[[list[str]], Tensor], sets: bool = False
) -> Measured:
    options: Pictures = context.options
    prompts = _prompts(context)
    images = make(prompts)
    metrics, empty = scores(
        context,
        images,
        prompts,
        second=options.second,
        sets=sets,
        inception=options.inception,
    )
    judge = context.need_judge()
    seen = verdicts(judge, judge.logits(enlarged(images, judge.side)))
    notes = {"side": images.shape[-1], "empty": empty}
    return Measured(prompts, metrics, {"pictures": Sheet(images, prompts, seen)}, notes)


def _prompts(context: Context) -> list[str]:
    options: Pictures = context.options
    return [
        options.prefix + text for text in read_prompts(options.prompts, options.count, context.seed)
    ]


def _each(context: Context, prompts: list[str], made: Callable[[str, int], Tensor]) -> Tensor:
    """One picture after another, as the pipelines make them."""
    pictures = []
    for place, prompt in enumerate(prompts):
        pictures.append(made(prompt, place))
        context.progress((place + 1) / len(prompts))
    return torch.stack(pictures)


def _seed(context: Context, place: int) -> int:
    return context.seed * 100_003 + place
