"""The parts of the shims that need no script: old checkpoints, LPIPS, CUDA, and attention."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from adapters_helpers import library, old_file
from clipag_plug.adapters import models, shims, torch_shims
from clipag_plug.adapters.shims import taming_shims

import clipag_plug


class Hostile:
    """Wants to run something when it is read."""

    def __reduce__(self) -> Any:
        return (os.putenv, ("CLIPAG_TEST_RAN", "1"))


def test_old_checkpoints_are_read_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    path = old_file(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    with clipag_plug.patch("vqgan_clip") as patch:
        with open(path, "rb") as file:
            table = torch.load(file, map_location="cpu")
        assert torch.equal(table["state_dict"]["w"], torch.arange(3.0))
        assert isinstance(table["callback"], torch_shims.Inert)
        assert patch.used and patch.used[0][0] == "torch_load" and "Gone" in patch.used[0][1]
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
        torch.save({"x": Hostile()}, path)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path)


def test_a_whole_pickled_module_is_refused_as_without_the_shim(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with clipag_plug.patch("vqgan_clip"), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "module.pt")


@pytest.fixture
def taming(library: Path) -> types.ModuleType:
    """A library in the layout of taming-transformers, whose LPIPS counts its downloads."""
    folder = library / "taming" / "modules" / "losses"
    folder.mkdir(parents=True)
    for parent in (folder, folder.parent, folder.parent.parent):
        (parent / "__init__.py").touch()
    (folder / "lpips.py").write_text(
        "from torch import nn\n"
        "downloads = []\n"
        "class vgg16(nn.Module):\n"
        "    def __init__(self, requires_grad=False, pretrained=True):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(1, 1)\n"
        "        if pretrained: downloads.append('vgg')\n"
        "    def forward(self, x): return self.layer(x)\n"
        "class LPIPS(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = vgg16(pretrained=True, requires_grad=False)\n"
        "        self.load_from_pretrained()\n"
        "    def load_from_pretrained(self, name='vgg_lpips'): downloads.append(name)\n"
        "    def forward(self, x): return self.net(x)\n"
    )
    return folder


def test_lpips_that_is_thrown_away_loads_nothing(taming: Path) -> None:
    with taming_shims() as patch:
        from taming.modules.losses import lpips

        loss = lpips.LPIPS()
        assert lpips.downloads == [] and patch.used[0][0] == "lpips"
        used = lpips.LPIPS()
    used(torch.ones(1, 1))  # a loss that is used gets its weights, even behind the patch
    used(torch.ones(1, 1))
    assert lpips.downloads == ["vgg", "vgg_lpips"]
    assert not any(parameter.requires_grad for parameter in used.net.parameters())
    del loss
    lpips.LPIPS()
    assert lpips.downloads == ["vgg", "vgg_lpips"] * 2


def test_cuda_is_redirected_however_it_is_asked_for(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt")
    with clipag_plug.patch(device="cpu"):
        for tensor in (
            torch.zeros(2, device="cuda"),
            torch.zeros(2).to("cuda:1"),
            torch.zeros(2).to(0),
            torch.zeros(2).to(torch.device("cuda"), torch.float64),
            torch.zeros(2).cuda(non_blocking=True),
            torch.tensor([1.0], device=torch.device("cuda", 0)),
            torch.zeros(2).type("torch.cuda.FloatTensor"),
            torch.cuda.FloatTensor([1.0]),
            torch.nn.Linear(2, 2, device="cuda").weight,
            torch.nn.Linear(2, 2).to("cuda").cuda(0).bias,
            torch.load(tmp_path / "x.pt", map_location="cuda")["x"],
            torch.load(tmp_path / "x.pt", map_location={"cuda:0": "cuda:1"})["x"],
            torch.randn(2, generator=torch.Generator(device="cuda"), device="cuda"),
        ):
            assert tensor.device.type == "cpu"
        with torch.cuda.device(0), torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        end.record(torch.cuda.current_stream())
        end.synchronize()
        assert start.elapsed_time(end) >= 0 and torch.zeros(2).pin_memory().sum() == 0
        for name in ("init", "ipc_collect", "reset_peak_memory_stats", "empty_cache"):
            getattr(torch.cuda, name)()
        assert torch.cuda.mem_get_info()[1] > 0 and torch.cuda.memory_summary()
        assert torch.equal(torch.cuda.get_rng_state(), torch.get_rng_state())
        assert torch.cuda.get_device_properties(0).total_memory > 0
        x = torch.ones(2, requires_grad=True)
        assert x.cuda() is x


def test_blocks_keep_the_attention_of_their_last_call_and_its_gradient(tiny_clip: Any) -> None:
    images = torch.rand(3, 3, 64, 64)
    tokens = torch.randint(1, 50, (2, tiny_clip.context_length))
    plain = tiny_clip.encode_image(images), tiny_clip.encode_text(tokens)
    models.keep_attention(tiny_clip)
    kept = tiny_clip.encode_image(images), tiny_clip.encode_text(tokens)
    for ours, theirs in zip(kept, plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    sum(features.square().sum() for features in kept).backward()
    for tower, count, length in ((tiny_clip.visual, 3, 17), (tiny_clip, 2, tokens.shape[1])):
        for block in tower.transformer.resblocks:
            assert block.attn_probs.shape == (count * block.attn.num_heads, length, length)
            assert torch.allclose(block.attn_probs.sum(-1), torch.ones(()), atol=1e-5)
            x = torch.rand(length, count, block.attn.embed_dim)
            theirs = torch.nn.MultiheadAttention.forward(block.attn, x, x, x)
            for one, two in zip(block.attn(x, x, x), theirs, strict=True):
                assert torch.allclose(one, two, atol=1e-5)
            assert (
                block.attn_grad.shape == block.attn_probs.shape and block.attn_grad.abs().sum() > 0
            )


def test_the_start_pictures_of_the_notebook_need_no_download() -> None:
    from clipag_plug.priors import Mixture

    data = shims.Drawn("Maysee/tiny-imagenet", split="valid").with_format("torch")
    images, labels = data["image"], data["label"]
    with pytest.raises(ImportError, match="pip install datasets"):
        shims.Drawn("imagenet")
    assert len(images) == len(labels) == 50 * 200 and images[0].shape == (3, 64, 64)
    mean = torch.stack(images[:50]).float().div(255).mean(0)[:, ::4, ::4].flatten()
    assert (mean - Mixture.load().means[0].float()).abs().mean() < 0.05


def test_pkg_resources_finds_versions_and_files(library: Path) -> None:
    (library / "pack").mkdir()
    (library / "pack" / "__init__.py").write_text(
        "import pkg_resources as p\nfrom pkg_resources import packaging\n"
    )
    (library / "pack" / "data.txt").write_text("here")
    with clipag_plug.patch():
        import pack

        assert pack.p.resource_stream("pack", "data.txt").read() == b"here"
        assert pack.p.resource_filename("pack", "data.txt").endswith("data.txt")
        assert pack.p.get_distribution("torch").version and pack.packaging.version.parse("1.2")
        with pytest.raises(pack.p.DistributionNotFound):
            pack.p.get_distribution("no-such-package")


def test_kornia_gives_the_matrix_where_return_transform_asks_for_it() -> None:
    class Base:
        transform_matrix = torch.eye(3)[None] * 2

        def __init__(self, p: float = 1.0) -> None:
            self.p = p

        flags = {"resample": 3}

        def __call__(self, picture: Any) -> Any:
            return self.apply_transform(picture, {}, self.flags, transform=1)

        def apply_transform(
            self, picture: Any, params: Any, flags: Any, transform: Any = None
        ) -> Any:
            return picture + transform

    module = types.ModuleType("kornia.augmentation")
    turn = vars(module)["Turn"] = type("Turn", (Base,), {})
    vars(module)["Spin"] = type(
        "Spin", (turn,), {"__init__": lambda self: turn.__init__(self, p=1)}
    )
    old = {"apply_transform": lambda self, x, params, transform=None: x + transform + self.resample}
    with clipag_plug.patch() as patch:
        shims.kornia_transforms(patch, module)
        assert type("Old", (module.Turn,), old)()(1) == 1 + 1 + 3
        assert module.Turn(p=0.5)(1) == 2 and module.Turn(return_transform=False)(1) == 2
        picture, matrix = module.Turn(return_transform=True)(1)
        assert module.Spin(return_transform=True)(1)[0] == 2, (
            "each layer of a class changes it once"
        )
        assert picture == 2 and torch.equal(matrix, Base.transform_matrix)
        picture, matrix = module.Turn()((1, matrix))
        assert picture == 2 and torch.equal(matrix, 4 * torch.eye(3)[None])
    with pytest.raises(TypeError):
        module.Turn(return_transform=True)


def test_a_local_package_is_the_programs(library: Path) -> None:
    (library / "datasets.py").write_text("def load_dataset(path): raise OSError(path)\n")
    sys.modules.pop("datasets", None)
    with clipag_plug.patch("clipag"):
        import datasets

        with pytest.raises(OSError):
            datasets.load_dataset("Maysee/tiny-imagenet")


def test_an_array_of_one_number_is_that_number_while_a_patch_is_on() -> None:
    with clipag_plug.patch():
        hits = torch.ones(1, 5).sum(1, keepdim=True).numpy()
        assert float(hits) == 5.0 and int(hits[0]) == 5 and hits.shape == (1, 1)
        assert type(torch.ones(2).numpy()) is numpy.ndarray
        assert type(pickle.loads(pickle.dumps(hits))) is numpy.ndarray
    assert type(torch.ones(1).numpy()) is numpy.ndarray
