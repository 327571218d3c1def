"""Every kind of weight file gives the tensors it was made from, bit for bit, or is refused for a stated reason."""

from __future__ import annotations

import argparse
import collections
import copy
import json
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import weights_helpers as helpers
from safetensors.torch import save_file
from torch import Tensor

from clipag_plug import load
from clipag_plug.train.state import save_model
from clipag_plug.weights import configs, layouts, open_checkpoint
from clipag_plug.weights.registry import BadFileError

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def training(state: State, **more: Any) -> dict[str, Any]:
    """What open_clip's trainer saves, the moments of the optimiser included."""
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": v} for i, v in enumerate(state.values())}
    groups = [{"lr": 1e-5, "betas": (0.9, 0.98), "params": [0, 1]}]
    optimizer = {"state": moments, "param_groups": groups}
    return {
        "epoch": 3,
        "state_dict": state,
        "optimizer": optimizer,
        "scaler": {"scale": 2.0},
        **more,
    }


def flat(state: State) -> State:
    """All in one block, as sharded training keeps them."""
    whole = torch.cat([value.reshape(-1) for value in state.values()])
    parts = whole.split([value.numel() for value in state.values()])
    return {n: part.view(v.shape) for (n, v), part in zip(state.items(), parts, strict=True)}


def endless(state: State) -> dict[str, Any]:
    table: dict[str, Any] = {"state_dict": state}
    table["self"] = table
    nest: list[Any] = []
    for _ in range(60):
        nest = [nest, nest]
    return {**table, "nest": nest}


def described(state: State) -> State:
    ordered = collections.OrderedDict(state)
    ordered._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as Module.state_dict() has
    return ordered


def compiled(state: State) -> State:
    names = {n: n.replace("visual.", "visual._orig_mod.") for n in state}
    return {
        names[n].replace("resblocks.0.", "resblocks.0._fsdp_wrapped_module."): v
        for n, v in state.items()
    }


PREFIXES = """module. _orig_mod. model. clip. clip_model. net. model._orig_mod. model.module. module.model.
    _orig_mod.module. backbone.clip. student.""".split()  # noqa: SIM905
WHOLE: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    **{f"prefix {p}": lambda s, p=p: prefixed(p, s) for p in PREFIXES},
    **{f"in {k}": lambda s, k=k: {k: s, "epoch": 1} for k in ("state_dict", "model", "module", "weights", "ema")},
    "training file": training,
    "training file of DDP": lambda s: training(prefixed("module.", s)),
    "parameters": lambda s: {n: torch.nn.Parameter(v) for n, v in s.items()},
    "ordered, with metadata": lambda s: described(s),
    "openai's scalars": lambda s: {**s, "input_resolution": torch.tensor(64), "vocab_size": torch.tensor(9)},
    "namespace": lambda s: training(s, args=argparse.Namespace(lr=1e-4, out=pathlib.Path("x"))),
    "numpy scalars": lambda s: training(s, best=np.float64(0.5), step=np.int64(3), order=np.arange(3)),
    "lightning": lambda s: {
        "state_dict": {**prefixed("model.", s), "loss.weight": torch.ones(3), "model.criterion.scale": torch.ones(1)},
        "hyper_parameters": {"args": argparse.Namespace(a={1, 2})},
        "callbacks": {"best": collections.defaultdict(list)},
    },
    "average beside": lambda s: {"model": s, "model_ema": other(s)},
    "average inside": lambda s: {**prefixed("module.", s), "n_averaged": torch.tensor(3)},
    "teacher beside": lambda s: prefixed("student.", s) | prefixed("teacher.", other(s)),
    "optimiser by names": lambda s: {"model": s, "optimizer": {"state": {n: {"exp_avg": v} for n, v in s.items()}}},
    "aliased tables": lambda s: {"model": s, "state_dict": s},
    "aliased tensors": lambda s: {**s, "ln_final.bias": s["ln_final.bias"], "text_projection": s["text_projection"]},
    "one block": flat,
    "strided": lambda s: {n: v.t().contiguous().t() if v.ndim == 2 else v for n, v in s.items()},
    "compiled parts": compiled,
    "computed tensors": lambda s: {**s, "transformer.position_ids": torch.arange(3), "attn_mask": torch.ones(1)},
    "logit scale of one number": lambda s: {**s, "logit_scale": s["logit_scale"].reshape(1)},
    "self-reference and shared lists": endless,
    "fp64": lambda s: {n: v.double() for n, v in s.items()},
}  # fmt: skip


