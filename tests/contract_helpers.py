"""What the tests of the contract share: a tiny model behind every key, and a picture on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny
from PIL import Image

import clipag_plug as clip
from clipag_plug.model import CLIP

VISION = {"image_size": 224, "patch_size": 56}


@pytest.fixture(autouse=True)
def tiny_224(local_models: Callable[..., None], tiny_config: dict[str, Any]) -> None:
    """Every key loads a random 2-layer ViT with CLIP's input size and vocabulary."""
    tiny_config["vision_cfg"].update(VISION)
    local_models(tiny_config, make_tiny(**VISION).state_dict())


@pytest.fixture
def model() -> CLIP:
    return clip.load("clipag", "cpu")[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "CLIP.png"
    pixels = np.random.default_rng(0).integers(0, 255, (240, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
