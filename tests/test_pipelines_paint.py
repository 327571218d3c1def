"""CLIPDraw and VQGAN+CLIP: the published recipes and losses, honest results, nothing left changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipag_plug import augment
from clipag_plug.options.clipdraw import ClipDraw
from clipag_plug.options.vqgan import CUTS, Vqgan
from clipag_plug.paint import Guide
from clipag_plug.pipelines import clipdraw, vqgan_clip
from clipag_plug.pipelines.autoencoder import Shape, VQModel
from clipag_plug.pipelines.draw import Drawing, course
from clipag_plug.pipelines.vqgan import Latents, quantized, spherical
from clipag_plug.strokes import render_strokes, strokes_from_svg

QUICK: dict[str, Any] = {"canvas": 64, "size": 0, "strokes": 12, "steps": 3, "device": "cpu"}
SMALL: dict[str, Any] = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 0, "attn_resolutions": ()}
SMALL |= {"z_channels": 8, "embed_dim": 4, "n_embed": 16}


@pytest.fixture
def small_vq() -> VQModel:
    """A random autoencoder, codes of 2x2 pixels, with a codebook wide enough to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQModel(Shape(**SMALL))
        model.quantize.embedding.weight.data.normal_()
    return model.eval().requires_grad_(False)


def test_paper_presets_are_the_published_recipes() -> None:
    drawing = ClipDraw().resolved().to_dict()
    published = {"strokes": 256, "segments": 3, "radius": 0.1, "canvas": 224, "max_width": 50}
    published |= {"lr_points": 1.0, "lr_width": 0.1, "lr_color": 0.01, "distortion": 0.5}
    published |= {"steps": 1000, "views": 4, "augment": True, "crop_low": 0.7, "crop_high": 0.9}
    published |= {"normalize": False, "negative_weight": 0.3}
    assert published.items() <= drawing.items()
    predict = ClipDraw(preset="predict").resolved().to_dict()
    assert predict == {**drawing, "preset": "predict", "normalize": True}
    assert [course(i, 1000) for i in (0, 499, 500, 749, 750, 999)] == [1, 1, 0.4, 0.4, 0.1, 0.1]
    published = {"steps": 501, "optimizer": "adam", "lr": 0.1, "cuts": 32, "cut_method": "latest"}
    published |= {"cut_power": 1.0, "init": "codes", "init_weight": 0.0, "size": ""}
    assert published.items() <= Vqgan().resolved().to_dict().items()


@pytest.mark.parametrize("normalize", [False, True])
def test_first_step_of_clipdraw_equals_a_transcription(tiny_clip: Any, normalize: bool) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    options = ClipDraw(prompts=["a"], negatives=["a dog", "fog"], normalize=normalize, **QUICK)
    guide = Guide(tiny_clip)
    run = Drawing(options.resolved(), guide, "a goldfish")
    state = run.generator.get_state()
    ours = run.loss(0)
    ours.backward()

    twin = torch.Generator()
    twin.set_state(state)
    points = [path.detach().clone().requires_grad_(True) for path in run.points]
    rendered = render_strokes(points, run.widths.detach(), run.colors.detach(), 64, 64)
    alpha = rendered[:, :, 3:4]
    image = (alpha * rendered[:, :, :3] + (1 - alpha) * torch.ones(64, 64, 3)).permute(2, 0, 1)
    frame = torch.tensor([[0, 0], [63, 0], [63, 63], [0, 63]])
    inward = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    moves = (torch.rand(4, 4, 2, generator=twin) * 17).int()  # at most a quarter of the side
    corners, frame = (frame + inward * moves).tolist(), frame.tolist()
    boxes = []
    for area, aspect, y, x in torch.rand(4, 4, generator=twin).tolist():
        area, ratio = 64 * 64 * (0.7 + 0.2 * area), (3 / 4) * (16 / 9) ** aspect
        across, down = (min(round((area * r) ** 0.5), 64) for r in (ratio, 1 / ratio))
        boxes.append([int(y * (65 - down)), int(x * (65 - across)), down, across])
    views = []
    for corner, box in zip(corners, boxes):
        view = TF.perspective(image, frame, corner, InterpolationMode.BILINEAR, [1.0] * 3)
        views.append(TF.resized_crop(view, *box, [64, 64], antialias=True))
    batch = torch.stack(views)
    if normalize:
        batch = TF.normalize(batch, tiny_clip.mean, tiny_clip.std)
    features = tiny_clip.encode_image(batch)
    with torch.no_grad():
        texts = tiny_clip.encode_text(tiny_clip.tokenize(["a goldfish", "a dog", "fog"]))
    loss = torch.zeros(())
    for n in range(4):
        loss = loss - torch.cosine_similarity(texts[0:1], features[n : n + 1]).sum()
        for negative in (1, 2):
            similar = torch.cosine_similarity(texts[negative : negative + 1], features[n : n + 1])
            loss = loss + 0.3 * similar.sum()
    loss.backward()
    assert float(ours.detach()) == pytest.approx(float(loss.detach()), abs=5e-4)
    for path, twin_path in zip(run.points, points):
        assert torch.allclose(path.grad, twin_path.grad, atol=5e-4)  # type: ignore[arg-type]


