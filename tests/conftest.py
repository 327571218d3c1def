"""Fixtures for every test: small models, pictures, and no network."""

from __future__ import annotations

import copy
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from clipag_plug.model import CLIP, build

pytest_plugins = ["train_helpers"]

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
BUNDLED = Path(__file__).parent.parent / "clipag_plug" / "bundled"
LOOPBACK = ("127.0.0.1", "::1", "localhost", "", None)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Any connection but to this machine itself is refused, so that no test can need the network."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise OSError(f"a test tried to reach {address[0]}; tests are offline")
        connect(self, address)

    def guarded_resolve(host: Any, *arguments: Any, **keywords: Any) -> Any:
        if host not in LOOPBACK:
            raise socket.gaierror(f"a test tried to look up {host}; tests are offline")
        return resolve(host, *arguments, **keywords)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket, "getaddrinfo", guarded_resolve)
    patch.setenv("HF_HUB_OFFLINE", "1")
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--precision auto` is fp32 on every machine, so that results are equal on all of them."""
    monkeypatch.setattr("clipag_plug.precision.unit", lambda device="cpu": "")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """The models are too small for many threads, which would spin against each other."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def no_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own redirection of OpenAI's names is not the tests'."""
    monkeypatch.delenv("CLIPAG_PLUG_MODEL", raising=False)


def make_tiny(seed: int = 0, **vision: Any) -> CLIP:
    """A random CLIP of TINY's config with changes to its image tower."""
    config = copy.deepcopy(TINY)
    config["vision_cfg"].update(vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config, None, name="tiny")


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    """The open_clip config of `tiny_clip`: 2-layer towers, 64x64 images, CLIP's vocabulary."""
    return copy.deepcopy(TINY)


@pytest.fixture
def tiny_clip() -> CLIP:
    """A random 2-layer ViT CLIP for 64x64 images, the same in every test; yours to change."""
    return make_tiny()


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_clip: CLIP) -> Path:
    """The weights of `tiny_clip` in a safetensors file, its config in a JSON file beside it."""
    from safetensors.torch import save_file

    path = tmp_path / "tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tiny_clip.state_dict().items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"config": TINY, "card": {"note": "random"}}))
    return path


@pytest.fixture
def local_models(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`local_models(config, state_dict)` lets `load` give that model under every key."""

    from clipag_plug.weights import opening, registry

    def serve(
        config: dict[str, Any], state_dict: dict[str, Tensor], card: dict[str, Any] | None = None
    ) -> None:
        def open_checkpoint(name: str, download_root: str | None = None) -> Any:
            record = registry.get(name) or registry.Checkpoint(key=name)
            weights = {key: tensor.clone() for key, tensor in state_dict.items()}
            return SimpleNamespace(
                record=record, config=config, state_dict=weights, card=card or {}, files=()
            )

        monkeypatch.setattr(opening, "open_checkpoint", open_checkpoint, raising=False)

    return serve


@pytest.fixture
def photos() -> Tensor:
    """Four smooth colour pictures (4, 3, 224, 224) in [0, 1], each different."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, 224, mode="bicubic", align_corners=False)
    return (smooth + 0.05 * torch.rand(4, 3, 224, 224, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="session")
def bundled_pair() -> dict[str, CLIP]:
    """`clip-mini` and `clipag-mini` on the CPU, frozen; shared by the session, so leave them as they are."""
    from clipag_plug import clip

    names = ("clip-mini", "clipag-mini")
    return {name: clip.load(name, "cpu")[0].requires_grad_(False) for name in names}


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """What a command run inside a test does to the package's log ends with the test, as its streams do."""
    logger = logging.getLogger("clipag_plug")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
