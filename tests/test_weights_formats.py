"""Every kind of weight file gives the features of the model it was made from, bit for bit, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import weights_helpers as helpers
from safetensors.torch import save_file
from torch import Tensor

from clipag_plug import load
from clipag_plug.weights import layouts, open_checkpoint
from clipag_plug.weights.registry import BadFileError


def opened(name: str) -> Any:
    return load(name, device="cpu")[0]


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def training_file(state: dict[str, Tensor]) -> dict[str, Any]:
    """What open_clip's trainer saves, the moments of the optimiser included."""
    moments = {
        i: {"step": torch.tensor(3.0), "exp_avg": value} for i, value in enumerate(state.values())
    }
    return {
        "epoch": 3,
        "name": "run",
        "state_dict": state,
        "optimizer": {
            "state": moments,
            "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.98), "params": [0, 1]}],
        },
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        "training dict",
        "training dict under DistributedDataParallel",
        "bare",
        "module prefix",
        "parameters",
        "openai state dict",
        "safetensors",
    ],
)
def test_whole_models(tmp_path: Path, layout: str, quick_gelu: bool) -> None:
    state = helpers.weights(quick_gelu)
    path = str(tmp_path / "weights.pt")
    if layout == "safetensors":
        save_file(state, path)  # its suffix lies: the contents decide
    else:
        value: Any = {
            "training dict": training_file(state),
            "training dict under DistributedDataParallel": training_file(
                prefixed("module.", state)
            ),
            "bare": state,
            "module prefix": prefixed("module.", state),
            "parameters": {name: torch.nn.Parameter(value) for name, value in state.items()},
            "openai state dict": {
                **state,
                "input_resolution": torch.tensor(224),
                "context_length": torch.tensor(77),
                "vocab_size": torch.tensor(49408),
            },
        }[layout]
        helpers.save(Path(path), value)
    model = opened(f"{path}#{'quickgelu' if quick_gelu else 'gelu'}")
    helpers.assert_same_features(model, helpers.reference(quick_gelu))
    assert model.visual.input_resolution == 224


@pytest.mark.parametrize("layout", ["bare", "vision_encoder_state_dict", "visual prefix"])
def test_image_tower_alone_takes_the_text_tower_of_the_stated_base(
    tmp_path: Path, layout: str
) -> None:
    base = helpers.weights(True)
    tower = {
        name.removeprefix("visual."): value
        for name, value in base.items()
        if name.startswith("visual.")
    }
    other = {
        name: value if name.startswith("visual.") else value + 1 for name, value in base.items()
    }
    changed = {
        name: value * 1.5 if name == "class_embedding" else value for name, value in tower.items()
    }
    value = {
        "bare": changed,
        "vision_encoder_state_dict": {"vision_encoder_state_dict": changed, "epoch": 1},
        "visual prefix": prefixed("visual.", changed),
    }[layout]
    path = helpers.save(tmp_path / "tower.pth.tar", value)
    text = tmp_path / "base.safetensors"
    save_file(other, text)
    folder = open_clip_folder(tmp_path / "base", other, True)
    model = opened(f"{path}#text=local-dir:{folder}")
    expected = helpers.weights(True)
    expected = {**other, **prefixed("visual.", changed)}
    net = build_open_clip(expected, True)
    helpers.assert_same_features(model, net)
    with pytest.raises(BadFileError, match="no text tower.*text=openai/ViT-B/32"):
        open_checkpoint(f"{path}#quickgelu")


def build_open_clip(state: dict[str, Tensor], quick_gelu: bool) -> Any:
    import open_clip

    net = open_clip.CLIP(**helpers.config(quick_gelu)).eval()
    net.load_state_dict(state)
    return net


def open_clip_folder(folder: Path, state: dict[str, Tensor], quick_gelu: bool) -> Path:
    folder.mkdir()
    config = helpers.config(quick_gelu)
    if not quick_gelu:
        del config["quick_gelu"]  # as in LAION's repositories: absent means GELU
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_folder_states_its_own_activation(tmp_path: Path, quick_gelu: bool) -> None:
    folder = open_clip_folder(tmp_path / "m", helpers.weights(quick_gelu), quick_gelu)
    helpers.assert_same_features(opened(f"local-dir:{folder}"), helpers.reference(quick_gelu))
    helpers.assert_same_features(
        opened(str(folder / "open_clip_model.safetensors")), helpers.reference(quick_gelu)
    )


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("half", [False, True])
def test_torchscript_is_read_without_running_it(tmp_path: Path, half: bool) -> None:
    """Traced like OpenAI's own archives, fp16 ones included; `torch.jit.load` is never called."""
    import copy

    net = copy.deepcopy(helpers.reference(True))
    images, tokens = helpers.inputs()
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        vars(net).pop(name, None)
        net.register_buffer(name, torch.tensor(value))
    traced = torch.jit.trace_module(
        net, {"encode_image": images, "encode_text": tokens}, check_trace=False
    )
    expected = helpers.weights(True)
    if half:
        traced = traced.half()
        expected = {name: value.half().float() for name, value in expected.items()}
    path = tmp_path / "ViT-B-32.pt"
    traced.save(str(path))
    model = opened(f"{path}#quickgelu")
    helpers.assert_same_features(model, build_open_clip(expected, True))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_transformers_folder(tmp_path: Path, quick_gelu: bool) -> None:
    """A folder that transformers itself writes."""
    import transformers

    from clipag_plug.weights import configs

    whole = configs.to_transformers(helpers.config(quick_gelu))
    hf = transformers.CLIPModel(transformers.CLIPConfig.from_dict(whole)).eval()
    state = layouts.to_transformers(helpers.weights(quick_gelu))
    assert not hf.load_state_dict(state, strict=False).unexpected_keys
    hf.save_pretrained(tmp_path / "hf")
    model = opened(f"local-dir:{tmp_path / 'hf'}")
    helpers.assert_same_features(model, helpers.reference(quick_gelu))


