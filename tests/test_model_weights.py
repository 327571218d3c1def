"""Building a model from a config and weights: nothing copied, nothing lost, and misfits named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, make_tiny
from model_helpers import config, inputs

from clipag_plug import clip
from clipag_plug.mini import MiniVisual
from clipag_plug.model import CLIP, build

MINI = {"mini": {"image_size": 16, "widths": [8, 16], "depths": [1, 1]}, "image_size": 224}


def test_the_given_tensors_become_the_parameters_without_a_copy(tiny_clip: CLIP) -> None:
    weights = {name: tensor.detach().clone() for name, tensor in tiny_clip.state_dict().items()}
    again = build(TINY, weights)
    for name, parameter in again.named_parameters():
        assert parameter.data_ptr() == weights[name].data_ptr(), name
        assert not parameter.is_meta
    assert not [name for name, buffer in again.named_buffers() if buffer.is_meta]


def test_half_precision_files_load_into_fp32(tiny_clip: CLIP) -> None:
    halves = {name: tensor.half() for name, tensor in tiny_clip.state_dict().items()}
    model = build(TINY, halves)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.visual.proj, halves["visual.proj"].float())


def test_the_bundled_kind_of_tower_with_fresh_and_with_given_weights() -> None:
    made = {**config(), "vision_cfg": MINI}
    fresh = build(made, None)
    assert isinstance(fresh.visual, MiniVisual) and fresh.visual.image_size == 16
    assert fresh.visual.input_resolution == 224 and fresh.visual.output_dim == 32
    weights = {
        key: tensor for key, tensor in fresh.state_dict().items() if "num_batches" not in key
    }
    again = build(made, weights)
    image, tokens = inputs(fresh)
    assert torch.equal(fresh.encode_image(image), again.encode_image(image))
    assert torch.equal(fresh.encode_text(tokens), again.encode_text(tokens))
    low = build(made, weights, precision="fp16")
    with torch.no_grad():
        assert (
            torch.cosine_similarity(
                low.encode_image(image).float(), fresh.encode_image(image)
            ).min()
            > 0.99
        )


def test_weights_that_do_not_fit_are_named(tiny_clip: CLIP) -> None:
    weights = dict(tiny_clip.state_dict())
    del weights["ln_final.bias"]
    weights["visual.extra"] = torch.zeros(1)
    weights["visual.proj"] = torch.zeros(3, 4)
    with pytest.raises(RuntimeError) as caught:
        build(TINY, weights)
    for part in ("ln_final.bias", "visual.extra", "visual.proj", "[3, 4]", "[64, 32]"):
        assert part in str(caught.value)


def test_scalars_of_openais_files_are_no_surplus(tiny_clip: CLIP) -> None:
    extra = {
        name: torch.tensor(64) for name in ("input_resolution", "context_length", "vocab_size")
    }
    assert build(TINY, {**tiny_clip.state_dict(), **extra}).context_length == 77


@pytest.mark.parametrize(
    "made, message",
    [
        ({"embed_dim": 8}, "lacks vision_cfg, text_cfg"),
        (config(multimodal_cfg={}), "multimodal_cfg"),
        (config(text={"hf_model_name": "roberta-base"}), "roberta-base"),
        (config({"patch": 3}), "patch"),
        (config({"image_size": [64, 32]}), "square"),
    ],
)
def test_unsupported_configs_are_refused_by_name(made: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(made, None)


def test_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        build(TINY, None, precision="int8")


def test_a_file_loads_through_the_real_reader(tiny_checkpoint: Path, tiny_clip: CLIP) -> None:
    model, preprocess = clip.load(str(tiny_checkpoint), "cpu")
    image, tokens = inputs(tiny_clip)
    assert torch.equal(model.encode_image(image), tiny_clip.encode_image(image))
    assert torch.equal(model.encode_text(tokens), tiny_clip.encode_text(tokens))
    assert model.card["note"] == "random" and model.name == str(tiny_checkpoint)
    assert preprocess.transforms[0].size == 64
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        clip.load("absent.pt", "cpu")


def test_fresh_weights_follow_the_seed() -> None:
    first, same, other = make_tiny(3), make_tiny(3), make_tiny(4)
    assert torch.equal(first.visual.proj, same.visual.proj)
    assert not torch.equal(first.visual.proj, other.visual.proj)


def test_a_file_that_changes_under_its_name_is_not_answered_from_before(
    tiny_clip: CLIP, tmp_path: Path
) -> None:
    path, state = tmp_path / "mine.pt", tiny_clip.state_dict()
    path.with_suffix(".json").write_text(json.dumps(TINY))
    for scale in (1.0, 2.0):
        torch.save({name: tensor * scale for name, tensor in state.items()}, path)
        found = clip._download(
            f"clipag_plug:{path}#gelu,arch={path.with_suffix('.json')}", str(tmp_path)
        )
        weights = torch.load(found, weights_only=True)
        assert torch.allclose(weights["logit_scale"], state["logit_scale"] * scale)
