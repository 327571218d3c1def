"""Canvases, update rules and presets: each equals an independent transcription of its published formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make_tiny
from torch import Tensor
from torch.nn import functional as F

from clipag_plug.augment import Views
from clipag_plug.images import write_image
from clipag_plug.options.generate import Generate
from clipag_plug.paint import Synthesizer, synthesize
from clipag_plug.paint.canvases import CANVASES, Canvas, Pyramid, threshold
from clipag_plug.paint.rules import Stepper, frequencies, weighted

FREE = [name for name in CANVASES if name != "pixels"]
COLOUR = torch.tensor([[0.5628, 0.1948, 0.0433], [0.5845, 0.0, -0.1082], [0.5845, -0.1948, 0.0649]])
PROMPT = "a goldfish"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def to_rgb(field: Tensor) -> Tensor:
    return torch.sigmoid((COLOUR @ field.flatten(2)).view_as(field))


def lucid(canvas: Canvas, values: Tensor) -> Tensor:
    h, w = canvas.shape
    f = torch.tensor([[math.hypot(y if y <= h / 2 else h - y, 0) / h for y in range(h)]]).T
    f = torch.sqrt(f**2 + (torch.arange(w // 2 + 1) / w) ** 2).clamp(min=1 / max(h, w))
    spectrum = torch.complex(values[..., ::2], values[..., 1::2])
    return to_rgb(torch.fft.irfft2(spectrum * (h * w) ** 0.5 / f, s=(h, w)) / 4)


def maco(canvas: Canvas, values: Tensor) -> Tensor:
    (h, w), f = canvas.shape, frequencies(*canvas.shape)
    phase = (values - values.mean()) / values.std()
    magnitude = f**-1.3 * torch.exp(-((f / 0.26) ** 2))
    image = torch.fft.irfft2(
        torch.complex(magnitude * phase.cos(), magnitude * phase.sin()), s=(h, w)
    )
    return to_rgb((image - image.mean()) / image.std())


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (15, 9)])
@pytest.mark.parametrize(("name", "formula"), [("fourier", lucid), ("phase", maco)])
def test_rendering_is_the_published_formula(
    name: str, formula: Any, shape: tuple[int, int]
) -> None:
    canvas = CANVASES[name](torch.full((1, 3, *shape), 0.5), decorrelate=True)
    canvas.draw([torch.Generator().manual_seed(1)])
    deviation = {"fourier": 0.01, "phase": 1.0}[name]
    assert float(canvas.values.std()) == pytest.approx(deviation, rel=0.15)
    found = canvas.pictures()
    assert found.shape == (1, 3, *shape) and float(found.std()) > 1e-3
    assert torch.allclose(found, formula(canvas, canvas.values), atol=1e-4)


def test_pyramid_steps_are_those_of_pictures_of_every_size() -> None:
    """Plain descent on every size at once against ours with one tensor; measured error of a step: 5 to 17 %."""
    for shape, error in (((48, 48), 0.06), ((64, 40), 0.18)):
        start = 0.2 + 0.6 * random(1, 3, *shape)
        canvas, short = Pyramid(start), min(shape)
        sizes = [[max(round(side * r / short), 1) for side in shape] for r in range(1, short + 1)]
        levels = [torch.zeros(1, 3, *size, requires_grad=True) for size in sizes]
        target = random(1, 3, *shape, seed=1)
        s = torch.atanh(2 * start - 1)
        for level in levels:
            s = s + F.interpolate(level, size=shape, mode="bicubic")
        literal = 0.5 + 0.5 * torch.tanh(s)
        assert torch.allclose(canvas.pictures(), literal, atol=1e-4)
        for level, slope in zip(levels, torch.autograd.grad((literal * target).sum(), levels)):
            level.data -= 1e-4 * slope
        moved = torch.atanh(2 * start - 1) + sum(
            F.interpolate(level.detach(), size=shape, mode="bicubic") for level in levels
        )
        values = canvas.values.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad((canvas.render(values) * target).sum(), values)
        field = canvas.to_field(values.detach() - 1e-4 * slope) / 2
        wanted, ours = moved - torch.atanh(2 * start - 1), field - torch.atanh(2 * start - 1)
        assert float((ours - wanted).norm() / wanted.norm()) < error


def test_accent_renders_the_picture_and_weighs_its_gradient() -> None:
    canvas = CANVASES["accent"](0.1 + 0.8 * random(2, 3, 12, 18))
    values = canvas.values.clone().requires_grad_(True)
    field = torch.logit(canvas.start)
    assert torch.allclose(canvas.to_field(values), field, atol=1e-4)
    direction = random(2, 3, 12, 18, seed=2) - 0.5
    (slope,) = torch.autograd.grad((canvas.to_field(values) * direction).sum(), values)
    plain = values.detach().clone().requires_grad_(True)
    image = torch.fft.irfft2(
        torch.complex(plain[..., ::2], plain[..., 1::2]), s=(12, 18), norm="ortho"
    )
    (unweighted,) = torch.autograd.grad((image * direction).sum(), plain)
    weights = (12 * 18) ** 0.5 / 4 / frequencies(12, 18).repeat_interleave(2, 1) ** 1.5
    assert torch.allclose(slope, weights * unweighted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", CANVASES)
def test_gradients_start_growth_mask_and_margin(name: str) -> None:
    start = 0.1 + 0.8 * random(2, 3, 24, 20)
    mask = torch.zeros(1, 24, 20)
    mask[:, :9] = 1
    canvas = CANVASES[name](start, grid=12, mask=mask, margin=4, decorrelate=name != "pixels")
    assert canvas.size == (32, 28) and canvas.shape == (14, 12)
    if name != "phase":  # which keeps the phases of a picture alone
        assert torch.allclose(canvas.render(canvas.values), canvas.origin, atol=1e-3)
    before = canvas.render(canvas.values)
    best, values = canvas.grow(20, canvas.values + 0.0, canvas.values)
    assert (
        torch.equal(best, values)
        and canvas.shape == (23, 20)
        and canvas.origin.shape[2:] == (23, 20)
    )
    if name != "phase":
        wanted = F.interpolate(before, size=(23, 20), mode="bicubic").clamp(0, 1)
        assert torch.allclose(canvas.render(values), wanted, atol=1e-3)
    canvas.values = canvas.settle(values + 0.3 * random(*values.shape))
    pictures = canvas.pictures()
    assert pictures.shape == start.shape and torch.equal(pictures[..., 9:, :], start[..., 9:, :])
    assert not torch.equal(pictures[..., :9, :], start[..., :9, :])
    assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    if name != "accent":  # whose gradient is not that of its way there
        small = CANVASES[name](start[:1, :, :6, :5].double(), decorrelate=False)
        leaf = small.values.clone().requires_grad_(True)
        assert torch.autograd.gradcheck(small.render, leaf, fast_mode=True, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", FREE)
def test_a_canvas_paints_from_noise_and_from_a_picture(
    tiny_clip: Any, tmp_path: Any, name: str
) -> None:
    wanted: dict[str, Any] = {
        "model": tiny_clip,
        "canvas": name,
        "views": 2,
        "steps": 8,
        "size": "72x48",
    }
    first = synthesize(PROMPT, init="own", **wanted)
    again = synthesize(PROMPT, init="own", memory=1, **wanted)
    assert first.image.shape == (3, 48, 72) and min(first.losses[3:]) < first.losses[0]
    assert torch.equal(first.image, synthesize(PROMPT, init="own", **wanted).image)
    assert torch.allclose(first.image, again.image, atol=2e-3), "in passes of one view"
    low = synthesize(PROMPT, init="own", precision="bf16", **{**wanted, "steps": 2})
    assert low.losses == pytest.approx(first.losses[:2], abs=0.02)
    write_image(tmp_path / "start.png", 0.2 + 0.6 * random(3, 48, 72))
    edited = synthesize(PROMPT, image=str(tmp_path / "start.png"), **wanted)
    assert min(edited.losses) < edited.losses[0]


def steps(rule: str, gradients: list[Tensor], lr: float = 0.01, **settings: Any) -> Tensor:
    """Where the rule leads from 0.5."""
    stepper = Stepper(rule, lr, "constant", len(gradients), **settings)
    values = torch.full_like(gradients[0], 0.5)
    for index, gradient in enumerate(gradients):
        values = stepper(values, gradient, index)
    return values


@pytest.mark.parametrize(
    ("rule", "optimizer", "settings"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
        ("nadam", torch.optim.NAdam, {}),
        ("sgd", torch.optim.SGD, {}),
        ("adam", torch.optim.Adam, {"clip": 0.5}),
    ],
)
def test_rules_equal_torch(rule: str, optimizer: Any, settings: dict[str, float]) -> None:
    gradients = [random(1, 3, 5, 4, seed=seed) - 0.4 for seed in range(6)]
    leaf = torch.full((1, 3, 5, 4), 0.5, requires_grad=True)
    reference = optimizer([leaf], lr=0.01)
    for gradient in gradients:
        leaf.grad = gradient.clone()
        if settings:
            torch.nn.utils.clip_grad_norm_([leaf], settings["clip"])
        reference.step()
    assert torch.allclose(steps(rule, gradients, **settings), leaf.detach(), atol=1e-6)


def test_sign_gradient_and_spectral_rules() -> None:
    gradient = random(2, 3, 8, 8) - 0.5
    assert torch.allclose(steps("sign", [gradient]), 0.5 - 0.01 * gradient.sign())
    way = steps("gradient", [gradient * torch.tensor([1.0, 1e-6]).view(2, 1, 1, 1)]) - 0.5
    assert torch.allclose(way.square().mean((1, 2, 3)).sqrt(), torch.full((2,), 0.01), rtol=1e-3)
    wave = torch.cos(2 * math.pi * 3 * torch.arange(32) / 32).expand(1, 3, 32, 32).contiguous()
    way = steps("spectral", [wave] * 5) - 0.5
    assert float(way.square().mean().sqrt()) == pytest.approx(5 * 0.01, rel=1e-3)
    assert float((way * wave).sum()) < 0, "downhill"
    noisy = [wave + 0.5 * (random(1, 3, 32, 32, seed=seed) - 0.5) for seed in range(8)]
    both = steps("spectral", [torch.cat([each, 1e-6 * each.flip(-1)]) for each in noisy])
    assert torch.allclose(both[:1], steps("spectral", noisy), atol=1e-6), "each on its own"
    flat = [
        float((steps("spectral", noisy, tilt=tilt)).diff(dim=-1).norm()) for tilt in (0, 0.5, 2)
    ]
    assert flat[0] > flat[1] > flat[2], "more tilt, less grain"


@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.0, 2.0])
def test_a_wave_is_weighted_by_its_frequency(tilt: float) -> None:
    for cycles in (1, 4, 15):
        wave = torch.cos(2 * math.pi * cycles * torch.arange(32) / 32).expand(1, 3, 32, 32)
        wanted = wave * (cycles / 32) ** -tilt
        assert torch.allclose(weighted(wave, tilt), wanted, atol=1e-3)
        assert torch.allclose(weighted(wave.mT, tilt), wanted.mT, atol=1e-3)
    flat = torch.full((1, 3, 24, 32), 0.25)
    assert torch.allclose(weighted(flat, tilt), flat * 32**tilt, atol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "course"),
    [
        ("constant", lambda t: 1.0),
        ("cosine", lambda t: (1 + math.cos(math.pi * t)) / 2),
        ("quarter", lambda t: math.cos(0.45 * math.pi * t)),
    ],
)
def test_schedules(schedule: str, course: Any) -> None:
    stepper = Stepper("sgd", 0.3, schedule, 10)
    rates = [stepper.rate(step) for step in range(10)]
    assert rates == pytest.approx([0.3 * course(step / 10) for step in range(10)])


@pytest.mark.parametrize("quantile", [0.5, 0.95, 1.0])
def test_threshold_equals_its_definition(quantile: float) -> None:
    pixels = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) + 0.5
    for picture, found in zip(pixels, threshold(pixels, quantile)):
        signed = 2 * picture - 1
        limit = torch.quantile(signed.abs(), quantile).clamp(min=1)
        assert torch.allclose(found, (signed.clamp(-limit, limit) / limit + 1) / 2, atol=1e-6)
    assert torch.equal(Canvas(pixels).settle(pixels), pixels.clamp(0, 1))
    assert torch.equal(
        Canvas(pixels, quantile=quantile).settle(pixels), threshold(pixels, quantile)
    )


def published(preset: str, run: Synthesizer, tape: list[Tensor], count: int) -> list[float]:
    """A plain loop of the published method over three steps: its losses."""
    guide, options = run.guides[0], run.options
    with torch.no_grad():
        text = guide.texts([PROMPT])[0]
    state: Any = run.canvas.values.clone()
    if preset == "das":
        levels = [torch.zeros(1, 3, r, r) for r in range(1, 49)]
        leaves, optimizer = levels, torch.optim.SGD(levels, lr=0.2)
    else:
        leaves = [state]
        optimizer = {
            "inversion": lambda: torch.optim.Adam(leaves, lr=0.1),
            "lucid": lambda: torch.optim.Adam(leaves, lr=0.05),
            "maco": lambda: torch.optim.NAdam(leaves, lr=1.0),
        }[preset]()
    for leaf in leaves:
        leaf.requires_grad_(True)
    losses = []
    for step in range(count):
        rows = tape[step][0]
        if preset == "das":
            s = sum(F.interpolate(level, size=(48, 48), mode="bicubic") for level in levels)
            x = 0.5 + 0.5 * torch.tanh(s)
        else:
            x = {"inversion": lambda: state, "lucid": lambda: lucid(run.canvas, state)}.get(
                preset, lambda: maco(run.canvas, state)
            )()
        views = torch.cat([VIEWS[preset](x, row, step / (count - 1)) for row in rows])
        cosines = guide.features(F.interpolate(views, size=(64, 64), mode="bilinear")) @ text
        if preset == "inversion":
            moves = [x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]]
            moves += [x[..., 1:, 1:] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., 1:, :-1]]
            tv = sum(move.square().sum((2, 3)).sqrt().mean() for move in moves)
            loss = (2 - 2 * cosines).sqrt().mean() + 0.005 * tv
        else:
            loss = (1 - cosines).mean()
        optimizer.zero_grad()
        loss.backward()
        if preset == "inversion":
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        if preset == "inversion":
            state.data.clamp_(0, 1)
        losses.append(float(loss.detach()))
    assert options.preset == preset
    return losses


def das_view(x: Tensor, row: Tensor, progress: float) -> Tensor:
    y, left = (min(int(number * 17), 16) for number in row[:2])
    x = F.interpolate(x[..., y : y + 32, left : left + 32], size=(64, 64), mode="bilinear")
    noise = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(int(row[2] * 2**24)))
    return (x + 0.2 * noise).clamp(0, 1)


def inversion_view(x: Tensor, row: Tensor, progress: float) -> Tensor:
    x = F.interpolate(x, size=(64, 64), mode="bicubic")
    if row[4] >= 0.5:
        return x
    angle, scale = math.radians(60 * row[0] - 30), 0.7 + 0.5 * row[3]
    ys, xs = torch.meshgrid(*[torch.arange(64) + 0.5 - 32] * 2, indexing="ij")
    across = (math.cos(angle) * xs + math.sin(angle) * ys) / scale / 32 - 0.2 * (2 * row[1] - 1)
    down = (-math.sin(angle) * xs + math.cos(angle) * ys) / scale / 32 - 0.2 * (2 * row[2] - 1)
    grid = torch.stack([across, down], -1)[None]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def lucid_view(x: Tensor, row: Tensor, progress: float) -> Tensor:
    x = F.pad(x, (12, 12, 12, 12), value=0.5)
    side = x.shape[-1] - 8
    y, left = (min(int(number * 9), 8) for number in row[:2])
    x = x[..., y : y + side, left : left + side]
    angle, scale = math.radians(20 * row[2] - 10), 0.9 + 0.2 * row[5]
    turn = torch.tensor(
        [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0]]
    )
    grid = F.affine_grid(turn[None] / scale, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    y, left = (min(int(number * 5), 4) for number in row[7:9])
    x = x[..., y : y + side - 4, left : left + side - 4]
    return F.interpolate(x, size=(64, 64), mode="bilinear", antialias=True)


def maco_view(x: Tensor, row: Tensor, progress: float) -> Tensor:
    normal = torch.special.ndtri(row[:3])
    share = float((0.5 - 0.45 * progress + 0.05 * normal[0]).clamp(0.05, 1))
    box = [
        min(max(0.5 + 0.15 * float(n) - share / 2, 0), 1 - share) * 2 - 1 + share
        for n in normal[1:]
    ]
    theta = torch.tensor([[[share, 0, box[1]], [0, share, box[0]]]])
    grid = F.affine_grid(theta, [1, 3, 64, 64], align_corners=False)
    view = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    gaussian = torch.randn(
        (3, 64, 64), generator=torch.Generator().manual_seed(int(row[3] * 2**24))
    )
    even = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(int(row[4] * 2**24)))
    return view + 0.08 * gaussian - 0.04 + 0.08 * even


VIEWS = {"das": das_view, "inversion": inversion_view, "lucid": lucid_view, "maco": maco_view}


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("das", {"policy": "crop 32, uniform-noise 0 0.2, clamp", "views": 6, "size": "32"}),
        ("inversion", {"grow": 1, "grid": 64}),
        ("lucid", {}),
        ("maco", {"views": 8}),
    ],
)
def test_presets_equal_the_published_loops(
    monkeypatch: pytest.MonkeyPatch, preset: str, changes: dict[str, Any]
) -> None:
    tape: list[Tensor] = []
    draw = Views.draw

    def record(self: Views, *arguments: Any) -> Tensor:
        tape.append(draw(self, *arguments))
        return tape[-1]

    monkeypatch.setattr(Views, "draw", record)
    options = Generate(prompts=[PROMPT], preset=preset, steps=3, **changes)
    run = Synthesizer(options, make_tiny())
    reference = Synthesizer(options, make_tiny())
    found = [float(step.losses) for step in run]
    wanted = published(preset, reference, tape, 3)
    assert abs(found[0] - found[2]) > 1e-3
    assert found == pytest.approx(wanted, abs=2e-3 if preset in ("das", "maco") else 1e-4)


def test_budget_sets_the_steps_and_passes_are_counted(tiny_clip: Any) -> None:
    options = Generate(prompts=[PROMPT], budget=1000, views=4, patches=1, ensemble=["other"])
    assert options.resolved().steps == 100 and options.resolved().passes() == 1000
    assert options.resolved().resolved() == options.resolved()
    assert Generate(prompts=["a"], preset="das").resolved().passes() == 3200
    assert Generate(prompts=["a"], preset="inversion").resolved().passes() == 44200
    assert Generate(prompts=["a"], preset="maco").resolved().passes() == 8192
    result = synthesize(PROMPT, model=tiny_clip, budget=6, views=2, init="noise")
    assert result.recipe["passes"] == 6 and result.steps == 3


def test_inversion_grows_where_it_was_published(tiny_clip: Any) -> None:
    run = Synthesizer(Generate(prompts=["a"], preset="inversion", size="224"), tiny_clip)
    assert run.grids == [64, 128, 224]
    assert [index for index in range(1, 3400) if run.stage(index) != run.stage(index - 1)] == [
        900,
        1800,
    ]
