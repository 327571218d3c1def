"""`--precision auto`: a table that was measured, what it decides, what the recipe says of it, and what bf16 changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_helpers import prepared

from clipag_plug import clip, pipelines, precision
from clipag_plug.attacks import pgd
from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.guide import Guide, frozen
from clipag_plug.lite import LiteVisual
from clipag_plug.model import CLIP, build
from clipag_plug.options.generate import Generate
from clipag_plug.options.train import Train
from clipag_plug.paint import synthesize
from clipag_plug.paint.command import replay_options
from clipag_plug.vocabulary import bundled_vocabulary, sentence

REAL_UNIT = precision.unit


@pytest.fixture
def bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor of the kind that was measured."""
    monkeypatch.setattr(precision, "unit", lambda device="cpu": "avx512_bf16")


def lite(seed: int = 0) -> LiteVisual:
    """A random EfficientNet-Lite whose normalisations have seen something."""
    torch.manual_seed(seed)
    tower = LiteVisual(32, image_size=32)
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean = torch.randn_like(module.bias) * 0.1
            module.running_var = torch.rand_like(module.bias) + 0.5
    return tower.eval()


def test_the_table_is_of_known_towers_and_of_sound_numbers() -> None:
    assert precision.MEASURED
    for (family, units), row in precision.MEASURED.items():
        assert family in precision.FAMILIES.values() and units == "avx512_bf16"
        assert min(row.guide, row.train) > 0.1 and max(row.guide, row.train) < 10
        assert 0.5 < row.gradient <= 1 and 0.9 < row.features <= 1
        assert row.judged is None or abs(row.judged) < 100


