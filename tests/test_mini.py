"""The bundled image tower: exact area reduction, sizes, independence of samples."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clipag_plug.mini import MiniVisual, area_weights, grown


@pytest.mark.parametrize(
    "size_in, size_out", [(224, 32), (224, 40), (224, 48), (64, 48), (7, 3), (5, 5), (32, 48)]
)
def test_area_weights_average_exactly(size_in, size_out) -> None:
    weights = area_weights(size_in, size_out)
    assert weights.shape == (size_out, size_in)
    assert torch.allclose(weights.sum(1), torch.ones(size_out), atol=1e-6)
    # Repeating each pixel `size_out` times and averaging runs of `size_in` is the same average in whole numbers.
    x = torch.randn(size_in, generator=torch.Generator().manual_seed(0))
    expected = x.repeat_interleave(size_out).view(size_out, size_in).mean(1)
    assert torch.allclose(weights @ x, expected, atol=1e-5)


def test_reduction_equals_adaptive_pooling_where_it_divides() -> None:
    tower = MiniVisual(16, image_size=32)
    x = torch.rand(2, 3, 224, 224)
    assert torch.allclose(tower.reduce(x), F.adaptive_avg_pool2d(x, 32), atol=1e-5)


def test_internal_size_passes_through() -> None:
    tower = MiniVisual(16, image_size=40).eval()
    x = torch.rand(1, 3, 40, 40)
    assert tower.reduce(x) is x
    assert tower(x).shape == (1, 16)


def test_every_pixel_has_a_gradient() -> None:
    torch.manual_seed(0)
    tower = MiniVisual(16, image_size=40).eval()
    x = torch.rand(1, 3, 224, 224, requires_grad=True)
    (gradient,) = torch.autograd.grad(tower(x).square().sum(), x)
    assert bool((gradient != 0).all())


@pytest.mark.parametrize("size", [32, 40, 48])
def test_odd_sides_keep_both_branches_in_step(size) -> None:
    assert MiniVisual(8, image_size=size).eval()(torch.rand(2, 3, 224, 224)).shape == (2, 8)


def test_samples_are_independent_in_eval_mode() -> None:
    torch.manual_seed(0)
    tower = MiniVisual(8).eval()
    x = torch.rand(4, 3, 224, 224)
    assert torch.allclose(tower(x)[1:2], tower(x[1:2]), atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_grown_tower_starts_as_the_same_function(factor) -> None:
    torch.manual_seed(0)
    mini = {"image_size": 16, "widths": [8, 12], "depths": [1, 1], "stem": 4, "patch": 2}
    small = MiniVisual(8, **mini).eval()
    weights = {f"visual.{name}": value for name, value in small.state_dict().items()}
    config, grown_weights = grown({"vision_cfg": {"mini": mini}}, weights, factor)
    large = MiniVisual(8, **config["vision_cfg"]["mini"]).eval()
    large.load_state_dict({name[7:]: value for name, value in grown_weights.items()})
    x = torch.rand(3, 3, 96, 96)
    assert large.image_size == 16 * factor and mini["image_size"] == 16
    assert torch.allclose(small(x), large(x), atol=1e-5)


def test_a_lite_tower_takes_its_weights_to_another_side() -> None:
    config = {"embed_dim": 8, "vision_cfg": {"lite": {"variant": 0, "image_size": 96}}}
    weights = {"visual.proj.bias": torch.rand(8)}
    found, same = grown(config, weights, 4 / 3)
    assert found["vision_cfg"]["lite"] == {"variant": 0, "image_size": 128}
    assert same is weights and config["vision_cfg"]["lite"]["image_size"] == 96


def test_only_mini_and_lite_towers_grow() -> None:
    with pytest.raises(ValueError, match="only a mini tower"):
        grown({"vision_cfg": {"width": 8}}, {}, 2)
    with pytest.raises(ValueError, match="by a whole number"):
        grown({"vision_cfg": {"mini": {}}}, {}, 1.5)
    with pytest.raises(ValueError, match="even number"):
        grown({"vision_cfg": {"mini": {"image_size": 40, "stem": 3, "patch": 2}}}, {}, 2)
