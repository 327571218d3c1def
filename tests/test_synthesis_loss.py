"""The painter's loss: linear in its prompts, with autograd's gradient, in micro-batches and low precision too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from synthesis_helpers import PROMPT, QUICK
from torch.nn import functional as F

from clipag_plug.guide import Guide, frozen
from clipag_plug.options.generate import Generate
from clipag_plug.paint import Synthesizer, synthesize
from clipag_plug.paint.objective import Target, layer_readout, parse_prompt
from clipag_plug.vocabulary import bundled_vocabulary, sentence


@pytest.mark.parametrize("reject", [0.0, 0.5])
def test_micro_batches_give_the_same_gradient(tiny_clip: Any, reject: float) -> None:
    found = []
    for memory in (None, 1):
        options = Generate(
            prompts=[PROMPT, "a fox"],
            preset="notebook",
            init="noise",
            views=6,
            patches=5,
            reject=reject,
        )
        run = Synthesizer(options.replace(memory=memory), tiny_clip)
        run.objective.memory = None if memory is None else 3 * 400_000
        passes: list[int] = []
        encode = run.guides[0]._encode
        run.guides[0]._encode = lambda x, encode=encode, passes=passes: (
            passes.append(len(x)) or encode(x)
        )
        found.append((*run.objective(run.canvas, run.generators), passes))
    (total, first, gradient, whole), (total_m, first_m, gradient_m, parts) = found
    assert max(whole) == 12 and max(parts) < 6
    assert torch.allclose(total, total_m, atol=1e-5) and torch.allclose(first, first_m, atol=1e-5)
    assert (gradient - gradient_m).norm() <= 1e-5 * gradient.norm()


def test_gradient_equals_autograd_of_the_written_loss(tiny_clip: Any) -> None:
    run = Synthesizer(
        Generate(
            prompts=["a fox:2 | snow:-0.5"], steps=1, views=3, patches=2, init="noise", grid=0
        ),
        tiny_clip,
    )
    with frozen([tiny_clip]):
        _, _, gradient = run.objective(run.canvas, run.generators)
    again = Synthesizer(run.options, tiny_clip)
    leaf = again.canvas.values.requires_grad_(True)
    guide = again.guides[0]
    loss = torch.zeros(())
    for view_set in again.objective.sets:
        views = view_set.views(leaf, view_set.count, guide.side, again.generators)
        for text, weight in (("a fox", 2.0), ("snow", -0.5)):
            similarity = F.cosine_similarity(guide.features(views), guide.texts([text]))
            loss = loss + weight * (1 - similarity).mean()
    loss.backward()
    assert torch.allclose(gradient, leaf.grad, atol=1e-7)


def test_contrast_is_cross_entropy_among_the_prompt_and_the_other_words(tiny_clip: Any) -> None:
    guide = Guide(tiny_clip)
    names = bundled_vocabulary().class_names
    prompts = ["a goldfish", "a red thing"]
    target = Target.of(guide, [parse_prompt(prompt) for prompt in prompts], 20.0)
    with torch.no_grad():
        features = guide.features(torch.rand(2, 3, 3, guide.side, guide.side).flatten(0, 1))
    features = features.view(2, 3, -1)
    others = guide.texts([sentence(name, "a {}") for name in names if name != "goldfish"])
    everything = guide.texts([sentence(name, "a {}") for name in names])
    for row, rivals in enumerate((others, everything)):
        words = torch.cat([guide.texts([prompts[row]]), rivals])
        wanted = F.cross_entropy(
            20 * features[row] @ words.T, torch.zeros(3).long(), reduction="none"
        )
        found = target.losses(features[row : row + 1], slice(row, row + 1))[0]
        assert torch.allclose(20 * found, wanted, atol=1e-5)
    doubled = Target.of(guide, [parse_prompt("a goldfish:2")], 20.0)
    once, twice = (each.losses(features[:1], slice(0, 1)) for each in (target, doubled))
    assert torch.allclose(2 * once, twice, atol=1e-5)


def test_what_a_prompt_speaks_of_is_no_rival(tiny_clip: Any) -> None:
    prompts = ["a painting of two dogs", "a lemon | a candle:-1"]
    target = Target.of(Guide(tiny_clip), [parse_prompt(prompt) for prompt in prompts], 30.0)
    vocabulary = bundled_vocabulary()
    dogs, lemon = (set(row.nonzero()[:, 0].tolist()) for row in target.own)
    assert dogs == set(vocabulary.groups["dog"]) and len(dogs) > 3
    assert lemon == {vocabulary.class_names.index("lemon")}


def test_contrast_is_for_the_models_it_was_measured_on(tiny_clip: Any) -> None:
    options = {"steps": 1, "views": 1, "init": "noise"}
    for model, preset, contrast in (
        (tiny_clip, "fast", 0.0),
        ("clipag-mini", "fast", 30.0),
        ("clipag-mini", "paper", 0.0),
    ):
        run = Synthesizer(Generate(prompts=["a fox"], preset=preset, **options), model)
        target = run.objective.targets[0]
        assert target.scale == contrast and (target.rivals is None) == (not contrast)


def first_losses(model: Any, prompt: str) -> float:
    return synthesize(prompt, model=model, steps=1, views=2, init="noise").losses[0]


def test_prompt_weights_are_linear_in_the_loss(tiny_clip: Any) -> None:
    fox, snow = first_losses(tiny_clip, "a fox"), first_losses(tiny_clip, "snow")
    assert first_losses(tiny_clip, "a fox:1 | snow:-0.3") == pytest.approx(
        fox - 0.3 * snow, abs=1e-5
    )
    assert first_losses(tiny_clip, "a fox:2.5") == pytest.approx(2.5 * fox, abs=1e-5)


def test_a_prompt_of_weight_0_changes_nothing(tiny_clip: Any) -> None:
    plain = synthesize("a fox", model=tiny_clip, **QUICK)
    padded = synthesize("a fox | snow:0", model=tiny_clip, **QUICK)
    assert torch.equal(plain.image, padded.image)


def test_prompts_are_parsed() -> None:
    assert parse_prompt("a fox:1 | blurry:-.3") == [("a fox", 1.0), ("blurry", -0.3)]
    assert parse_prompt("at 10:30:2") == [("at 10:30", 2.0)]
    assert parse_prompt("Zoë: a portrait") == [("Zoë: a portrait", 1.0)]
    assert parse_prompt("fox | text:-1", "a sketch of") == [
        ("a sketch of fox", 1.0),
        ("text", -1.0),
    ]
    for bad in ("", "a |", " : 2", "fox:0"):
        with pytest.raises(ValueError, match="prompt"):
            parse_prompt(bad)


def test_an_ensemble_averages_its_losses(tiny_clip: Any) -> None:
    other = make_tiny(seed=1, image_size=32)
    run = Synthesizer(Generate(prompts=[PROMPT], steps=1, views=0, init="noise"), tiny_clip)
    second = Synthesizer(
        Generate(prompts=[PROMPT], steps=1, views=0, init="noise", size="64"), other
    )
    both = Synthesizer(Generate(prompts=[PROMPT], steps=1, views=0, init="noise"), tiny_clip)
    both.objective.guides = [*both.objective.guides, *second.objective.guides]
    both.objective.targets = [*both.objective.targets, *second.objective.targets]
    for each in (run, second, both):
        list(each)
    assert float(both.losses[0]) == pytest.approx(
        float(run.losses[0] + second.losses[0]) / 2, abs=1e-5
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_follows_fp32(tiny_clip: Any, precision: str) -> None:
    gradients = []
    for chosen in ("fp32", precision):
        run = Synthesizer(
            Generate(prompts=[PROMPT], views=4, init="noise", precision=chosen), tiny_clip
        )
        gradients.append(run.objective(run.canvas, run.generators)[2].flatten())
    assert F.cosine_similarity(*gradients, dim=0) > 0.98
    assert gradients[1].norm() == pytest.approx(float(gradients[0].norm()), rel=0.1)


def test_fp16_scaling_backs_off_when_it_overflows(tiny_clip: Any) -> None:
    run = Synthesizer(
        Generate(prompts=[PROMPT], views=2, init="noise", precision="fp16"), tiny_clip
    )
    _, _, wanted = run.objective(run.canvas, run.generators)
    again = Synthesizer(run.options, tiny_clip)
    again.objective.scale = 2.0**40
    _, _, gradient = again.objective(again.canvas, again.generators)
    assert again.objective.scale < 2.0**40
    assert F.cosine_similarity(wanted.flatten(), gradient.flatten(), dim=0) > 0.98


def unit(target: Target, features: torch.Tensor) -> torch.Tensor:
    return target.losses(F.normalize(features, dim=-1), slice(0, 1))


def test_distance_and_atanh_are_their_formulas(tiny_clip: Any, tmp_path: Any) -> None:
    guide, seen = (
        Guide(tiny_clip),
        torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0)),
    )
    parts = [("a fox", 2.0), ("snow", -0.5)]
    texts, rows = guide.texts(["a fox", "snow"]), F.normalize(seen[0], dim=-1)
    near = rows @ texts.T
    away = torch.cdist(rows, texts)
    for kind, each in (("distance", away), ("atanh", -torch.atanh(near)), ("cosine", 1 - near)):
        target = Target.of(guide, [parts], 0.0, kind)
        wanted = 2 * each[:, 0] - 0.5 * each[:, 1]
        assert torch.allclose(unit(target, seen)[0], wanted, atol=1e-5)
    like = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = 1 - rows @ guide.features(like[None])[0]
    assert torch.allclose(unit(Target.of(guide, [[]], like=like), seen)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("what", ["", ":5", ":row.npy", ":whole.npy"])
def test_a_layer_can_be_the_target(
    tiny_clip: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    guide, layer = Guide(tiny_clip), "visual.transformer.resblocks.1"
    seen: list[torch.Tensor] = []
    hook = tiny_clip.get_submodule(layer).register_forward_hook(lambda m, i, out: seen.append(out))
    views = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    guide.features(views)
    hook.remove()
    out = seen[0].detach()
    out = out if out.shape[0] == 3 else out.transpose(0, 1)  # tokens first, as in OpenAI's towers
    assert out.shape == (3, 17, 64)
    row, whole = torch.rand(64), torch.rand(out.shape[1:])
    np.save("row.npy", row.numpy())
    np.save("whole.npy", whole.numpy())
    wanted = {
        "": -out.square().mean((1, 2)),
        ":5": -out[..., 5].mean(1),
        ":row.npy": -(out @ row).mean(1),
        ":whole.npy": -(out * whole).sum((1, 2)),
    }[what]
    assert torch.allclose(layer_readout(guide, layer + what)(views), wanted, rtol=1e-4)
    run = synthesize([], model=tiny_clip, target=layer + what, steps=4, views=0, lr=0.02)
    assert (
        run[0].losses[-1] < run[0].losses[0] and run[0].recipe["options"]["target"] == layer + what
    )
    own = synthesize([], model=tiny_clip, readout=lambda x: x.mean((1, 2, 3)), steps=3, views=0)
    assert own[0].losses[-1] < own[0].losses[0]
    for bad in ("visual.nothing", f"{layer}:64", f"{layer}:red"):
        with pytest.raises(ValueError, match="--target"):
            synthesize([], model=tiny_clip, target=bad, steps=1, views=1)


@pytest.mark.parametrize("weight", ["tv", "tv4", "anchor"])
def test_penalties_equal_their_formulas(tiny_clip: Any, weight: str) -> None:
    options = Generate(prompts=[PROMPT], init="noise", views=1, steps=1, grid=0)
    plain, more = (
        Synthesizer(options.replace(**extra), tiny_clip) for extra in ({}, {weight: 3.0})
    )
    for run in (plain, more):
        run.canvas.values = run.canvas.values * 0.9
    (base, _, slope), (total, _, steeper) = (
        r.objective(r.canvas, r.generators) for r in (plain, more)
    )
    x = more.canvas.values.clone().requires_grad_(True)
    down, across = x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]
    slanted = [x[:, :, 1:, 1:] - x[:, :, :-1, :-1], x[:, :, 1:, :-1] - x[:, :, :-1, 1:]]
    value = {
        "tv": lambda: down.abs().mean() + across.abs().mean(),
        "tv4": lambda: sum(s.square().sum((2, 3)).sqrt().mean() for s in (down, across, *slanted)),
        "anchor": lambda: (x - more.canvas.start).square().mean(),
    }[weight]()
    (wanted,) = torch.autograd.grad(3 * value, x)
    assert float(total - base) == pytest.approx(3 * float(value.detach()), rel=1e-3, abs=1e-6)
    assert torch.allclose(steeper - slope, wanted, atol=1e-5)
