"""Small models, shards and trainers for the tests of the trainer."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipag_plug.options.train import Train
from clipag_plug.train import setup
from clipag_plug.train.data import Batch
from clipag_plug.train.distributed import Workers
from clipag_plug.train.trainer import Trainer

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
MINI = {"image_size": 224, "mini": {"image_size": 16, "widths": [8, 16], "depths": [1, 1]}}
VIT = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
CONVNEXT = {
    "image_size": 32,
    "timm_model_name": "convnext_atto",
    "timm_model_pretrained": False,
    "timm_pool": "",
    "timm_proj": "linear",
}


def architecture(vision: dict[str, Any] = MINI, text: dict[str, Any] | None = None, **rest) -> str:
    return json.dumps(
        {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT | (text or {}), **rest}
    )


ARCHITECTURE = architecture()


def jpeg(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def write_shard(path: Path, samples: list[dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def shard(tmp_path_factory) -> Path:
    """24 photographs of noise, five classes, one caption."""
    rng = np.random.default_rng(0)
    samples = [{"jpg": jpeg(rng), "cls": str(i % 5).encode(), "txt": b"a thing"} for i in range(24)]
    return write_shard(tmp_path_factory.mktemp("shards") / "train.tar", samples)


def options(shard: Path, folder: Path, **changes) -> Train:
    values = {
        "data": [str(shard)],
        "captions": "vocabulary",
        "architecture": ARCHITECTURE,
        "resolution": 16,
        "samples": 48,
        "batch_size": 8,
        "attack_steps": 2,
        "eps": 3.0,
        "lr": 1e-2,
        "flip": True,
        "output": str(folder),
        "device": "cpu",
        "quiet": True,
        "decoders": 0,
        "precision": "fp32",
        "save_every": "0s",
    }
    return Train(**{**values, **changes})


def prepared(shard: Path, folder: Path, workers: Workers | None = None, **changes) -> Trainer:
    return setup.prepare(options(shard, folder, **changes), workers).trainer


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The weights' gradients of one step, with batch norm on its running statistics so that the split cannot matter."""
    trainer.model.train = lambda mode=True: trainer.model  # type: ignore[method-assign]
    trainer.model.eval = lambda: trainer.model  # type: ignore[method-assign]
    for module in trainer.model.modules():
        module.training = False
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign]
    trainer.step()
    return {name: p.grad.clone() for name, p in trainer.weights.items() if p.grad is not None}


class Fixed:
    """The batches of a trainer, the images and captions of which are always those of one batch."""

    def __init__(self, batches: Any, batch: Batch) -> None:
        self.batches, self.batch = batches, batch

    def __getitem__(self, index: int) -> Batch:
        return self.batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)


def as_one(whole: Trainer, split: Trainer, count: int) -> None:
    """Gives a trainer the first `count` micro-batches of another as a single one."""
    parts = [split.batches[index] for index in range(count)]
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(Batch):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], torch.Tensor):
            joined[field.name] = torch.cat(values)
        else:
            joined[field.name] = values[0] and [each for value in values for each in value]
    whole.batches = Fixed(split.batches, Batch(**joined))  # type: ignore[assignment]


def differ(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of two sets of gradients, relative to the first."""
    assert first.keys() == second.keys() and first
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (first, second))
    return float((a - b).norm() / a.norm())
