"""The model that a run starts from: its names, and what cannot be trained as it was asked for."""

from __future__ import annotations

import json

import pytest
from train_helpers import CONVNEXT, VIT, architecture, options, prepared

from clipag_plug.train import setup


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": architecture(VIT, {"vocab_size": 32000})}, "vocab_size is 32000"),
        (
            {"architecture": architecture(VIT, {"hf_tokenizer_name": "no/such"})},
            "tokenizer 'no/such'",
        ),
        ({"architecture": "ViT-B-33"}, "--architecture 'ViT-B-33' is no file"),
        ({"architecture": "[1]"}, "--architecture"),
        (
            {"architecture": architecture(VIT), "resolution": 48},
            "--resolution is 48, .* of 32 pixels",
        ),
        ({"architecture": architecture(CONVNEXT), "resolution": 1}, "--resolution is 1,"),
        ({"grow": 2.0}, "--grow needs --init"),
        ({"lock_image_unlocked_groups": 2}, "--lock-image-unlocked-groups needs --image frozen"),
        ({"text_features": "nowhere.npz"}, "--text-features 'nowhere.npz' cannot be read"),
        (
            {"text_teacher": "nowhere.npz", "text": "train"},
            "--text-teacher 'nowhere.npz' cannot be",
        ),
        ({"image_teacher": "timm:nosuch"}, "--image-teacher 'timm:nosuch' cannot be had"),
        ({"bank_texts": __file__[:-3] + ".nowhere"}, "--bank-texts .* cannot be read"),
        *(
            ({"architecture": json.dumps({"model_cfg": {}, "preprocess_cfg": pixels})}, message)
            for pixels, message in (
                ({"mean": [0.5, 0.5]}, "--architecture.* three numbers"),
                ({"std": [0, 0.5, 0.5]}, "--architecture.* positive"),
                ({"interpolation": "random"}, "--architecture.* interpolation is 'random'"),
                ({"resize_mode": "longest"}, "--architecture.* resize_mode is 'longest'"),
            )
        ),
    ],
)
def test_a_model_that_cannot_be_trained_so_is_refused_by_name(
    shard, tmp_path, monkeypatch, changes, message
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ValueError, OSError), match=message) as found:
        prepared(shard, tmp_path, **{"captions": "text", "resolution": 0, **changes}).step()
    assert len(str(found.value).splitlines()) == 1


def test_an_architecture_may_be_a_name_of_open_clip(shard, tmp_path) -> None:
    given = options(shard, tmp_path, architecture="ViT-S-32-alt", resolution=0)
    trainer, config, _, _ = setup.prepare(given)
    assert config["vision_cfg"]["width"] == 384 and trainer.resolution == 224
