"""The model that a run starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..files import read_lines
from ..mini import grown
from ..model import CLIP, build
from ..options.train import Train
from ..weights import configs
from . import state


def initial_model(options: Train, device: str) -> tuple[CLIP, dict[str, Any], dict[str, Any]]:
    """The model to train, its config, and what of its card a result keeps: how pixels are prepared."""
    if options.grow > 1 and not options.init:
        raise ValueError("--grow needs --init: it goes on with a tower that is there")
    if options.init:
        model, config, card = opened(options.init, options.grow, options.patch_dropout)
    elif options.architecture:
        config, card = _architecture(options.architecture)
        model = _built(config, None, card, options.name, options.patch_dropout)
    else:
        raise ValueError(
            "no model; give --init NAME to fine-tune one, or --architecture CONFIG to start from scratch"
        )
    kept: dict[str, Any] = {n: card[n] for n in ("interpolation", "resize_mode") if n in card}
    _check_side(model, options.resolution)
    return model.to(device), config, {**kept, "mean": list(model.mean), "std": list(model.std)}


def _architecture(given: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model config and preprocessing of --architecture: JSON text, a file of it (an `open_clip_config.json` too), or a
    name of open_clip's."""
    text = given
    if not given.lstrip().startswith("{"):
        if not Path(given).is_file():
            from open_clip import get_model_config

            named = get_model_config(given)
            if named is None:
                raise ValueError(
                    f"--architecture {given!r} is no file, no JSON text and no model of open_clip"
                )
            return named, configs.published(given)
        text = "\n".join(read_lines(given, "--architecture"))
    try:
        config = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"--architecture is not valid JSON: {error}") from error
    pixels = config.pop("preprocess_cfg", {})
    return config.pop("model_cfg", config), configs.preprocessing("--architecture", pixels)


def _check_side(model: CLIP, side: int) -> None:
    own = int(model.visual.input_resolution)
    if side and side != own:
        try:
            with torch.no_grad():
                model.eval().visual(torch.zeros(1, 3, side, side))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(
                f"--resolution is {side}, and the image tower takes images of {own} pixels; leave it out"
            ) from error


def opened(
    name: str, grow: float = 1, patch_dropout: float = 0.0
) -> tuple[CLIP, dict[str, Any], dict[str, Any]]:
    """Model, config and card of a run's folder or of any name that load() takes."""
    if (Path(name) / "model.json").is_file():
        config, card, weights = state.read_model(Path(name))
    else:
        from ..weights import open_checkpoint

        found = open_checkpoint(name)
        config, weights, record = found.config, found.state_dict, found.record
        card = {**found.card, "name": name, "mean": list(record.mean), "std": list(record.std)}
        card |= {"interpolation": record.interpolation, "resize_mode": record.resize_mode}
    if grow > 1:
        config, weights = grown(config, weights, grow)
    return _built(config, weights, card, card["name"], patch_dropout), config, card


def _built(
    config: dict[str, Any], weights: Any, card: dict[str, Any], name: str, patch_dropout: float
) -> CLIP:
    if patch_dropout:
        vision = {**config["vision_cfg"], "patch_dropout": patch_dropout}
        config = {**config, "vision_cfg": vision}
    mean, std = card.get("mean"), card.get("std")
    return build(config, weights, name=name, card=card, mean=mean, std=std)
