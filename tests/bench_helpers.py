"""What the tests of the bench share: a small suite, three random models, and a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clipag_plug.bench import engine
from clipag_plug.bench.suites import read_suite
from clipag_plug.bench.tasks import Resources
from clipag_plug.model import CLIP, build

SUITE = """
about = "small <test>"
models = ["plain", "robust"]
judge = "judge"
[entries.zeroshot]
task = "zeroshot"
options = { steps = 2, count = 6, batch = 4 }
[entries.views]
task = "generation"
options = { every = 40, steps = 2, views = 1, batch = 4 }
[entries.targeted]
task = "targeted"
options = { radii = [2.0, 4.0], count = 6, steps = 2, batch = 4 }
[entries.gradients]
task = "gradients"
options = { count = 6, shown = 3 }
[[claims]]
text = "clean top-1"
metric = "zeroshot/clean_top1"
least = 0.0
"""


@pytest.fixture(scope="module")
def trio() -> dict[str, CLIP]:
    """Three random models for 32x32 images."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    models = {}
    for seed, name in enumerate(("plain", "robust", "judge")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(
                {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, None, name=name
            )
        models[name] = model.requires_grad_(False)
    return models


@pytest.fixture
def served(trio: dict[str, CLIP], monkeypatch: pytest.MonkeyPatch) -> dict[str, CLIP]:
    """`trio` behind `clip.load_model`; what is put into the dict is served as well."""
    from clipag_plug import clip

    models, load = dict(trio), clip.load_model

    def loaded(name: str, device: Any = None, **rest: Any) -> CLIP:
        return models[name] if name in models else load(name, device=device, **rest)

    monkeypatch.setattr(clip, "load_model", loaded)
    return models


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


def run(path: Path, folder: Path, **changes: Any) -> list[engine.Done]:
    suite = read_suite(str(path), **changes)
    return list(engine.run(suite, folder, Resources(suite.judge, split=suite.split)))


def values(done: list[engine.Done]) -> dict[str, Any]:
    return {d.record.path: {k: m["values"] for k, m in d.record.metrics.items()} for d in done}


@pytest.fixture(scope="module")
def finished(
    trio: dict[str, CLIP], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[engine.Done]]:
    """The small suite, its records' folder, and what running it gave."""
    from clipag_plug import clip

    folder = tmp_path_factory.mktemp("bench")
    path = folder / "small.toml"
    path.write_text(SUITE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "load_model", lambda name, device=None, **rest: trio[name])
        return path, folder, run(path, folder)