class _Replace(torch.autograd.Function):
    """Forward of one tensor, gradient to another."""

    @staticmethod
    def forward(ctx: Any, shown: Tensor, behind: Tensor) -> Tensor:
        return shown.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def test_first_step_of_vqgan_clip_equals_a_transcription(tiny_clip: Any, small_vq: VQModel) -> None:
    options = Vqgan(prompts=["a"], cuts=3, size="32", init_weight=0.5, device="cpu").resolved()
    parts = [("a goldfish", 1, -math.inf), ("fog", -0.5, -math.inf), ("a dog", 2, 0.95)]
    run = Latents(options, Guide(tiny_clip), "a goldfish | fog:-0.5 | a dog:2:0.95", small_vq)
    run.codes = (run.codes.detach() + 0.3 * torch.randn(run.codes.shape)).requires_grad_(True)
    state = run.generator.get_state()
    ours = run.loss(2)
    ours.backward()

    z = run.codes.detach().clone().requires_grad_(True)
    table = small_vq.quantize.embedding.weight
    flat = z.permute(0, 2, 3, 1).reshape(-1, 4)
    one_hot = F.one_hot(torch.cdist(flat.detach(), table).argmin(1), 16).float()
    z_q = (one_hot @ table).view(1, 16, 16, 4)
    z_q = _Replace.apply(z_q, z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    image = (small_vq.decode(z_q) + 1) / 2
    inside = (image >= 0) & (image <= 1)
    assert inside.any() and not inside.all()
    clamped = image.clamp(0, 1)
    hook: list[Tensor] = []
    shown = _Replace.apply(clamped, image)
    shown.register_hook(lambda grad: hook.append(grad) or grad * (grad * (image - clamped) >= 0))
    twin = torch.Generator()
    twin.set_state(state)
    batch = augment.cutouts(shown, 3, 64, "latest", 1.0, twin)
    features = tiny_clip.encode_image((batch - run.guide.mean) / run.guide.std)
    loss = F.mse_loss(z, torch.zeros_like(z)) * (1 / (2 * 2 + 1)) * 0.5 / 2
    for text, weight, stop in parts:
        with torch.no_grad():
            embed = tiny_clip.encode_text(tiny_clip.tokenize([text]))
        a, b = F.normalize(features.unsqueeze(1), dim=2), F.normalize(embed.unsqueeze(0), dim=2)
        sign = math.copysign(1, weight)
        far = (a - b).norm(dim=2).div(2).arcsin().pow(2).mul(2) * sign
        floor = torch.maximum(far, torch.tensor(stop))
        loss = loss + abs(weight) * _Replace.apply(far, floor).mean()
    loss.backward()
    assert hook and float(ours.detach()) == pytest.approx(float(loss.detach()), abs=1e-5)
    assert torch.allclose(run.codes.grad, z.grad, atol=1e-6)  # type: ignore[arg-type]


def test_a_part_that_reached_its_stop_pulls_no_more() -> None:
    features = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    features.requires_grad_(True)
    text = F.normalize(torch.ones(1, 8), dim=-1)
    value = spherical(features, text, 1.0)
    held = spherical(features, text, 1.0, stop=10.0)
    assert float(held) == pytest.approx(float(value))
    assert torch.autograd.grad(value, features)[0].abs().sum() > 0
    assert torch.autograd.grad(held, features)[0].abs().sum() == 0


def test_codes_stay_in_the_codebook_and_the_picture_is_made_of_it(
    tiny_clip: Any, small_vq: VQModel
) -> None:
    options = Vqgan(prompts=["a"], cuts=2, size="32x40", steps=4, lr=5.0, device="cpu").resolved()
    run = Latents(options, Guide(tiny_clip), "a", small_vq)
    for _ in run:
        pass
    table = small_vq.quantize.embedding.weight
    low, high = table.amin(0).view(1, -1, 1, 1), table.amax(0).view(1, -1, 1, 1)
    assert (run.codes >= low).all() and (run.codes <= high).all()
    nearest = quantized(run.codes.detach(), table)
    assert torch.allclose(nearest, small_vq.quantize(nearest), atol=1e-6)
    assert run.picture().shape == (3, 40, 32)


@pytest.mark.parametrize("method", CUTS)
def test_cutouts(method: str) -> None:
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0)).requires_grad_(
        True
    )
    views = [
        augment.cutouts(image, 5, 16, method, 1.0, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert views[0].shape == (5, 3, 16, 16)
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2]) is (method == "plain")
    (gradient,) = torch.autograd.grad(views[0].sum(), image)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_moved_cutouts_keep_the_colours() -> None:
    flat = torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1).expand(1, 3, 48, 48)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        augment.cutouts(flat, 200, 16, method, 1.0, generator)[:, :, 4:12, 4:12].mean((2, 3))
        for method in ("moved", "latest")
    )
    shift = [
        (seen / seen[:, :1] - torch.tensor([1, 5 / 9, 1 / 9])).abs().amax(1)
        for seen in (ours, theirs)
    ]
    lit = ours[:, 0] > 0.3  # a view can miss the picture, and is black there
    assert lit.float().mean() > 0.8 and shift[0][lit].max() < 0.1 < shift[1].quantile(0.75)


