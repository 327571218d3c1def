"""One module of options a job, free of torch, and the table of the jobs: the sub-commands of `clipag`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

GROUPS = ("paint", "measure", "train", "models", "other programs", "this command")


@dataclass(frozen=True)
class Command:
    """A sub-command of `clipag`.

    Args:
        job: `module:class` of its options.
        handler: `module:function`; it takes the options and returns an exit code, or None for success.
        group: heading under which `clipag --help` lists it.
        help: what it does, without a capital letter and a full stop.
        example: a command line.
        shown: fields whose flags `--help` explains; `--help-all` explains the others too. Empty: all.
        recipes: folder of the package whose recipe files can be named without path and ending.
        passes_on: the field that takes everything behind the first positional argument as it is.
    """

    job: str
    handler: str
    group: str
    help: str
    example: str
    shown: str = ""
    recipes: str = ""
    passes_on: str = ""

    @property
    def options(self) -> Any:
        """The class of its options."""
        return resolve(self.job)


def resolve(path: str) -> Any:
    """The object behind `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


COMMANDS = {
    "clipdraw": Command(
        "clipag_plug.options.clipdraw:ClipDraw",
        "clipag_plug.pipelines.draw:run",
        "paint",
        "draw with strokes towards a sentence (CLIPDraw)",
        'clipag clipdraw "a goldfish" --preset demo --compare -o goldfish.png --svg goldfish.svg',
        shown="output svg size model compare preset strokes steps seed variations device json quiet",
    ),
    "demo": Command(
        "clipag_plug.options.tools:Demo",
        "clipag_plug.demo.command:run",
        "paint",
        "open a page to paint, draw and explain in, two models side by side",
        "clipag demo --port 8600",
    ),
    "serve": Command(
        "clipag_plug.options.tools:Serve",
        "clipag_plug.demo.serve:run",
        "other programs",
        "answer programs in any language with loss and gradient of their pictures, over a WebSocket",
        "clipag serve --port 8765",
    ),
    "generate": Command(
        "clipag_plug.options.generate:Generate",
        "clipag_plug.paint.command:run",
        "paint",
        "paint a picture from a sentence, with the gradients of CLIP alone",
        'clipag generate "a goldfish" -o goldfish.png',
        shown="output model seed variations preset image steps size views device json quiet",
    ),
    "search": Command(
        "clipag_plug.options.search:Search",
        "clipag_plug.pipelines.gan_search:run",
        "paint",
        "search a class-conditional generator for the picture that fits a sentence",
        'clipag search "a goldfish" -o goldfish.png',
        shown="output size model compare generator method budget k seed variations device json quiet",
    ),
    "style": Command(
        "clipag_plug.options.style:Style",
        "clipag_plug.pipelines.style:run",
        "paint",
        "give a picture the style that a sentence describes (CLIPStyler)",
        'clipag style "a coral reef" --image photo.jpg --preset demo --compare -o styled.png',
        shown="image output model compare preset mode steps size seed variations device json quiet",
    ),
    "vqgan": Command(
        "clipag_plug.options.vqgan:Vqgan",
        "clipag_plug.pipelines.vqgan:run",
        "paint",
        "steer the codes of a VQGAN with sentences (VQGAN+CLIP)",
        'clipag vqgan "a lemon | a banana:-0.3" --preset demo --compare -o lemon.png',
        shown="output model compare preset steps size seed variations device json quiet",
    ),
    "bench": Command(
        "clipag_plug.options.bench:Bench",
        "clipag_plug.bench.__main__:run",
        "measure",
        "measure robustness and perceptual alignment, and write a report",
        "clipag bench --suite quick",
        shown="suite models judge records seeds device",
    ),
    "explain": Command(
        "clipag_plug.options.explain:Explain",
        "clipag_plug.explanation.command:run",
        "measure",
        "show what a model sees in a picture",
        'clipag explain photo.jpg "a goldfish" -o maps.png',
        shown="output model method layer attack against negation eps steps cell device json",
    ),
    "train": Command(
        "clipag_plug.options.train:Train",
        "clipag_plug.train.command:run",
        "train",
        "train an image encoder, adversarially or plainly",
        "clipag train --init clipag-mini --data 'shards/train-*.tar' --samples 20000 -o runs/mine",
        shown="data validation init output resume samples batch_size lr objective norm eps "
        "attack_steps save_every",
        recipes="train/recipes",
    ),
    "doctor": Command(
        "clipag_plug.options.tools:Doctor",
        "clipag_plug.weights.doctor:run",
        "models",
        "say what a weight file is and whether it is sound",
        "clipag doctor clipag-mini",
    ),
    "export": Command(
        "clipag_plug.options.tools:Export",
        "clipag_plug.weights.export:run",
        "models",
        "write a model in another library's format",
        "clipag export clipag-mini exported --format bundled",
    ),
    "words": Command(
        "clipag_plug.options.tools:Words",
        "clipag_plug.paint.command:words",
        "models",
        "show what a model takes words for",
        "clipag words horse gryphon",
    ),
    "models": Command(
        "clipag_plug.options.tools:Models",
        "clipag_plug.weights.doctor:models",
        "models",
        "list the models that can be loaded by name",
        "clipag models",
    ),
    "run": Command(
        "clipag_plug.options.tools:Run",
        "clipag_plug.adapters.scripts:run",
        "other programs",
        "run somebody else's CLIP script or notebook, unmodified, on CLIPAG",
        "clipag run --model clipag-mini --device cpu generate.py -p 'a goldfish' -i 50",
        passes_on="arguments",
    ),
    "completion": Command(
        "clipag_plug.options.tools:Completion",
        "clipag_plug.cli:complete",
        "this command",
        "print the script that lets a shell complete commands and flags",
        "clipag completion bash",
    ),
}