def equal(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    starts = [value.data_ptr() for value in found.values()]
    assert len(set(starts)) == len(starts)  # no two share memory


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", list(WHOLE))
def test_whole_models(tmp_path: Path, layout: str, old: bool) -> None:
    wanted = helpers.weights(small=True)
    path = tmp_path / "w#1.pt"
    value = WHOLE[layout](helpers.weights(small=True))
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    found = open_checkpoint(f"{path}#gelu,{helpers.arch(tmp_path, small=True)}")
    equal(found.state_dict, wanted)
    assert found.config == helpers.config(False, helpers.SMALL)


@pytest.mark.parametrize(
    "kinds", [(torch.float16,), (torch.bfloat16,), (torch.float16, torch.float32)]
)
def test_mixed_precisions_become_fp32(tmp_path: Path, kinds: tuple[torch.dtype, ...]) -> None:
    state = {
        n: v.to(kinds[i % len(kinds)])
        for i, (n, v) in enumerate(helpers.weights(small=True).items())
    }
    torch.save(state, tmp_path / "w.pt")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        found = open_checkpoint(f"{tmp_path / name}#gelu,{helpers.arch(tmp_path, small=True)}")
        equal(found.state_dict, {n: v.float() for n, v in state.items()})


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "two models": (lambda s: {"a": s, "b": other(s)}, "holds 2 models"),
    "two wrappers of one name": (lambda s: {**s, **prefixed("module.", other(s))}, "two tensors for"),
    "adapter": (lambda s: {**s, "visual.lora_A": torch.ones(3)}, "unexpected: visual.lora_A"),
    "shape": (lambda s: {**s, "ln_final.bias": torch.ones(3)}, r"ln_final.bias is \(3,\)"),
    "integers": (lambda s: {**s, "visual.proj": s["visual.proj"].to(torch.int8)}, "visual.proj.*int8"),
    "missing": (lambda s: {n: v for n, v in s.items() if n != "visual.ln_post.bias"}, "missing: visual.ln_post.bias"),
    "no image tower": (lambda s: {n: v for n, v in s.items() if "visual" not in n}, "no image tower"),
    "no text tower": (lambda s: {n: v for n, v in s.items() if "visual" in n}, "no text tower.*text="),
    "nothing": (lambda s: {"epoch": 3}, "holds no tensors"),
    "a list": (lambda s: list(s.values()), "holds no tensors"),
    "complex numbers": (lambda s: {**s, "visual.proj": s["visual.proj"] + 1j}, "complex"),
}  # fmt: skip


@pytest.mark.parametrize("layout", list(REFUSED))
def test_what_cannot_be_right_is_refused_with_its_reason(tmp_path: Path, layout: str) -> None:
    make, reason = REFUSED[layout]
    path = helpers.save(tmp_path / "w.pt", make(helpers.weights(small=True)))
    with pytest.raises(BadFileError, match=reason):
        open_checkpoint(f"{path}#gelu,{helpers.arch(tmp_path, small=True)}")


def test_heads_are_stated_or_refused_and_never_guessed(tmp_path: Path) -> None:
    """A model of width 64 with two heads in its text tower has the shapes of one with one head."""
    path = helpers.save(tmp_path / "w.pt", helpers.weights(small=True))
    with pytest.raises(BadFileError, match="heads leave no trace.*arch=CONFIG.json"):
        open_checkpoint(f"{path}#gelu")
    with pytest.raises(BadFileError, match="not those of its architecture"):
        open_checkpoint(f"{path}#gelu,arch=ViT-B-32")
    with pytest.raises(ValueError, match="no architecture 'ViT-Z'"):
        open_checkpoint(f"{path}#gelu,arch=ViT-Z")
    two = helpers.config(False, helpers.SMALL)
    two["text_cfg"]["heads"], two["vision_cfg"]["head_width"] = 2, 32
    (tmp_path / "two.json").write_text(json.dumps({"model_cfg": two}))
    model, _ = load(f"{path}#gelu,arch={tmp_path / 'two.json'}", device="cpu")
    helpers.assert_same_features(model, helpers.build(helpers.weights(small=True), two), small=True)


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_known_architectures_are_told_from_all_their_shapes(name: str) -> None:
    state = {n: torch.empty(shape) for n, shape in configs.shapes("x", configs.named(name)).items()}
    assert configs.infer("x", state)[0] == name