def test_every_family_names_a_class_that_exists(tiny_clip: CLIP, bundled_pair: Any) -> None:
    towers = [tiny_clip.visual, clip.load("judge-mini", "cpu")[0].visual, lite()]
    resnet = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "image_size": 64}
    text = {"context_length": 77, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": resnet, "text_cfg": text}
    towers.append(build(config, None).visual)
    timm = {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"}
    config["vision_cfg"] = {**timm, "image_size": 64}
    towers.append(build(config, None).visual)
    found = [precision.family(tower) for tower in towers]
    assert found == ["vit", "mini", "lite", "resnet", "convnext"]
    assert set(found) == set(precision.FAMILIES.values())
    assert precision.family(nn.Linear(1, 1)) == ""


def test_auto_is_bf16_only_where_a_row_says_so(
    tiny_clip: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = precision.Measured(2.0, 1.0, 0.9999, 0.99, None)
    monkeypatch.setattr(precision, "MEASURED", {("vit", "avx512_bf16"): row})
    asked = {"avx512_bf16": "bf16", "amx_bf16": "fp32", "cuda 9.0": "fp32", "": "fp32"}
    for units, wanted in asked.items():
        monkeypatch.setattr(precision, "unit", lambda device="cpu", units=units: units)
        assert Guide(tiny_clip, precision="auto").precision == wanted
        assert precision.resolve("auto", tiny_clip.visual, "cpu", "train") == "fp32"
        assert precision.resolve("fp16", tiny_clip.visual, "cpu") == "fp16"
        assert Guide(tiny_clip).precision == "fp32"
        assert ("bf16 for vit to guide" in precision.told()) == (wanted == "bf16")
    monkeypatch.setattr(precision, "unit", lambda device="cpu": "avx512_bf16")
    for worse in (row._replace(guide=1.0), row._replace(features=0.99), row._replace(judged=-9.0)):
        monkeypatch.setitem(precision.MEASURED, ("vit", "avx512_bf16"), worse)
        assert precision.resolve("auto", tiny_clip.visual, "cpu") == "fp32"


def test_units_are_what_torch_says_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, avx, wanted in (
        (True, True, "amx_bf16"),
        (False, True, "avx512_bf16"),
        (False, False, ""),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx, raising=False
        )
        assert REAL_UNIT("cpu") == wanted
        assert REAL_UNIT("mps") == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert REAL_UNIT("cuda:1") == "cuda 9.0"


def test_the_recipe_says_the_format_and_repeats_it(
    bf16_units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"steps": 2, "views": 2, "size": "64"}
    made = synthesize("a goldfish", **wanted)
    assert made.recipe["options"]["precision"] == "bf16"
    monkeypatch.setattr(precision, "unit", lambda device="cpu": "")
    plain = synthesize("a goldfish", **wanted)
    assert plain.recipe["options"]["precision"] == "fp32"
    assert not torch.equal(made.image, plain.image)
    options = replay_options(made.recipe)  # on a machine without units
    again = synthesize(**{**options.to_dict(), "prompts": "a goldfish"})
    assert torch.equal(made.image, again.image)


def test_an_ensemble_has_the_format_of_its_first(bf16_units: None, tiny_clip: CLIP) -> None:
    from clipag_plug.paint import Synthesizer

    options = Generate(prompts=["a dog"], ensemble=["clip-mini"], steps=1, views=1)
    formats = [g.precision for g in Synthesizer(options, Guide(tiny_clip)).guides]
    assert formats == ["fp32", "fp32"]
    assert [g.precision for g in Synthesizer(options).guides] == ["bf16", "bf16"]


def test_pipelines_say_the_format(bf16_units: None) -> None:
    for asked, wanted in (("auto", "bf16"), ("fp32", "fp32")):
        made = pipelines.clipdraw(
            "a dog", preset="demo", steps=1, strokes=2, views=1, precision=asked
        )
        assert made[0].recipe["options"]["precision"] == wanted


def test_a_run_says_the_format_and_goes_on_with_it(
    bf16_units: None, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipag_plug.train.command import run

    changes = {"data": [str(shard)], "init": "clip-mini", "batch_size": 4, "attack_steps": 0}
    changes |= {"output": str(tmp_path / "run"), "quiet": True, "decoders": 0}
    run(Train(**changes, samples=4))
    recipe = tmp_path / "run" / "recipe.json"
    assert json.loads(recipe.read_text())["precision"] == "bf16"
    monkeypatch.setattr(precision, "unit", lambda device="cpu": "")
    run(Train(**changes, samples=8, resume="latest"))
    assert json.loads(recipe.read_text())["precision"] == "bf16"
    assert prepared(shard, tmp_path / "other").options.precision == "fp32"


def test_a_frozen_lite_tower_is_the_same_function_and_gradient() -> None:
    tower, x = lite(), torch.rand(3, 3, 32, 32, requires_grad=True)

    def both() -> tuple[Tensor, Tensor]:
        features = tower(x)
        return features.detach(), torch.autograd.grad(features.square().sum(), x)[0]

    plain = both()
    hooks: list[Any] = []
    with frozen([tower]):
        folded = both()
        tower.blocks[1][0].bn2.register_forward_hook(lambda m, i, o: hooks.append(o))
        hooked = both()
    assert len(hooks) == 1 and not torch.equal(plain[1], folded[1])
    for other in (folded, hooked):
        for exact, close in zip(plain, other, strict=True):
            assert torch.allclose(exact, close, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("weights", [False, True])
def test_depthwise_convolutions_whose_way_back_is_slow_run_in_fp32(weights: bool) -> None:
    tower, seen = lite().requires_grad_(weights), dict[str, torch.dtype]()
    real = F.conv2d

    def spy(x: Tensor, weight: Tensor, bias: Any, stride: Any, *rest: Any) -> Tensor:
        kind = "dense" if rest[-1] == 1 else "strided" if max(stride) > 1 else "depthwise"
        low = torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16
        seen[kind] = torch.bfloat16 if low else x.dtype
        return real(x, weight, bias, stride, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipag_plug.lite.F.conv2d", spy)
        with torch.autocast("cpu", torch.bfloat16):
            low = tower(torch.rand(2, 3, 32, 32, requires_grad=True))
    assert seen["strided"] == torch.float32 and seen["dense"] == torch.bfloat16
    assert seen["depthwise"] == (torch.float32 if weights else torch.bfloat16)
    assert low.isfinite().all()


def test_attention_under_autocast_is_one_product_with_and_without_a_gradient(
    tiny_clip: CLIP, photos: Tensor
) -> None:
    views = F.interpolate(photos, 64)
    with frozen([tiny_clip]), torch.autocast("cpu", torch.bfloat16):
        flowing = tiny_clip.encode_image(views.clone().requires_grad_())
        with torch.no_grad():
            still = tiny_clip.encode_image(views)
    assert F.cosine_similarity(flowing.detach().float(), still.float()).min() > 0.999


def test_an_attack_in_bf16_is_no_weaker_under_fp32(bundled_pair: dict[str, CLIP]) -> None:
    """No masking: images attacked by bf16 gradients fool the fp32 model as those by its own do."""
    model, photos = bundled_pair["clipag-mini"], bundled_photos()
    rows = list(range(0, len(photos), 5))
    images, labels = photos.pixels(rows), photos.labels[rows]
    guides = {name: Guide(model, precision=name) for name in ("fp32", "bf16")}
    names = [sentence(name, "a {}") for name in bundled_vocabulary().class_names]
    texts = guides["fp32"].texts(names)

    def right(x: Tensor, guide: Guide) -> Tensor:
        with torch.no_grad():
            return (guide.features(x) @ texts.T).argmax(1) == labels

    found = {}
    for name, guide in guides.items():

        def loss(x: Tensor, guide: Guide = guide) -> Tensor:
            return F.cross_entropy(50 * guide.features(x) @ texts.T, labels, reduction="none")

        with frozen([model]):
            attacked = pgd(loss, images, eps=1.0, steps=5)
        found[name] = int(right(attacked, guides["fp32"]).sum())
    clean = int(right(images, guides["fp32"]).sum())
    assert clean > found["fp32"] + 5, "an attack that does nothing shows nothing"
    assert found["bf16"] <= found["fp32"] + 2