def test_renaming_to_transformers_and_back_is_the_identity() -> None:
    state = helpers.weights()
    back = layouts.from_transformers(layouts.to_transformers(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_unknown_activation_is_an_error_that_shows_both_ways_out(tmp_path: Path) -> None:
    path = helpers.save(tmp_path / "w.pt", helpers.weights(small=True))
    with pytest.raises(ValueError, match="GELU or QuickGELU.*w.pt#gelu.*w.pt#quickgelu"):
        open_checkpoint(path)
    assert open_checkpoint(path, quick_gelu=True).config["quick_gelu"] is True
    assert open_checkpoint(f"{path}#gelu").config["quick_gelu"] is False


def test_statements_that_the_file_contradicts_are_refused(tmp_path: Path) -> None:
    """What the caller says is used or refused, never dropped."""
    path = helpers.save(tmp_path / "w.pt", helpers.weights(small=True))
    with pytest.raises(ValueError, match="has a text tower of its own"):
        open_checkpoint(f"{path}#gelu,text=openai/ViT-B/32")
    folder = open_clip_folder(tmp_path / "m", helpers.weights(True), True)
    with pytest.raises(ValueError, match="has a config of its own"):
        open_checkpoint(f"local-dir:{folder}#arch=ViT-B-32")


def test_both_activations_differ_so_the_choice_matters(tmp_path: Path) -> None:
    path = helpers.save(tmp_path / "w.pt", helpers.weights())
    gelu, quick = (helpers.features(opened(f"{path}#{word}"))[0] for word in ("gelu", "quickgelu"))
    assert not torch.allclose(gelu, quick, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.ln_post.bias"), "1 missing: visual.ln_post.bias"),
        (lambda s: s.update({"visual.prompt": torch.zeros(3)}), "1 unexpected: visual.prompt"),
        (
            lambda s: s.update({"ln_final.bias": torch.zeros(3)}),
            r"ln_final.bias is \(3,\), not \(64,\)",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: Any, message: str) -> None:
    state = helpers.weights(small=True)
    change(state)
    path = helpers.save(tmp_path / "w.pt", state)
    with pytest.raises(BadFileError, match=message):
        open_checkpoint(f"{path}#gelu")


def test_architecture_is_told_from_shapes_or_stated(tmp_path: Path) -> None:
    path = helpers.save(tmp_path / "w.pt", helpers.weights(small=True))
    found = open_checkpoint(f"{path}#gelu").config
    assert found == helpers.config(False, helpers.SMALL)
    with pytest.raises(BadFileError, match="not those of its architecture"):
        open_checkpoint(f"{path}#gelu,arch=ViT-B-32")
    with pytest.raises(ValueError, match="no architecture 'ViT-Z'"):
        open_checkpoint(f"{path}#gelu,arch=ViT-Z")


def test_heads_are_those_of_the_known_architecture_with_these_shapes() -> None:
    from clipag_plug.weights.check import shapes

    from clipag_plug.weights import configs

    # ViT-H/14 has heads of 80 channels, which no shape shows.
    wanted = configs.named("ViT-H-14")
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes(wanted).items()}
    assert configs.from_shapes("h14", state) == wanted


def test_tensors_of_a_local_file_are_mapped_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(helpers.weights(), path)
    first, second = (
        open_checkpoint(f"{path}#gelu").state_dict["visual.conv1.weight"] for _ in range(2)
    )
    before = path.read_bytes()
    first.add_(1)  # a private page: neither the file nor another load sees it
    assert path.read_bytes() == before
    assert not torch.equal(first, second)


def test_a_convnext_checkpoint_of_open_clip_needs_its_architecture_said(tmp_path: Path) -> None:
    state = {
        "visual.trunk.stem.0.weight": torch.zeros(3),
        "visual.head.proj.weight": torch.zeros(3),
        "token_embedding.weight": torch.zeros(3, 3),
    }
    path = helpers.save(tmp_path / "w.pt", state)
    with pytest.raises(BadFileError, match="state it, for example"):
        open_checkpoint(f"{path}#gelu")
    with pytest.raises(BadFileError, match="missing: .*visual.trunk.stem.0.bias|missing"):
        open_checkpoint(f"{path}#gelu,arch=convnext_base_w")