def test_warps() -> None:
    image = torch.rand(2, 3, 9, 12)
    frame = torch.tensor([[0.0, 0.0], [11, 0], [11, 8], [0, 8]]).expand(2, 4, 2)
    assert torch.allclose(augment.perspective(image, frame), image, atol=1e-5)
    inward = torch.tensor([[3.0, 2.0], [8, 2], [8, 6], [3, 6]]).expand(2, 4, 2)
    for fill in (0.0, 1.0):
        corner = augment.perspective(image, inward, fill)[..., 0, 0]
        assert torch.allclose(corner, torch.tensor(fill))
    horizon = torch.tensor([[[8.0, 3.0], [27.0, 14.0], [36.0, 31.0], [7.0, 26.0]]])
    seen = augment.perspective(torch.rand(1, 3, 40, 40), horizon, 1.0)  # passes through a pixel
    assert ((seen >= 0) & (seen <= 1)).all()
    still = augment.random_affine(image, torch.Generator(), 0, 0, 0)
    assert torch.allclose(still, image, atol=1e-5)


def test_drawing_is_its_svg_and_leaves_the_model_alone(tiny_clip: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny_clip.state_dict().items()}
    flags = [parameter.requires_grad for parameter in tiny_clip.parameters()]
    tiny_clip.train()
    works = [
        clipdraw("a fox", model=tiny_clip, seed=seed, frames=3, **QUICK)[0] for seed in (1, 1, 2)
    ]
    assert tiny_clip.training
    assert flags == [parameter.requires_grad for parameter in tiny_clip.parameters()]
    assert all(torch.equal(before[name], value) for name, value in tiny_clip.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_clip.parameters())
    assert torch.equal(works[0].image, works[1].image)
    assert not torch.equal(works[0].image, works[2].image)
    assert len(works[0].frames) == 3 and not torch.equal(works[0].frames[0], works[0].frames[2])
    paths = [work.save(tmp_path / f"{index}.png") for index, work in enumerate(works[:2])]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    width, height, strokes = strokes_from_svg(works[0].save(tmp_path / "fox.svg"))
    points, widths, colors = zip(*strokes)
    again = render_strokes(points, torch.stack(widths), torch.stack(colors), width, height)
    white = again[..., :3] * again[..., 3:] + 1 - again[..., 3:]
    assert (white.permute(2, 0, 1) - works[0].image).abs().max() < 0.02


def test_loss_falls_on_the_bundled_pair(bundled_pair: dict[str, Any]) -> None:
    quick = {**QUICK, "steps": 25, "preset": "predict"}
    (work,) = clipdraw("a lemon", model=bundled_pair["clipag-mini"], **quick)
    assert min(work.losses[-3:]) < work.losses[0] - 0.05
    (work,) = vqgan_clip("a lemon", model=bundled_pair["clipag-mini"], preset="demo", steps=12)
    assert min(work.losses[-3:]) < work.losses[0]
    assert work.image.shape == (3, 64, 64)


def test_the_result_is_rendered_at_the_size_asked_for(tiny_clip: Any) -> None:
    small, large = (
        clipdraw("a fox", model=tiny_clip, **{**QUICK, "size": size})[0] for size in (0, 256)
    )
    assert large.image.shape == (3, 256, 256) and small.image.shape == (3, 64, 64)
    shrunk = F.avg_pool2d(large.image[None], 4)[0]
    assert (shrunk - small.image).abs().mean() < 0.01  # the same strokes
    assert large.svg == small.svg and 'viewBox="0 0 64 64"' in str(large.svg)
    assert ClipDraw().size == 448


def test_weights_of_parts(tiny_clip: Any) -> None:
    def loss(prompt: str, **changes: Any) -> float:
        options = ClipDraw(prompts=[prompt], augment=False, **QUICK, **changes).resolved()
        return float(Drawing(options, Guide(tiny_clip), prompt).loss(0).detach())

    fox, fog = loss("a fox"), loss("fog")
    assert loss("a fox | fog:-0.5") == pytest.approx(fox - 0.5 * fog, abs=1e-5)
    negative = loss("a fox", negatives=["fog"], negative_weight=0.5)
    assert negative == pytest.approx(fox - 0.5 * fog, abs=1e-5)


@pytest.mark.parametrize("size", ["33x47", "8x100"])
@pytest.mark.parametrize("init", ["codes", "noise"])
def test_any_size_is_the_size_of_the_picture(
    tiny_clip: Any, small_vq: VQModel, size: str, init: str
) -> None:
    settings: dict[str, Any] = {"size": size, "init": init, "steps": 2, "cuts": 2}
    (work,) = vqgan_clip("a fox", model=tiny_clip, autoencoder=small_vq, **settings)
    width, height = map(int, size.split("x"))
    assert work.image.shape == (3, height, width) and work.image.std() > 0
