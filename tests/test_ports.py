"""CLIPDraw and VQGAN+CLIP: the published recipes and losses, honest results, nothing left changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plug import cli
from clipag_plug.options.clipdraw import ClipDraw
from clipag_plug.options.vqgan import CUTS, Vqgan
from clipag_plug.paint import Guide
from clipag_plug.pipelines import clipdraw, cuts, vqgan_clip, warps
from clipag_plug.pipelines.autoencoder import Shape, VQModel
from clipag_plug.pipelines.drawing import Drawing, course
from clipag_plug.pipelines.latents import Latents, parts_of, quantized, spherical
from clipag_plug.strokes import render_strokes, strokes_from_svg

QUICK: dict[str, Any] = {"canvas": 64, "strokes": 12, "steps": 3, "device": "cpu"}
SMALL = Shape(
    ch=32,
    ch_mult=(1, 1),
    num_res_blocks=0,
    attn_resolutions=(),
    z_channels=8,
    embed_dim=4,
    n_embed=16,
)


@pytest.fixture
def small_vq() -> VQModel:
    """A random autoencoder, codes of 2x2 pixels, with a codebook wide enough to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQModel(SMALL)
        model.quantize.embedding.weight.data.normal_()
    return model.eval().requires_grad_(False)


def test_paper_presets_are_the_published_recipes() -> None:
    drawing = ClipDraw().resolved()
    published = {
        "strokes": 256,
        "segments": 3,
        "radius": 0.1,
        "canvas": 224,
        "max_width": 50,
        "steps": 1000,
        "views": 4,
    }
    published |= {
        "lr_points": 1.0,
        "lr_width": 0.1,
        "lr_color": 0.01,
        "distortion": 0.5,
        "augment": True,
    }
    published |= {
        "crop_low": 0.7,
        "crop_high": 0.9,
        "normalize": False,
        "negative_weight": 0.3,
        "negatives": [],
    }
    assert {name: getattr(drawing, name) for name in published} == published
    assert (
        ClipDraw(preset="predict").resolved()
        == ClipDraw(preset="predict", normalize=True).resolved()
    )
    assert [course(i, 1000) for i in (0, 499, 500, 749, 750, 999)] == [1, 1, 0.4, 0.4, 0.1, 0.1]
    picture = Vqgan().resolved()
    published = {
        "steps": 501,
        "optimizer": "adam",
        "lr": 0.1,
        "cuts": 32,
        "cut_method": "latest",
        "cut_power": 1.0,
    }
    published |= {"init": "codes", "init_weight": 0.0, "size": ""}
    assert {name: getattr(picture, name) for name in published} == published


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
    corners = warps.moved_corners(torch.rand(4, 8, generator=twin), 64, 64, 0.5).int().tolist()
    boxes = warps.crop_boxes(torch.rand(4, 4, generator=twin), 64, 64, 0.7, 0.9).int().tolist()
    frame = [[0, 0], [63, 0], [63, 63], [0, 63]]
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
    assert float(ours.detach()) == pytest.approx(float(loss.detach()), abs=1e-4)
    for path, twin_path in zip(run.points, points):
        assert torch.allclose(path.grad, twin_path.grad, atol=2e-4)  # type: ignore[arg-type]


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
    parts = parts_of("a goldfish | fog:-0.5 | a dog:2:0.95")
    run = Latents(options, Guide(tiny_clip), "a", parts, small_vq)
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
    batch = cuts.cutouts(shown, 3, 64, "latest", 1.0, twin)
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


def test_weighted_prompts() -> None:
    inf = -math.inf
    assert parts_of("a: b | c:.5|d:-1:-0.9") == [("a: b", 1, inf), ("c", 0.5, inf), ("d", -1, -0.9)]
    for wrong in ("", "a | ", ":2", "a:0", "a:0|b:0"):
        with pytest.raises(ValueError, match="prompt"):
            parts_of(wrong)


def test_codes_stay_in_the_codebook_and_the_picture_is_made_of_it(
    tiny_clip: Any, small_vq: VQModel
) -> None:
    options = Vqgan(prompts=["a"], cuts=2, size="32x40", steps=4, lr=5.0, device="cpu").resolved()
    run = Latents(options, Guide(tiny_clip), "a", parts_of("a"), small_vq)
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
        cuts.cutouts(image, 5, 16, method, 1.0, torch.Generator().manual_seed(seed))
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
        cuts.cutouts(flat, 200, 16, method, 1.0, generator)[:, :, 4:12, 4:12].mean((2, 3))
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
    frame = warps.moved_corners(torch.zeros(2, 8), 9, 12, 0.5)
    assert torch.allclose(warps.perspective(image, frame), image, atol=1e-5)
    inward = warps.moved_corners(torch.full((2, 8), 0.99), 9, 12, 0.5)
    for fill in (0.0, 1.0):
        assert torch.allclose(warps.perspective(image, inward, fill)[..., 0, 0], torch.tensor(fill))
    horizon = torch.tensor([[[8.0, 3.0], [27.0, 14.0], [36.0, 31.0], [7.0, 26.0]]])
    seen = warps.perspective(torch.rand(1, 3, 40, 40), horizon, 1.0)  # passes through a pixel
    assert ((seen >= 0) & (seen <= 1)).all()
    still = warps.random_affine(image, torch.Generator(), 0, 0, 0)
    assert torch.allclose(still, image, atol=1e-5)
    boxes = warps.crop_boxes(torch.rand(200, 4), 40, 30, 0.7, 0.9)
    assert (boxes >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= 40).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 30).all()


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


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clipdraw([]), "no prompt"),
        (lambda: clipdraw([" "]), "empty"),
        (lambda: clipdraw("a", stroke=3), "did you mean 'strokes'"),
        (lambda: clipdraw("a", crop_low=0.9, crop_high=0.5), "above"),
        (lambda: clipdraw("a", steps=0), "at least 1"),
        (lambda: clipdraw("a", model=nn.Linear(1, 1)), "CLIP"),
        (lambda: vqgan_clip([]), "no prompt"),
        (lambda: vqgan_clip("a", size="4x4"), "between 8"),
        (lambda: vqgan_clip("a", cut_method="all"), "latest"),
    ],
)
def test_bad_requests_say_what_to_do(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_comparison_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    out, svg, film = (tmp_path / name for name in ("d.png", "d.svg", "d.webp"))
    code = cli.main(
        [
            *("clipdraw", "a lemon", "--compare", "-p", "demo", "--steps", "2", "--strokes", "6"),
            *("-o", str(out), "--svg", str(svg), "--animation", str(film), "--frames", "2"),
        ]
    )
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert len(captured.out.split()) == 5 and Image.open(out).width > 2 * 112
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "d-clip-mini.svg",
        "d-clipag-mini.svg",
    }
    for wrong in (
        ["clipdraw", "a", "-o", str(tmp_path / "d.jpg")],
        ["clipdraw", "a", "-o", str(tmp_path / "none" / "d.png")],
        ["vqgan", "a", "-o", str(out), "--animation", str(out)],
        ["vqgan", "a", "--autoencoder", "no-such", "-o", str(tmp_path / "e.png")],
    ):
        assert cli.main(wrong) == 2
    assert not (tmp_path / "e.png").exists()
