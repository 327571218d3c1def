"""The loop: equal to the published one, reproducible at any size, and honest about failures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_tiny
from synthesis_helpers import PROMPT, QUICK
from torch.nn import functional as F
from transcription import notebook_loop

from clipag_plug.augment import Views
from clipag_plug.options.generate import Generate
from clipag_plug.paint import Guide, NotFiniteError, Synthesizer, synthesize
from clipag_plug.paint.canvases import threshold


def test_notebook_preset_equals_the_published_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny(image_size=144, patch_size=36)
    tape: list[torch.Tensor] = []
    draw = Views.draw

    def record(self: Views, *arguments: Any) -> torch.Tensor:
        tape.append(draw(self, *arguments))
        return tape[-1]

    monkeypatch.setattr(Views, "draw", record)
    options = Generate(
        prompts=[PROMPT], preset="notebook", steps=20, init="noise", views=4, patches=4
    )
    run = Synthesizer(options, model)
    start = run.canvas.start.clone()
    for _ in run:
        pass
    result = run.results()[0]
    with torch.no_grad():
        text = F.normalize(
            model.encode_text(model.tokenize([PROMPT])).mean(0, keepdim=True), dim=-1
        )
    losses, best = notebook_loop(
        model, text, start, lambda step: (tape[2 * step][0], tape[2 * step + 1][0]), 20
    )
    assert losses[0] != pytest.approx(losses[-1], abs=1e-3)
    assert result.losses == pytest.approx(losses, abs=1e-5)
    assert torch.allclose(result.image, best[0], atol=1e-3)


def test_notebook_start_has_its_quirks(tiny_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    features = Guide.features

    def watch(self: Guide, views: torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
        seen.setdefault("normalize", normalize)
        seen["count"] = seen.get("count", 0) + len(views)
        return features(self, views, normalize=normalize)

    monkeypatch.setattr(Guide, "features", watch)
    draw_two = Generate(prompts=[PROMPT], steps=1, views=1, patches=1)
    Synthesizer(draw_two.replace(preset="notebook"), tiny_clip)
    assert not seen["normalize"] and seen["count"] > 900
    seen.clear()
    Synthesizer(draw_two.replace(preset="paper", candidates=1), tiny_clip)
    assert seen["normalize"]


def test_gmm_start_is_the_best_candidate(tiny_clip: Any) -> None:
    from clipag_plug.paint.starts import score
    from clipag_plug.priors import Mixture

    run = Synthesizer(
        Generate(prompts=[PROMPT, "a fox"], init="gmm", candidates=1, steps=1), tiny_clip
    )
    mixture = Mixture.load()
    draws = mixture.sample(torch.arange(len(mixture.classes)), torch.Generator().manual_seed(0))
    guide = run.guides[0]
    for picture, prompt in enumerate((PROMPT, "a fox")):
        best = draws[(score(guide, draws) @ guide.texts([prompt])[0]).argmax()]
        wanted = F.interpolate(best[None], size=(64, 64), mode="bilinear")[0]
        assert torch.allclose(run.canvas.start[picture], wanted, atol=1e-6)


def test_pictures_of_a_batch_are_independent(tiny_clip: Any) -> None:
    both = synthesize(["a fox", "a cat"], model=tiny_clip, variations=2, seed=3, **QUICK)
    assert [(result.prompt, result.seed) for result in both] == [
        ("a fox", 3), ("a fox", 4), ("a cat", 3), ("a cat", 4),
    ]  # fmt: skip
    alone = synthesize("a cat", model=tiny_clip, seed=4, **QUICK)
    assert torch.allclose(both[3].image, alone.image, atol=1e-4)
    assert not torch.equal(both[2].image, both[3].image) and not torch.equal(
        both[1].image, both[3].image
    )


def test_same_seed_same_picture(tiny_clip: Any) -> None:
    again = [synthesize(PROMPT, model=tiny_clip, seed=7, **QUICK).image for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_of_drafts_the_closest_is_kept(tiny_clip: Any, keep: str) -> None:
    wanted: dict[str, Any] = {"model": tiny_clip, "variations": 2, "seed": 5, "keep": keep, **QUICK}
    plain = synthesize([PROMPT, "a fox"], **wanted)
    options = Generate(prompts=[PROMPT, "a fox"], drafts=3).replace(
        **{name: value for name, value in wanted.items() if name != "model"}
    )
    run = Synthesizer(options, tiny_clip)
    last = list(run)[-1].losses
    rows = (run.best_loss if keep == "best" else last).view(4, 3)
    assert torch.equal(run.leading(), run.canvas.pictures()[int(rows[0].argmin())])
    drawn = run.pictures().view(4, 3, *run.pictures().shape[1:])
    assert len({round(float(loss), 6) for loss in rows.flatten()}) == 12, "every draft is its own"
    for number, (one, result) in enumerate(zip(plain, run.results())):
        assert (result.prompt, result.seed) == (one.prompt, one.seed)
        assert torch.allclose(drawn[number, 0], one.image, atol=1e-4), (
            "the first is what one gets without"
        )
        assert result.loss == float(rows[number].min()) <= one.loss + 1e-5
        kept = int(rows[number].argmin())
        assert torch.equal(result.image, drawn[number, kept])
        assert (result.recipe["index"], result.recipe["kept_draft"]) == (number, kept)


@pytest.mark.parametrize("preset", ["fast", "paper", "notebook", "natural", "sharp", "soft"])
def test_every_preset_lowers_the_loss(tiny_clip: Any, preset: str) -> None:
    options = Generate(prompts=[PROMPT], preset=preset).resolved()
    small = {"views": min(options.views or 0, 3), "patches": min(options.patches or 0, 2)}
    result = synthesize(PROMPT, model=tiny_clip, preset=preset, init="noise", steps=12, **small)
    assert min(result.losses[6:]) < result.losses[0]
    assert ((result.image >= 0) & (result.image <= 1)).all()


def test_bare_picture_is_plain_gradient_ascent(tiny_clip: Any) -> None:
    result = synthesize(PROMPT, model=tiny_clip, views="none", init="noise", steps=6, seed=1)
    assert result.losses == sorted(result.losses, reverse=True)
    assert result.recipe["options"]["patches"] == 0 and result.recipe["options"]["grid"] == 0


def test_best_of_the_run_is_kept(tiny_clip: Any) -> None:
    settings: dict[str, Any] = {
        "steps": 8,
        "views": 0,
        "lr": 0.5,
        "schedule": "constant",
        "init": "noise",
    }
    best = synthesize(PROMPT, model=tiny_clip, **settings)
    last = synthesize(PROMPT, model=tiny_clip, keep="last", **settings)
    assert best.loss == min(best.losses) and best.losses == last.losses
    guide = Guide(tiny_clip)
    with torch.no_grad():
        shown = guide.features(best.image[None]) @ guide.texts([PROMPT])[0]
    assert 1 - float(shown) == pytest.approx(best.loss, abs=1e-4)


@pytest.mark.parametrize("size", ["96x64", "40x72", "48"])
def test_any_size_and_aspect(tiny_clip: Any, size: str) -> None:
    width, _, height = size.partition("x")
    result = synthesize(PROMPT, model=tiny_clip, size=size, grow=2, patches=1, **QUICK)
    assert result.image.shape == (3, int(height or width), int(width))
    assert torch.isfinite(result.image).all()


def test_the_grid_follows_what_the_model_sees(tiny_clip: Any) -> None:
    prompts = {"prompts": [PROMPT], "steps": 1, "init": "gray"}
    assert Synthesizer(Generate(**prompts, size="256"), tiny_clip).canvas.shape == (128, 128)
    assert Synthesizer(Generate(**prompts, size="256x100"), tiny_clip).canvas.shape == (100, 256)
    assert Synthesizer(Generate(**prompts, size="256", grid=0), tiny_clip).canvas.shape == (
        256,
        256,
    )


def test_growing_goes_on_from_the_same_picture(tiny_clip: Any) -> None:
    run = Synthesizer(
        Generate(prompts=[PROMPT], steps=6, views=2, init="noise", grow=3, grid=64), tiny_clip
    )
    assert run.grids == [16, 32, 64]
    shapes = []
    for _ in run:
        shapes.append(run.canvas.values.shape[-1])
    assert shapes == [16, 16, 32, 32, 64, 64]
    assert max(run.losses[2] - run.losses[1]).abs() < 0.2


def test_features_that_are_not_finite_stop_the_run(tiny_clip: Any) -> None:
    calls = []

    class Breaks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.tokenize = tiny_clip.visual, tiny_clip.tokenize
            self.encode_text = tiny_clip.encode_text

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return tiny_clip.encode_image(images) * (float("nan") if len(calls) > 3 else 1)

    with pytest.raises(NotFiniteError, match="step 3.*not finite") as caught:
        synthesize(PROMPT, model=Guide(Breaks(), name="broken"), steps=9, views=1, init="noise")
    (result,) = caught.value.results
    assert result.steps == 3 and torch.isfinite(result.image).all()
    good = synthesize(PROMPT, model=tiny_clip, steps=9, views=1, init="noise")
    assert result.losses == pytest.approx(good.losses[:3], abs=1e-5)
    assert result.recipe["stopped_after"] == 3


def test_the_model_is_left_as_it_was(tiny_clip: Any) -> None:
    tiny_clip.train()
    tiny_clip.logit_scale.requires_grad_(False)
    before = [(p.requires_grad, p.clone()) for p in tiny_clip.parameters()]
    synthesize(PROMPT, model=tiny_clip, **QUICK)
    assert tiny_clip.training and tiny_clip.visual.training
    for (wanted, value), parameter in zip(before, tiny_clip.parameters()):
        assert (
            parameter.requires_grad == wanted
            and parameter.grad is None
            and torch.equal(parameter, value)
        )


def test_other_models(tiny_config: dict[str, Any]) -> None:
    import open_clip

    net = open_clip.CLIP(**tiny_config).eval()
    net.visual.image_mean, net.visual.image_std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    result = synthesize(PROMPT, model=net, **QUICK)
    assert result.image.shape == (3, 64, 64) and result.loss < result.losses[0] + 1e-6
    run = Synthesizer(Generate(prompts=[PROMPT], init="gray"), net)
    assert run.guides[0].mean.flatten().tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="no CLIP"):
        synthesize(PROMPT, model=torch.nn.Linear(2, 2))


def test_threshold_equals_its_definition() -> None:
    pixels = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) + 0.5
    for picture, found in zip(pixels, threshold(pixels, 0.95)):
        signed = 2 * picture - 1
        limit = torch.quantile(signed.abs(), 0.95).clamp(min=1)
        assert torch.allclose(found, (signed.clamp(-limit, limit) / limit + 1) / 2, atol=1e-6)


def test_total_variation_smooths(tiny_clip: Any) -> None:
    rough = synthesize(PROMPT, model=tiny_clip, steps=10, views=2, init="noise", grid=0).image
    smooth = synthesize(
        PROMPT, model=tiny_clip, steps=10, views=2, init="noise", grid=0, tv=20.0
    ).image
    assert smooth.diff(dim=-1).abs().mean() < rough.diff(dim=-1).abs().mean()
