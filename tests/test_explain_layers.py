"""Where a map is read: layouts of plain models, timm towers, and layers that cannot be read."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import TINY
from test_explain import MINI, TEXTS, scene, tower
from torch import Tensor

import clipag_plug
from clipag_plug.explanation import heatmaps
from clipag_plug.explanation.cam import find_layer, maps_and_gradients
from clipag_plug.guide import Guide
from clipag_plug.model import build


def test_layouts_agree_and_plain_open_clip_models_work() -> None:
    """The same weights as an open_clip model (batch first) and as ours (token first)."""
    from open_clip.model import CLIP as OpenCLIP

    config = copy.deepcopy(TINY)
    torch.manual_seed(0)
    plain = OpenCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).eval()
    ours = build(config, plain.state_dict())
    guides = [Guide(plain), Guide(ours)]
    assert [find_layer(guide).kind for guide in guides] == ["tokens", "tokens-first"]
    images, texts = scene(guides[0], 17)  # as many images as tokens: the shape alone is ambiguous
    for method in ("gradcam", "gradcam-ln1", "gscorecam"):
        first, second = (heatmaps(g, images, texts, method=method, channels=4) for g in guides)
        assert torch.allclose(first, second, atol=1e-5)
    picture = torch.rand(3, 20, 30)
    assert torch.allclose(
        clipag_plug.explain(plain, picture, TEXTS),
        clipag_plug.explain(ours, picture, TEXTS),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "name, layer, kind",
    [
        ("test_convnext", "trunk.stages.2", "map"),
        ("test_vit", "trunk.blocks.5", "tokens"),
        ("test_resnet", "trunk.layer4", "map"),
    ],
)
def test_timm_towers(name, layer, kind) -> None:
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    guide = Guide(
        tower(vision | ({"timm_pool": "token"} if "vit" in name else {"timm_pool": "avg"}))
    )
    found = find_layer(guide)
    assert (found.name, found.kind) == (layer, kind)
    images, texts = scene(guide, 2)
    assert heatmaps(guide, images, texts).shape == (2, 2, 160, 160)


def test_the_bundled_tower_is_read_where_its_map_is_fine_enough() -> None:
    guide = Guide(tower(MINI))
    assert (find_layer(guide).name, find_layer(guide).grid) == ("stages.1", (8, 8))
    assert find_layer(guide, "visual.stages.3").grid == (2, 2)


def test_layers_that_cannot_be_read_are_refused(tiny_clip) -> None:
    guide = Guide(tiny_clip)
    with pytest.raises(ValueError, match="no layer 'stages.9'; there are, for example"):
        find_layer(guide, "stages.9")
    with pytest.raises(ValueError, match="'transformer.resblocks.1.attn' gives no tensor"):
        find_layer(guide, "transformer.resblocks.1.attn")
    with pytest.raises(ValueError, match="use gradcam"):
        find_layer(Guide(tower(MINI)), first_norm=True)


def test_a_graph_cut_at_the_layer_gives_the_same_gradient(tiny_clip) -> None:
    guide = Guide(tiny_clip)
    images, texts = scene(guide)
    layer = find_layer(guide, first_norm=True)
    _, cut = maps_and_gradients(guide, images, texts[None].expand(3, -1, -1), layer)
    caught: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda module, given, output: caught.append(output))
    (whole,) = torch.autograd.grad((guide.features(images) @ texts[0]).sum(), caught)
    handle.remove()
    assert torch.allclose(cut[0], whole, atol=1e-7)
