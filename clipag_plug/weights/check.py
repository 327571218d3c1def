"""Compares the tensors of a file with those its config asks for, and names every difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .errors import BadFileError

SHOWN = 6


def check(path: Any, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Raises BadFileError that names missing, unexpected and mis-shaped tensors."""
    if config.get("custom_text"):  # the model's own constructor checks these
        return
    expected = shapes(config)
    problems = []
    # A counter that evaluation never reads, absent from older files.
    missing = [
        name for name in expected if name not in state and not name.endswith("num_batches_tracked")
    ]
    extra = [name for name in state if name not in expected]
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", wrong)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            problems.append(f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
    if problems:
        raise BadFileError(
            path, f"its tensors are not those of its architecture ({'; '.join(problems)})"
        )


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of open_clip's model with this config; nothing is allocated."""
    import open_clip
    import torch

    keywords = {
        name: value
        for name, value in config.items()
        if name not in ("custom_text", "preprocess_cfg")
    }
    keywords["vision_cfg"] = {**config["vision_cfg"]}
    if "timm_model_name" in keywords["vision_cfg"]:
        keywords["vision_cfg"]["timm_model_pretrained"] = False
    try:
        with torch.device("meta"):
            model = open_clip.CLIP(**keywords)
    except TypeError as error:
        raise ValueError(
            f"the installed open_clip {open_clip.__version__} does not know this config: {error}"
        ) from error
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
