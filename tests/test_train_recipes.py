"""The recipe files: every one can be run, and the published numbers are the published ones."""

from __future__ import annotations

from importlib.resources import files

import pytest

from clipag_plug import available_models
from clipag_plug.options.base import read_recipe
from clipag_plug.options.train import Train

FOLDER = files("clipag_plug.train") / "recipes"
NAMES = sorted(
    path.name.removesuffix(".toml") for path in FOLDER.iterdir() if path.name.endswith(".toml")
)
BATCH, GPUS = 40_960, 8


def recipe(name: str) -> Train:
    return Train.from_dict(read_recipe(str(FOLDER / f"{name}.toml")))


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_whole(name: str) -> None:
    options = recipe(name)
    assert options.name == name and options.output == f"runs/{name}"
    assert options.samples >= options.batch_size * options.accumulation
    assert options.text == ("train" if name == "mini-words" else "frozen")
    assert options.precision in ("fp32", "bf16")
    text = (FOLDER / f"{name}.toml").read_text()
    assert f"--recipe {name} " in text, "the comment says how to run it"


@pytest.mark.parametrize(
    "name, start, norm, eps",
    [
        ("clipag-vit-b-32", "laion/ViT-B/32", "l2", 1.5),
        ("clipag-vit-b-16", "laion/ViT-B/16", "linf", 2 / 255),
        ("clipag-convnext", "laion/convnext_base_w", "linf", 2 / 255),
        ("clipag-linf", "laion/ViT-B/32", "linf", 2 / 255),
    ],
)
def test_recipes_of_the_paper(name, start, norm, eps) -> None:
    """Supplement sections 1.1 and 3."""
    options = recipe(name)
    assert options.init == start and start in available_models()
    assert (options.norm, options.eps) == (norm, pytest.approx(eps))
    assert (options.attack_steps, options.lr, options.weight_decay) == (5, 2e-5, 1e-4)
    assert options.accumulation == 10
    assert options.batch_size * options.accumulation * GPUS == BATCH
    assert (options.objective, options.clean_weight) == ("contrastive", 0)
    assert (options.decay, options.duplicates, options.flip) == ("open_clip", "negative", False)
    adam = (0.999, 1e-8) if "convnext" in start else (0.98, 1e-6)
    assert (options.beta1, options.beta2, options.adam_eps) == (0.9, *adam)


@pytest.mark.parametrize("name", ["fare", "tecoa"])
def test_recipes_of_the_peers(name) -> None:
    options = recipe(name)
    assert (options.objective, options.attack_objective) == (name, name)
    assert (options.norm, options.attack_steps, options.momentum) == ("linf", 10, 0.9)
    assert (options.momentum_form, options.decay, options.flip) == ("normalized", "all", False)
    assert (options.beta1, options.beta2, options.adam_eps) == (0.9, 0.999, 1e-8)
    if name == "tecoa":
        assert options.prompts == ["This is a photo of a {}"] and not options.articles
    assert options.eps * options.step_ratio == pytest.approx(1 / 255)
    assert options.samples // options.batch_size == 20_000
    assert options.warmup * 20_000 == pytest.approx(1_400)