def test_pixels_of_an_architecture_that_is_no_clip() -> None:
    assert configs.published("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert configs.published("ViT-B-32")["resize_mode"] == "shortest"


def test_a_separate_text_tower_with_bias(tmp_path: Path) -> None:
    """SigLIP's kind in open_clip: its own text module, a projection with bias, a bias of the logits."""
    import open_clip

    config = helpers.config(False, helpers.SMALL)
    config |= {"custom_text": True, "init_logit_bias": -10.0}
    config["text_cfg"] |= {"proj_bias": True, "no_causal_mask": True, "pool_type": "last"}
    kind = {name: value for name, value in config.items() if name != "custom_text"}
    net = open_clip.CustomTextCLIP(**kind).eval()
    save_file(net.state_dict(), tmp_path / "open_clip_model.safetensors")
    about = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    model, transform = load(f"local-dir:{tmp_path}", device="cpu")
    helpers.assert_same_features(model, net, small=True)
    assert model.mean == (0.5, 0.5, 0.5) and tuple(transform.transforms[-1].std) == (0.5,) * 3


@pytest.mark.parametrize(
    "layout", ["bare", "vision_encoder_state_dict", "visual.", "image_encoder."]
)
def test_image_tower_alone_takes_text_and_pixels_of_the_stated_base(
    tmp_path: Path, layout: str
) -> None:
    state = other(helpers.weights(small=True))
    folder = open_clip_folder(tmp_path / "base", state, True, {"mean": [0.5] * 3, "std": [0.2] * 3})
    visual = {n: v for n, v in helpers.weights(small=True).items() if n.startswith("visual.")}
    tower = {n.removeprefix("visual."): v for n, v in visual.items()}
    value: Any = {"bare": tower, "vision_encoder_state_dict": {layout: tower}}.get(layout)
    path = helpers.save(tmp_path / "tower.pt", value or prefixed(layout, tower))
    found = open_checkpoint(f"{path}#text=local-dir:{folder}")
    equal(found.state_dict, {**state, **visual})
    assert found.config["quick_gelu"] is True and found.record.mean == (0.5,) * 3
    assert found.card["std"] == (0.2,) * 3


def open_clip_folder(
    folder: Path, state: State, quick_gelu: bool, preprocess: dict[str, Any] | None = None
) -> Path:
    folder.mkdir()
    config = helpers.config(quick_gelu, helpers.SMALL)
    if not quick_gelu:
        del config["quick_gelu"]  # as in LAION's repositories: absent means GELU
    about = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_folder_states_its_own_activation(tmp_path: Path, quick_gelu: bool) -> None:
    folder = open_clip_folder(tmp_path / "m", helpers.weights(quick_gelu, True), quick_gelu)
    for name in (f"local-dir:{folder}", str(folder / "open_clip_model.safetensors")):
        model = load(name, device="cpu")[0]
        helpers.assert_same_features(model, helpers.reference(quick_gelu, True), small=True)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("half", [False, True])
def test_torchscript_is_read_without_running_it(tmp_path: Path, half: bool) -> None:
    """Traced like OpenAI's own archives, fp16 ones included; `torch.jit.load` is never called."""
    net = copy.deepcopy(helpers.reference(True, True))
    images, tokens = helpers.inputs(small=True)
    for name, value in (("input_resolution", 64), ("context_length", 8), ("vocab_size", 300)):
        vars(net).pop(name, None)
        net.register_buffer(name, torch.tensor(value))
    methods = {"encode_image": images, "encode_text": tokens}
    traced = torch.jit.trace_module(net, methods, check_trace=False)
    (traced.half() if half else traced).save(str(tmp_path / "w.pt"))
    found = open_checkpoint(f"{tmp_path / 'w.pt'}#quickgelu,{helpers.arch(tmp_path, small=True)}")
    state = helpers.weights(True, True)
    equal(found.state_dict, {n: v.half().float() if half else v for n, v in state.items()})


PIXELS = {
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.2, 0.3],
    "resample": 2,
    "do_center_crop": True,
}


@pytest.mark.parametrize("shards", ["10GB", "100KB"])
def test_transformers_folders_and_their_pixels(tmp_path: Path, shards: str) -> None:
    import transformers

    whole = configs.to_transformers(helpers.config(True, helpers.SMALL))
    hf = transformers.CLIPModel(transformers.CLIPConfig.from_dict(whole)).eval()
    hf.load_state_dict(layouts.to_transformers(helpers.weights(True, True)), strict=False)
    hf.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shards == "100KB")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    model, _ = load(f"local-dir:{tmp_path}", device="cpu")
    helpers.assert_same_features(model, helpers.reference(True, True), small=True)
    found = open_checkpoint(f"local-dir:{tmp_path}").record
    assert (
        (found.mean, found.interpolation)
        == ((0.5, 0.4, 0.3), "bilinear")
        == (model.mean, "bilinear")
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_std": [0, 1, 1]}, "std"),
        ({"image_mean": [0.5]}, "mean"),
        ({"rescale_factor": 1.0}, "scaled"),
        ({"resample": 7}, "interpolation"),
    ],
)
def test_pixels_that_cannot_be_made_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadFileError, match=reason):
        configs.preprocessing("x", {**PIXELS, **change})
    with pytest.raises(BadFileError, match="resize_mode"):
        configs.preprocessing("x", {"resize_mode": "longest"})


