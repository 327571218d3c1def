"""CLIPStyler and the weights of the pipelines: published losses, networks, files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipag_plug.augment import fit
from clipag_plug.options.style import Style
from clipag_plug.paint import Guide
from clipag_plug.pipelines import clipstyler, loading, style
from clipag_plug.pipelines.autoencoder import Shape, VQModel
from clipag_plug.pipelines.style import Styling
from clipag_plug.pipelines.stylenets import UNet, VggContent, content_network, padded
from clipag_plug.weights.registry import FetchError

QUICK: dict[str, Any] = {"size": "48", "crop_size": 32, "crops": 3, "steps": 3, "device": "cpu"}


class Identity(nn.Module):
    """Content features that are the pixels."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images, images.mean((2, 3))]


@pytest.fixture
def photo() -> torch.Tensor:
    """A smooth picture (3, 48, 48)."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, 48, mode="bicubic")[0].clamp(0, 1)


def test_paper_presets_are_the_published_recipes() -> None:
    published = {"side": 512, "steps": 201, "lr": 5e-4, "crops": 64, "crop_size": 128}
    published |= {"patch": 9000, "direction": 500, "content": 150, "tv": 2e-3, "threshold": 0.7}
    published |= {"distortion": 0.5, "source": "a Photo", "width": 16, "residual": False}
    published |= {"finish": True}
    assert published.items() <= Style(image="x").resolved().to_dict().items()
    assert len(style.templates()) == 79


@pytest.mark.parametrize("mode", ["network", "pixels"])
def test_loss_equals_a_transcription(tiny_clip: Any, photo: torch.Tensor, mode: str) -> None:
    options = Style(prompts=["Fire"], image="x", mode=mode, **QUICK).resolved()
    run = Styling(options, Guide(tiny_clip), "Fire", photo, Identity())
    if mode == "pixels":
        run.pixels.data += 0.05 * torch.randn(run.pixels.shape)
    state = run.generator.get_state()
    ours = run.loss(0)
    run.generator.set_state(state)
    with torch.no_grad():
        image = run.image()
        patches = run.patches(image)

        def text(words: str) -> torch.Tensor:
            tokens = tiny_clip.tokenize([form.format(words) for form in style.templates()])
            mean = tiny_clip.encode_text(tokens).mean(0, keepdim=True)
            return mean / mean.norm(dim=-1, keepdim=True)

        def seen(images: torch.Tensor) -> torch.Tensor:
            found = tiny_clip.encode_image((images - run.guide.mean) / run.guide.std)
            return found / found.norm(dim=-1, keepdim=True)

        target = text("Fire") - text("a Photo")
        source = seen(fit(run.content, 64))
        step = seen(patches) - source
        step /= step.clone().norm(dim=-1, keepdim=True)
        losses = 1 - torch.cosine_similarity(step, target.repeat(3, 1), dim=1)
        losses[losses < 0.7] = 0
        whole = seen(fit(image, 64)) - source
        glob = (1 - torch.cosine_similarity(whole, target, dim=1)).mean()
        content = ((image - run.content) ** 2).mean()
        content = content + ((image.mean((2, 3)) - run.content.mean((2, 3))) ** 2).mean()
        x = image
        tv = sum(
            torch.sqrt((a - b).square().sum())
            for a, b in (
                (x[:, :, :, :-1], x[:, :, :, 1:]),
                (x[:, :, :-1, :], x[:, :, 1:, :]),
                (x[:, :, 1:, :-1], x[:, :, :-1, 1:]),
                (x[:, :, :-1, :-1], x[:, :, 1:, 1:]),
            )
        )
        total = 9000 * losses.mean() + 150 * content + 2e-3 * tv + 500 * glob
    assert float(ours.detach()) == pytest.approx(float(total), rel=1e-4)


def test_step_size_halves_one_update_early(tiny_clip: Any, photo: torch.Tensor) -> None:
    options = Style(prompts=["Fire"], image="x", **QUICK).resolved()
    run = Styling(options, Guide(tiny_clip), "Fire", photo, Identity())
    rates = [run.update(index, run.loss(index)) for index in (0, 98, 99, 199)]
    assert rates == [5e-4, 5e-4, 2.5e-4, 1.25e-4]


def test_styling_is_repeatable_and_leaves_the_model_alone(
    tiny_clip: Any, photo: torch.Tensor
) -> None:
    before = {name: value.clone() for name, value in tiny_clip.state_dict().items()}
    state = torch.get_rng_state()
    settings = {"preset": "demo", "finish": True, **QUICK}
    works = [
        clipstyler("Fire", photo, model=tiny_clip, seed=seed, **settings)[0] for seed in (1, 1, 2)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in tiny_clip.state_dict().items())
    assert all(parameter.requires_grad for parameter in tiny_clip.parameters())
    assert torch.equal(works[0].image, works[1].image)
    assert not torch.equal(works[0].image, works[2].image)
    assert works[0].image.min() == 0 and works[0].image.max() == 1


def test_pixels_alone_keep_the_photograph_where_nothing_pulls(
    tiny_clip: Any, photo: torch.Tensor
) -> None:
    still = {"patch": 0.0, "direction": 0.0, "tv": 0.0, "finish": False}
    (work,) = clipstyler("Fire", photo, model=tiny_clip, mode="pixels", **QUICK, **still)
    assert torch.allclose(work.image, photo, atol=1e-6)


def test_residual_network_starts_at_the_photograph(tiny_clip: Any, photo: torch.Tensor) -> None:
    for residual in (True, False):
        settings = {**QUICK, "residual": residual}
        options = Style(prompts=["Fire"], image="x", **settings).resolved()
        run = Styling(options, Guide(tiny_clip), "Fire", photo, Identity())
        start = (run.image()[0].detach() - photo.clamp(0.02, 0.98)).abs().max()
        assert bool(start < 1e-5) is residual
        before = run.image().detach()
        run.update(0, run.loss(0))
        assert not torch.equal(run.image(), before)


def test_residual_network_never_saturates(photo: torch.Tensor) -> None:
    unet = UNet.seeded(4, 0, residual=True)
    for bias in (-1e6, 1e6):
        nn.init.constant_(unet.out.bias, bias)  # type: ignore[arg-type]
        image = unet(photo[None])
        assert float(image.detach().min()) > 0 and float(image.detach().max()) < 1
        (gradient,) = torch.autograd.grad(image.sum(), [unet.out.bias])
        assert bool((gradient != 0).all())


def test_without_a_source_the_direction_is_the_prompt(tiny_clip: Any) -> None:
    guide = Guide(tiny_clip)
    with torch.no_grad():
        forms = style.templates()
        ends = [
            F.normalize(
                tiny_clip.encode_text(tiny_clip.tokenize([f.format(t) for f in forms])).mean(0),
                dim=0,
            )
            for t in ("Fire", "a Photo")
        ]
    found = style.text_direction(guide, "Fire", "")[0]
    assert torch.allclose(found, ends[0], atol=1e-5)
    from_photo = style.text_direction(guide, "Fire")[0]
    assert torch.allclose(from_photo, F.normalize(ends[0] - ends[1], dim=0), atol=1e-4)


def test_unet_keeps_any_size() -> None:
    image = torch.rand(1, 3, 21, 30)
    assert padded(image).shape == (1, 3, 24, 32)
    assert torch.equal(padded(image)[..., :21, :30], image)


def test_vgg_layers_are_the_published_ones(tmp_path: Path) -> None:
    from torchvision.models import vgg

    layers = vgg.make_layers(vgg.cfgs["E"])
    image = torch.rand(1, 3, 40, 40)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    x = (image - mean) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    wanted = {}
    for name, layer in layers.named_children():
        x = layer(x)
        if name in ("21", "31"):
            wanted[name] = x  # the in-place ReLU behind 21 rectifies it
    found = VggContent(layers)(image)
    assert torch.allclose(found[0], wanted["21"]) and torch.allclose(found[1], wanted["31"])
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="VGG19"):
        content_network("vgg19", torch.device("cpu"), str(tmp_path / "other.pth"))


def test_a_download_has_two_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(url: str, target: Path, **_: Any) -> str:
        asked.append(url)
        if len(asked) == 1:
            raise FetchError("gone")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"1")
        return "abcd"

    monkeypatch.setattr(loading, "fetch", fake)
    path = loading.obtain(str(tmp_path))
    assert path.read_bytes() == b"1" and asked == list(loading.SOURCES)
    assert loading.obtain(str(tmp_path)) == path and len(asked) == 2
    assert loading.Trust(tmp_path).get(loading.IMAGENET)


def test_autoencoder_files(tmp_path: Path) -> None:
    shape = Shape(
        ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(32,), resolution=64, embed_dim=8
    )
    with torch.random.fork_rng(devices=[]):
        model = VQModel(shape).eval()
    path = tmp_path / "own.ckpt"
    torch.save({"state_dict": {**model.state_dict(), "loss.x": torch.zeros(2)}}, path)
    with pytest.raises(FileNotFoundError, match="--config"):
        loading.load_autoencoder(str(path))
    config = tmp_path / "own.yaml"
    target = {"target": "taming.models.vqgan.VQModel", "params": shape.params()}
    config.write_text(json.dumps({"model": target}))
    loaded = loading.load_autoencoder(str(path))
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    ours, theirs = (each.decode(each.encode(image)) for each in (loaded, model))
    assert torch.allclose(ours, theirs, atol=1e-4)  # before the codebook, where rounding can decide
    config.write_text(json.dumps({"model": {**target, "target": "taming.models.vqgan.GumbelVQ"}}))
    with pytest.raises(ValueError, match="GumbelVQ"):
        loading.load_autoencoder(str(path))
    config.write_text(json.dumps({"params": Shape(ch=64).params()}))
    with pytest.raises(ValueError, match="does not fit"):
        loading.load_autoencoder(str(path))
    with pytest.raises(FileNotFoundError, match="vqgan-mini"):
        loading.load_autoencoder(str(tmp_path / "absent.ckpt"))


def test_bundled_autoencoder_reconstructs_photographs() -> None:
    from clipag_plug.bundled.photos import bundled_photos

    model = loading.load_autoencoder("vqgan-mini")
    images = bundled_photos().pixels(range(0, 505, 25)) * 2 - 1
    with torch.no_grad():
        again = model(images).clamp(-1, 1)
    error = ((again - images) / 2).square().mean((1, 2, 3))
    assert float((-10 * error.log10()).mean()) > 18
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 < 6e6


def test_our_autoencoder_is_that_of_taming() -> None:
    pytest.importorskip("taming")
    pytest.importorskip("pytorch_lightning")
    ours, theirs = (
        loading.load_autoencoder("vqgan-mini", backend=name) for name in ("own", "taming")
    )
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        codes = ours.encode(image)
        assert torch.allclose(theirs.quant_conv(theirs.encoder(image)), codes, atol=1e-4)
        nearest, loss, _ = theirs.quantize(codes)
        assert torch.allclose(ours.quantize(codes), nearest, atol=1e-5)
        assert torch.allclose(ours.decode(nearest), theirs.decode(nearest), atol=1e-4)


def test_the_result_has_the_size_of_the_photograph(tiny_clip: Any) -> None:
    coarse = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(coarse, (160, 200), mode="bicubic")[0].clamp(0, 1)
    still = {"patch": 0.0, "direction": 0.0, "tv": 0.0, "finish": False, "mode": "pixels"}
    settings: dict[str, Any] = {**QUICK, "size": None, "side": 40, "device": "cpu"}
    (work,) = clipstyler("Fire", large, model=tiny_clip, **settings, **still)
    assert torch.allclose(work.image, large, atol=1e-6)  # where nothing pulls nothing is lost
    (work,) = clipstyler(
        "Fire", large, model=tiny_clip, **{**settings, "mode": "pixels", "lr": 0.1}
    )
    assert work.image.shape == large.shape and (work.image - large).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("shape", "styled", "result"),
    [
        ((480, 640), (64, 85), (480, 640)),
        ((64, 64), (64, 64), None),  # not shrunk, not enlarged
        ((32, 48), (64, 96), None),  # enlarged: patches need pixels
        ((100, 1000), (26, 256), (100, 1000)),
        ((3000, 4096), (64, 87), (1500, 2048)),
    ],
)
def test_sizes(shape: Any, styled: Any, result: Any) -> None:
    options = Style(prompts=["a"], image="x", preset="demo").resolved()
    size, whole = style.sizes(options, torch.zeros(3, *shape))
    assert size == styled and (whole.shape[-2:] if whole is not None else None) == result
    options = Style(image="x", size="32x48").resolved()
    assert style.sizes(options, torch.zeros(3, *shape)) == ((48, 32), None)


def test_parts_of_a_style_are_summed(tiny_clip: Any) -> None:
    guide = Guide(tiny_clip)
    fire, fog = (style.text_direction(guide, text, "") for text in ("Fire", "fog"))
    both = style.text_direction(guide, "Fire | fog:-0.5", "")
    assert torch.allclose(both, F.normalize(fire - 0.5 * fog, dim=-1), atol=1e-5)
    with pytest.raises(ValueError, match="does not tell"):
        style.text_direction(guide, "a Photo")
