"""CLIP-guided search: the generators, the three methods, what the model is shown, and the command."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipag_plug.bench.stats import paired_difference
from clipag_plug.model import CLIP
from clipag_plug.options.search import Search
from clipag_plug.paint import Guide
from clipag_plug.pipelines import gan_search, generators, search
from clipag_plug.pipelines.gan_search import Found, Problem, class_features, ordered, scorer
from clipag_plug.pipelines.generators import BigGan, Labelled, load_biggan

MAKER = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "make" / "generator.py"))


class Toy:
    """z of 12 numbers is a 2x2 picture of class y, shifted by the class; takes gradients in both."""

    name, dim_z, soft, classes = "toy", 12, True, [str(n) for n in range(20)]

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.dim_z, generator=generator)

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        shift = y @ torch.linspace(-1, 1, 20)
        return (0.3 * z.view(-1, 3, 2, 2) + shift[:, None, None, None]).tanh()


def closeness(outputs: Tensor) -> Tensor:
    """The best score, 0, is at a picture of 0.5 everywhere."""
    return -(outputs - 0.5).square().mean((1, 2, 3))


def problem(**changes: Any) -> Problem:
    return Problem(Toy(), closeness, torch.arange(20), **changes)


def solve(method: str, budget: int, given: Problem | None = None, **options: Any) -> Found:
    """A search of the toy, or of another problem."""
    return gan_search.solve(given or problem(), Search(method=method, budget=budget, **options))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).float()


def test_random_search_does_not_depend_on_its_batches_and_longer_begins_with_shorter() -> None:
    whole = solve("random", 40, problem(batch=64))
    torch.manual_seed(5)  # nobody's seed
    parts = solve("random", 40, problem(batch=7))
    assert torch.allclose(whole.scores, parts.scores, atol=1e-6)
    assert torch.equal(whole.z, parts.z) and whole.label == parts.label
    assert torch.allclose(solve("random", 15).scores, whole.scores[:15], atol=1e-6)
    assert not torch.equal(solve("random", 40, problem(seed=1)).scores, whole.scores)
    expected = [max(whole.scores[: n + 1].tolist()) for n in range(40)]
    assert whole.running.tolist() == expected
    again = closeness(Toy()(whole.z[None], whole.y[None]))
    assert float(again) == pytest.approx(whole.score, abs=1e-6)


def test_only_the_classes_asked_for_are_drawn_and_all_of_them() -> None:
    chosen = torch.tensor([3, 11, 17])
    _, labels = Problem(Toy(), closeness, chosen).draws(200)
    assert set(labels.tolist()) == {3, 11, 17}
    counts = torch.bincount(labels, minlength=20)[chosen]
    assert int(counts.min()) > 40  # 67 expected of each


@pytest.mark.parametrize("budget", [1, 2, 5, 37, 64])
def test_every_method_spends_its_budget_exactly(budget: int) -> None:
    assert len(solve("random", budget).scores) == budget
    assert len(solve("evolve", budget, population=8).scores) == budget
    if budget > 1:
        assert len(solve("refine", budget, bases=4).scores) == budget


def test_evolution_and_gradients_beat_draws_at_the_same_budget() -> None:
    gains = {"evolve": [], "refine": []}  # type: ignore[var-annotated]
    for seed in range(5):
        chance = solve("random", 120, problem(seed=seed)).score
        gains["evolve"].append(
            solve("evolve", 120, problem(seed=seed), population=10).score - chance
        )
        gains["refine"].append(
            solve("refine", 120, problem(seed=seed), bases=2, rate=0.1).score - chance
        )
    assert sum(gains["evolve"]) > 0 and min(gains["refine"]) > 0
    found = solve("refine", 120, bases=2, rate=0.1)
    first = solve("random", 60)
    assert torch.allclose(found.scores[:60], first.scores, atol=1e-6)
    assert float(found.y.sum()) == pytest.approx(1, abs=1e-5) and float(found.z.abs().max()) <= 2


def test_a_generator_without_soft_classes_keeps_its_class() -> None:
    calls: list[Tensor] = []

    def network(z: Tensor, labels: Tensor) -> Tensor:
        calls.append(labels)
        return z.view(-1, 3, 2, 2).tanh()

    sagan = Labelled(network, 12, ["a", "b", "c"])
    found = solve("refine", 20, Problem(sagan, closeness, torch.tensor([2])))
    assert all((labels == 2).all() and labels.dtype == torch.long for labels in calls)
    assert found.y.tolist() == [0, 0, 1]


def test_cosine_coefficients_are_a_projection() -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = MAKER["encode"](images)
    kept = generators.decode(codes)
    assert torch.allclose(MAKER["encode"](kept), codes, atol=1e-4)
    # The nearest picture of its kind: what is left out is orthogonal to what is kept.
    assert ((images - kept) * kept).sum((1, 2, 3)).abs().max() < 1e-2
    assert torch.allclose(codes.square().sum(1), kept.square().sum((1, 2, 3)), rtol=1e-4)
    flat = torch.tensor([0.2, -0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    assert torch.allclose(generators.decode(MAKER["encode"](flat)), flat, atol=1e-4)


def test_fitting_finds_prototypes_and_the_spread_around_them() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat(50, 1) + 0.1 * torch.randn(150, 2, generator=generator)
    found, rest = MAKER["kmeans"](points, 3, torch.Generator().manual_seed(1))
    assert torch.cdist(centres, found).amin(1).max() < 0.1
    assert float(rest.std()) == pytest.approx(0.1, rel=0.2)
    levels = torch.tensor([40, 200])[torch.arange(40) % 2].view(-1, 1, 1, 1)
    images = (levels + torch.randint(-9, 9, (40, 64, 64, 3), generator=generator)).to(torch.uint8)
    model = MAKER["fit"](images, torch.arange(40) % 2, ["dark", "bright"], prototypes=2, rank=4)
    drawn = model(model.latents(6, generator), one_hot(torch.arange(6) % 2, 2)) / 2 + 0.5
    assert torch.allclose(drawn[0::2].mean((1, 2, 3)), torch.tensor(40 / 255), atol=0.03)
    assert torch.allclose(drawn[1::2].mean((1, 2, 3)), torch.tensor(200 / 255), atol=0.03)
    with pytest.raises(ValueError, match="'dark' has 20 photographs; 30 needed"):
        MAKER["fit"](images, torch.arange(40) % 2, ["dark", "bright"], prototypes=30)


def test_the_bundled_generator_is_small_and_depends_on_its_class(tmp_path: Path) -> None:
    path = Path(generators.__file__).parent.parent / "bundled" / generators.FILE
    assert path.stat().st_size <= 4_000_000
    generator = generators.bundled_generator()
    z = generator.latents(2, torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 50])
    one, other = generator(z, one_hot(labels, 202)), generator(z, one_hot(labels.flip(0), 202))
    assert one.shape == (2, 3, 64, 64) and float(one.abs().max()) <= 1
    assert float((one - other).abs().mean()) > 0.05
    apart = torch.cat([generator(z[i : i + 1], one_hot(labels, 202)[i : i + 1]) for i in range(2)])
    assert torch.allclose(apart, one, atol=1e-5)
    read = generators.PrototypeGenerator.load(
        MAKER["save"](generator, tmp_path / "again.safetensors")
    )
    assert torch.equal(read(z, one_hot(labels, 202)), one) and read.classes == generator.classes
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="no generator"):
        generators.PrototypeGenerator.load(tmp_path / "broken.safetensors")


def test_what_the_model_is_shown(tiny_clip: CLIP) -> None:
    guide = Guide(tiny_clip)
    text = guide.texts(["a goldfish"])[0]
    outputs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        shown = torch.nn.functional.interpolate(
            (outputs + 1) / 2, (guide.side, guide.side), mode="bilinear", antialias=True
        )
        features = tiny_clip.encode_image(tiny_clip.normalize(shown))
        expected = torch.cosine_similarity(features, text[None])
        raw = tiny_clip.encode_image(gan_search.enlarged(outputs, guide.side))
        legacy = torch.cosine_similarity(raw, text[None])
        assert torch.allclose(scorer(guide, text)(outputs), expected, atol=1e-5)
        assert torch.allclose(scorer(guide, text, "legacy")(outputs), legacy, atol=1e-5)
    assert not torch.allclose(legacy, expected, atol=1e-3)


def test_nearest_classes(tiny_clip: CLIP) -> None:
    guide = Guide(tiny_clip)
    names = ["goldfish", "barn", "teapot", "lion"]
    text = guide.texts(["An image of a teapot"])[0]
    assert int(ordered(class_features(guide, names, "An image of a {}"), text, 1)) == 2
    features = torch.eye(4)
    assert ordered(features, torch.tensor([0.1, 0.4, 0.3, 0.2]), 2).tolist() == [1, 2]
    assert ordered(features, torch.tensor([0.1, 0.4, 0.3, 0.2]), 0).tolist() == [1, 2, 3, 0]


@pytest.fixture(scope="module")
def small_biggan() -> Any:
    return random_biggan(5)


def random_biggan(classes: int) -> Any:
    """A random BigGAN of the published package, 16 x 16 pixels."""
    package = pytest.importorskip("pytorch_pretrained_biggan")
    config = package.BigGANConfig.from_dict(
        {
            "output_dim": 16,
            "z_dim": 16,
            "class_embed_dim": 16,
            "channel_width": 4,
            "num_classes": classes,
            "layers": [[False, 16, 16], [True, 16, 8], [False, 8, 4], [True, 4, 2], [False, 2, 1]],
            "attention_layer_position": 3,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = package.BigGAN(config)
        last = (
            network.generator.bn
        )  # the package leaves its weights as the memory was, until a checkpoint fills them
        torch.nn.init.ones_(last.weight)
        torch.nn.init.zeros_(last.bias)
        for _ in range(5):  # the norms of its weights are estimated while it trains
            with torch.no_grad():
                network.train()(torch.randn(2, 16), torch.eye(classes)[:2], 0.4)
        return network


def test_biggan_behind_the_protocol(small_biggan: Any, tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e"]
    generator = BigGan(small_biggan, truncation=0.4, classes=names)
    z = generator.latents(500, torch.Generator().manual_seed(0))
    assert z.shape == (500, 16) and float(z.abs().max()) <= 0.8
    assert float(z.std()) == pytest.approx(0.4 * 0.8796, rel=0.03)  # of a normal cut at +-2
    y = one_hot(torch.tensor([0, 3]), 5).requires_grad_(True)
    output = generator(z[:2], y)
    assert output.shape == (2, 3, 16, 16) and float(output.detach().abs().max()) <= 1
    (gradient,) = torch.autograd.grad(output.sum(), y)
    assert gradient.shape == (2, 5)  # an output that y does not reach would have raised
    with torch.no_grad():
        assert torch.allclose(output, small_biggan(z[:2], y, 0.4))
    for method in ("random", "evolve", "refine"):
        found = solve(method, 12, Problem(generator, closeness, torch.arange(5)))
        assert len(found.scores) == 12 and found.score >= float(found.scores[0])
    with pytest.raises(ValueError, match="names for the 5 classes"):
        BigGan(small_biggan, classes=["a"])
    torch.save(small_biggan.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(small_biggan.config.to_dict()))
    with pytest.raises(ValueError, match="classes"):
        load_biggan(str(tmp_path))  # five classes, and ImageNet's thousand names
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_biggan(str(tmp_path / "elsewhere"))


@pytest.mark.long
def test_ten_classes_beat_all_at_the_same_budget_and_more_budget_is_no_worse(
    bundled_pair: dict[str, CLIP],
) -> None:
    """The bars of the search, on the bundled generator and CLIPAG: means and paired differences over prompts."""
    guide = Guide(bundled_pair["clipag-mini"])
    generator = generators.bundled_generator()
    prompts = [f"a photo of a {name}" for name in generator.classes[::7]]
    texts = guide.texts(prompts)
    classes = class_features(guide, generator.classes, "An image of {}")
    curves: dict[int, list[Tensor]] = {10: [], 0: []}
    for place, text in enumerate(texts):
        for k in curves:
            labels = ordered(classes, text, k)
            score = scorer(guide, text)
            found = solve("random", 32, Problem(generator, score, labels, seed=place))
            curves[k].append(found.running)
    few, every = (torch.stack(curves[k]) for k in (10, 0))
    assert (few.diff() >= 0).all() and (every.diff() >= 0).all()
    means = few.mean(0)
    assert float(means[-1]) > float(means[7]) > float(means[0])
    gap = paired_difference(few[:, -1].tolist(), every[:, -1].tolist())
    assert gap.low > 0, gap


def test_parts_of_a_prompt_are_weighed(tiny_clip: CLIP) -> None:
    found = search("fox | fog:-0.5", model=tiny_clip, budget=12, batch=5, k=0, device="cpu")
    guide = Guide(tiny_clip)
    fox, fog = guide.texts(["fox", "fog"])
    score = scorer(guide, F.normalize(fox - 0.5 * fog, dim=0))
    with torch.no_grad():
        assert float(score(found.output[None])) == pytest.approx(found.score, abs=1e-5)