@pytest.mark.parametrize("projected", [True, False])
def test_vision_model_of_transformers(tmp_path: Path, projected: bool) -> None:
    """Its text tower comes from the stated base; without a projection nothing says how it meets the text."""
    state = helpers.weights(True, True)
    base = open_clip_folder(tmp_path / "base", state, True)
    whole = configs.to_transformers(helpers.config(True, helpers.SMALL))
    theirs = layouts.to_transformers(
        {n: v * 2 for n, v in state.items() if n.startswith("visual.")}
    )
    if not projected:
        del theirs["visual_projection.weight"]
    folder = tmp_path / "vision"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(whole["vision_config"]))
    save_file({n: v.contiguous() for n, v in theirs.items()}, folder / "model.safetensors")
    name = f"local-dir:{folder}#text=local-dir:{base}"
    if not projected:
        with pytest.raises(BadFileError, match="missing: visual.proj"):
            open_checkpoint(name)
        return
    equal(
        open_checkpoint(name).state_dict,
        {n: v * 2 if n.startswith("visual.") else v for n, v in state.items()},
    )


def test_a_fine_tuned_bundled_model_saved_by_torch(tmp_path: Path) -> None:
    model, _ = load("clipag-mini", device="cpu")
    with torch.no_grad():
        model.visual.proj.weight.mul_(1.5)
    path = helpers.save(tmp_path / "mine.pt", model.state_dict())
    again, _ = load(path, device="cpu")
    equal(dict(again.state_dict()), dict(model.state_dict()))
    assert load(f"{path}#arch=clipag-mini", device="cpu")[0].mean == model.mean


def test_a_stopped_run(tmp_path: Path) -> None:
    """`checkpoint.safetensors`: weights, their moving average, which is the result, and an optimiser."""
    state = helpers.weights(small=True)
    average = {"visual.proj": state["visual.proj"] + 1}
    tensors = {
        **prefixed("weights/", state),
        **prefixed("average/", average),
        "optimizer/0/exp_avg": torch.ones(2),
    }
    save_file(tensors, tmp_path / "checkpoint.safetensors", {"state": "{}"})
    found = open_checkpoint(f"local-dir:{tmp_path}#gelu,{helpers.arch(tmp_path, small=True)}")
    equal(found.state_dict, {**state, **average})
    stopped = {
        "weights": state,
        "average": average,
        "optimizer": {"state": {}, "exp": torch.ones(1)},
    }
    torch.save(stopped, tmp_path / "checkpoint-00000007.pt")
    (tmp_path / "checkpoint.safetensors").unlink()
    (tmp_path / "recipe.json").write_text(json.dumps({"architecture": json.dumps(helpers.SMALL)}))
    found = open_checkpoint(f"local-dir:{tmp_path}")
    equal(found.state_dict, {**state, **average})
    assert found.config["quick_gelu"] is False
    pixels = {"name": "start", "mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "start").mkdir()
    save_model(tmp_path / "start", state, {**helpers.SMALL, "quick_gelu": False}, pixels)
    (tmp_path / "recipe.json").write_text(json.dumps({"init": str(tmp_path / "start")}))
    found = open_checkpoint(str(tmp_path / "checkpoint-00000007.pt"))
    equal(found.state_dict, {**state, **average})
    assert found.record.mean == (0.5,) * 3, "of the run's folder that it started from"


def test_renaming_to_transformers_and_back_is_the_identity() -> None:
    state = helpers.weights()
    equal(layouts.unify(layouts.to_transformers(state)), state)


def test_statements_are_used_or_refused(tmp_path: Path) -> None:
    path = helpers.save(tmp_path / "w.pt", helpers.weights())
    arch = helpers.arch(tmp_path)
    with pytest.raises(ValueError, match="GELU or QuickGELU.*w.pt#gelu.*w.pt#quickgelu"):
        open_checkpoint(f"{path}#{arch}")
    gelu, quick = (load(f"{path}#{word},{arch}", "cpu")[0] for word in ("gelu", "quickgelu"))
    helpers.assert_same_features(gelu, helpers.reference(False))
    helpers.assert_same_features(quick, helpers.reference(True))
    with pytest.raises(ValueError, match="has a text tower of its own"):
        open_checkpoint(f"{path}#gelu,text=openai/ViT-B/32")
    folder = open_clip_folder(tmp_path / "m", helpers.weights(True, True), True)
    with pytest.raises(ValueError, match="has a config of its own"):
        open_checkpoint(f"local-dir:{folder}#arch=ViT-B-32")
