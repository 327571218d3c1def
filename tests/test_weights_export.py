"""What is written loads elsewhere with the same features, and comes back bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import weights_helpers as helpers
from safetensors.torch import load_file

from clipag_plug import load
from clipag_plug.options.tools import FORMATS, Export
from clipag_plug.weights import export, open_checkpoint, opening, registry
from clipag_plug.weights.export import card_text
from clipag_plug.weights.opening import Opened, card_of
from clipag_plug.weights.registry import BadFileError


def opened(quick_gelu: bool = False, small: bool = False, **known: Any) -> Opened:
    base = helpers.SMALL if small else helpers.B32
    record = registry.Checkpoint(
        "my/robust model",
        "custom",
        quick_gelu,
        resolution=base["vision_cfg"]["image_size"],
        **known,
    )
    return Opened(
        record,
        helpers.config(quick_gelu, base),
        helpers.weights(quick_gelu, small),
        card_of(record),
    )


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_loads_the_folder_and_so_do_we(tmp_path: Path, quick_gelu: bool) -> None:
    import open_clip

    export.save_pretrained(opened(quick_gelu), tmp_path)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    helpers.assert_same_features(theirs.eval(), helpers.reference(quick_gelu))
    assert tuple(preprocess.transforms[-1].mean) == registry.OPENAI_MEAN
    helpers.assert_same_features(
        load(f"local-dir:{tmp_path}", device="cpu")[0], helpers.reference(quick_gelu)
    )


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_transformers_loads_the_folder_and_what_it_saves_comes_back(
    tmp_path: Path, quick_gelu: bool
) -> None:
    import transformers

    export.save_pretrained(opened(quick_gelu), tmp_path / "a", "transformers")
    hf = transformers.CLIPModel.from_pretrained(tmp_path / "a").eval()
    images, tokens = helpers.inputs()
    with torch.no_grad():
        image, text = hf.get_image_features(images), hf.get_text_features(tokens)
    wanted = helpers.features(helpers.reference(quick_gelu))
    for mine, theirs in zip(wanted, (image, text), strict=True):
        # transformers multiplies q, k and v one by one, which rounds differently.
        torch.testing.assert_close(
            getattr(theirs, "pooler_output", theirs), mine, atol=1e-5, rtol=1e-5
        )
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "a")
    assert processor.crop_size == {"height": 224, "width": 224}
    hf.save_pretrained(tmp_path / "b")
    helpers.assert_same_features(
        load(f"local-dir:{tmp_path / 'b'}", device="cpu")[0], helpers.reference(quick_gelu)
    )


def test_openai_state_dict_round_trip(tmp_path: Path) -> None:
    _, file, readme = export.save_pretrained(opened(True), tmp_path, "openai")
    assert file.name == "robust-model.pt"
    state = torch.load(file, weights_only=True)
    assert state.keys() == helpers.weights().keys()
    helpers.assert_same_features(
        load(f"{file}#quickgelu", device="cpu")[0], helpers.reference(True)
    )
    assert "#quickgelu" in readme.read_text()


def test_openai_layout_refuses_what_openai_would_get_wrong(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="needs GELU and OpenAI's clip always computes QuickGELU.*--any-activation"
    ):
        export.save_pretrained(opened(False, small=True), tmp_path, "openai")
    assert list(tmp_path.iterdir()) == []
    export.save_pretrained(opened(False, small=True), tmp_path, "openai", any_activation=True)
    wide = opened(True, small=True)
    wide.config["vision_cfg"]["head_width"] = 32
    with pytest.raises(ValueError, match="would misread"):
        export.save_pretrained(wide, tmp_path, "openai")


def test_transformers_layout_refuses_what_it_cannot_express(tmp_path: Path) -> None:
    model = opened(small=True)
    model.config["text_cfg"]["pool_type"] = "last"
    with pytest.raises(ValueError, match="this model has pool_type"):
        export.save_pretrained(model, tmp_path, "transformers")
    squashing = opened(small=True, resize_mode="squash")
    with pytest.raises(ValueError, match="squash"):
        export.save_pretrained(squashing, tmp_path, "transformers")


def test_bundled_layout_round_trip_in_fp16(tmp_path: Path) -> None:
    export.save_pretrained(opened(True, small=True), tmp_path, "bundled")
    again = open_checkpoint(f"local-dir:{tmp_path}")
    assert again.config == helpers.config(True, helpers.SMALL)
    for name, value in helpers.weights(True, small=True).items():
        wanted = value.half().float() if value.ndim > 1 else value
        assert torch.equal(again.state_dict[name], wanted), name


@pytest.mark.parametrize("format", FORMATS)
def test_models_with_their_own_tower_go_into_our_layout_only(tmp_path: Path, format: str) -> None:
    model = opened(small=True)
    model.config["vision_cfg"] = {"mini": {"widths": [8]}, "image_size": 224}
    if format == "bundled":
        assert export.save_pretrained(model, tmp_path, format)
    else:
        with pytest.raises(ValueError, match="--format bundled"):
            export.save_pretrained(model, tmp_path, format)


def test_card_tells_the_attack_and_the_accuracies() -> None:
    record = registry.find("fare4-b32-laion")
    text = card_text(Opened(record, helpers.config(), {}, card_of(record)), "open_clip", "me/mine")
    for part in (
        "license: mit",
        "linf 4/255",
        "ImageNet-1k",
        "| clean | 53.8 |",
        "| attacked, linf 2/255 | 35.5 |",
        'create_model_and_transforms("hf-hub:me/mine")',
        "arXiv:2402.12336",
        "| Activation | GELU |",
    ):
        assert part in text
    unknown = registry.Checkpoint("x", method="unknown")
    text = card_text(Opened(unknown, helpers.config(True), {}, card_of(unknown)), "transformers")
    assert (
        "not known" in text
        and "No clean or robust accuracy is recorded" in text
        and "license:" not in text
    )


def test_command_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = helpers.save(tmp_path / "w.pt", helpers.weights(small=True))
    arch = helpers.arch(tmp_path, small=True)
    assert export.run(Export(f"{source}#gelu,{arch}", str(tmp_path / "out"))) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.name for path in written} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "README.md",
    }
    assert all(path.is_file() for path in written)


def test_upload_is_one_commit_of_the_whole_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[Any] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            calls.append(token)

        def create_repo(self, repository: str, **keywords: Any) -> Any:
            calls.append((repository, keywords))
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repository}")

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            calls.append((repo_id, {path.name for path in folder_path.iterdir()}))
            config = json.loads((folder_path / "open_clip_config.json").read_text())
            assert config["model_cfg"] == helpers.config(False, helpers.SMALL)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE"):
        export.push_to_hub(opened(small=True), "me/mine")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    address = export.push_to_hub(opened(small=True), "me/mine", private=True, token="t")
    assert address == "https://huggingface.co/me/mine"
    files = {"open_clip_config.json", "open_clip_model.safetensors", "README.md"}
    assert calls == ["t", ("me/mine", {"private": True, "exist_ok": True}), ("me/mine", files)]


def mini_pair() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base = {
        "visual.conv1.weight": torch.randn(8, 3, 4, 4, generator=generator),
        "visual.bn1.running_var": torch.full((8,), 1e-9),
        "visual.bn1.num_batches_tracked": torch.tensor(7),
        "token_embedding.weight": torch.zeros(1000, 16),
        "text_projection": torch.randn(16, 8, generator=generator),
        "logit_scale": torch.tensor(2.6592),
    }
    base["token_embedding.weight"][[3, 500, 999]] = torch.randn(3, 16, generator=generator)
    derived = {name: value.clone() for name, value in base.items()}
    derived["visual.conv1.weight"] += 1
    derived["logit_scale"] += 0.5
    return base, derived


def test_bundled_pair_shares_its_text_tower_and_leaves_empty_rows_out(tmp_path: Path) -> None:
    base, derived = mini_pair()
    config = {"embed_dim": 8, "vision_cfg": {"mini": {}}, "text_cfg": {}}
    export.write_bundled(tmp_path / "one", base, config, {"name": "one"})
    export.write_bundled(
        tmp_path / "two.safetensors", derived, config, {"name": "two"}, shares_text_with="one"
    )
    stored = load_file(tmp_path / "one.safetensors")
    assert stored["token_embedding.weight.rows"].shape == (3, 16)
    assert stored["token_embedding.weight.index"].tolist() == [3, 500, 999]
    assert stored["visual.conv1.weight"].dtype == torch.float16
    assert set(load_file(tmp_path / "two.safetensors")) == {
        "visual.conv1.weight",
        "visual.bn1.running_var",
        "visual.bn1.num_batches_tracked",
        "logit_scale",
    }
    for path, wanted in (("one", base), ("two", derived)):
        state, again, card = opening.read_bundled(tmp_path / f"{path}.safetensors")
        assert (again, card) == (config, {"name": path})
        assert state.keys() == wanted.keys()
        for name, value in wanted.items():
            expected = value.half().float() if value.ndim > 1 else value
            assert torch.equal(state[name], expected), name
            assert state[name].dtype == value.dtype


def test_bundled_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base, derived = mini_pair()
    config = {"embed_dim": 8, "vision_cfg": {"mini": {}}, "text_cfg": {}}
    export.write_bundled(tmp_path / "one", base, config, {})
    del derived["text_projection"]
    with pytest.raises(ValueError, match="text_projection.*cannot share"):
        export.write_bundled(tmp_path / "two", derived, config, {}, shares_text_with="one")
    about = json.loads((tmp_path / "one.json").read_text())
    for change in (
        {"packed": {"token_embedding.weight": [900, 16]}},
        {"packed": {"other": [10, 16]}},
        {"packed": {"token_embedding.weight": [10**12, 16]}},
        {"shares_text_with": "../one"},
        {"shares_text_with": "one"},
        {"config": None},
    ):
        (tmp_path / "one.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(BadFileError):
            opening.read_bundled(tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="exceeds what fp16 can hold"):
        export.write_bundled(tmp_path / "big", {"w": torch.full((2, 2), 1e6)}, config, {})
    with pytest.raises(ValueError, match="not finite"):
        export.write_bundled(tmp_path / "nan", {"w": torch.full((2,), float("nan"))}, config, {})
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        opening.read_bundled(tmp_path / "nowhere.safetensors")


def test_a_run_folder_opens_by_folder_and_by_file(tmp_path: Path) -> None:
    """What the trainer writes: model.safetensors in fp32 and model.json with config and card."""
    from safetensors.torch import save_file

    save_file(helpers.weights(small=True), tmp_path / "model.safetensors")
    card = {"name": "mine", "norm": "l2", "eps": 1.5}
    (tmp_path / "model.json").write_text(
        json.dumps({"config": helpers.config(False, helpers.SMALL), "card": card})
    )
    for name in (f"local-dir:{tmp_path}", str(tmp_path / "model.safetensors")):
        found = open_checkpoint(name)
        assert found.card["name"] == "mine"
        assert (found.record.norm, found.record.eps) == ("l2", 1.5)
        assert torch.equal(
            found.state_dict["visual.proj"], helpers.weights(small=True)["visual.proj"]
        )
    model = replace(found.record, key="again")
    assert model.resolution == 64
