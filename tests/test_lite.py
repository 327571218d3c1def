"""EfficientNet-Lite as a tower: timm's function on timm's weights, any side, a part of a whole model."""

from __future__ import annotations

import pytest
import timm
import torch

from clipag_plug import model as models
from clipag_plug.lite import LiteVisual, round_width

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_it_is_timms_network(variant: int) -> None:
    torch.manual_seed(variant)
    theirs = timm.create_model(f"tf_efficientnet_lite{variant}").eval()
    for module in theirs.modules():  # statistics that are no identity
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    ours = LiteVisual(8, variant=variant).eval()
    given = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier")}
    lacking = ours.load_state_dict(given, strict=False)
    assert lacking.missing_keys == ["proj.weight", "proj.bias"] and not lacking.unexpected_keys
    for side in (64, 75, 96):  # odd sides are padded unevenly
        ours.image_size = side
        x = torch.rand(2, 3, side, side, requires_grad=True)
        a, b = ours.maps(x), theirs.forward_features(x)
        assert torch.allclose(a, b, atol=2e-4 * b.detach().abs().max().item())
        (ga,), (gb,) = (torch.autograd.grad(y.square().sum(), x) for y in (a, b))
        assert torch.allclose(ga, gb, atol=1e-3 * gb.abs().max().item())


def test_other_sides_are_averaged_over_areas() -> None:
    tower = LiteVisual(8, image_size=32).eval()
    x = torch.rand(2, 3, 64, 96)
    small = torch.nn.functional.adaptive_avg_pool2d(x, 32)
    assert torch.allclose(tower(x), tower(small), atol=1e-4)
    assert tower.reduce(small) is small


def test_a_model_is_made_with_it_by_its_config() -> None:
    vision = {"image_size": 224, "lite": {"variant": 1, "image_size": 64, "activation": "silu"}}
    model = models.build({"embed_dim": 8, "vision_cfg": vision, "text_cfg": TEXT}, None)
    assert isinstance(model.visual, LiteVisual) and model.visual.input_resolution == 224
    assert model.eval().encode_image(torch.rand(1, 3, 224, 224)).shape == (1, 8)
    assert "blocks.6" in model.layers or model.layers[-1] == "output"


@pytest.mark.parametrize(
    ("width", "expected"), [(32, 32), (35.2, 32), (26.4, 24), (44, 48), (352, 352), (17.6, 16)]
)
def test_widths_are_whole_eights(width: float, expected: int) -> None:
    assert round_width(width) == expected
