"""What torch's own tools do with a loaded model (save, flatten, quantise, copy, spread, spawn), and CoOp's way in."""

# ruff: noqa: F401 (fixtures are imported and then named as arguments)

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_helpers import tiny_224
from torch import Tensor, nn

import clipag_plug as clip
from clipag_plug.model import CLIP, as_open_clip
from clipag_plug.weights import opening

KINDS = ["clipag", "clipag-mini"]
READ = opening.open_checkpoint


@pytest.fixture
def bundled_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled models under their names, and a tiny ViT under all others."""
    tiny = opening.open_checkpoint

    def read(name: str, root: Any = None) -> Any:
        return (READ if name.endswith("-mini") else tiny)(name, root)

    monkeypatch.setattr(opening, "open_checkpoint", read)


@pytest.fixture(params=["vit", "mini"])
def loaded(request: Any, bundled_pair: dict[str, CLIP]) -> CLIP:
    if request.param == "vit":
        return clip.load("clipag", "cpu")[0]
    return copy.deepcopy(bundled_pair["clipag-mini"]).requires_grad_(True)


def test_weights_are_saved_and_flattened(loaded: CLIP, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(loaded.state_dict(), tmp_path / "model.safetensors")
    again = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in loaded.state_dict().items())
    vector = torch.nn.utils.parameters_to_vector(loaded.parameters())
    torch.nn.utils.vector_to_parameters(vector * 0, loaded.parameters())
    assert not loaded.logit_scale.any()


def test_pixel_gradients_are_contiguous_at_any_size(loaded: CLIP, photos: Tensor) -> None:
    for frozen in (False, True):
        x = photos.clone().requires_grad_()
        loaded.requires_grad_(not frozen).encode_image(x).sum().backward()
        assert x.grad.is_contiguous() and x.grad.view(4, -1).any()
        (alone,) = torch.autograd.grad(loaded.encode_image(x).sum(), x)
        assert alone.is_contiguous()


@pytest.mark.filterwarnings("ignore")
def test_linear_layers_can_be_quantised(loaded: CLIP, photos: Tensor) -> None:
    quantize = getattr(getattr(torch, "ao", None), "quantization", None)
    if not hasattr(quantize, "quantize_dynamic"):
        pytest.skip("this torch has no quantize_dynamic")
    small = quantize.quantize_dynamic(loaded, {nn.Linear}, dtype=torch.qint8)
    assert "quantized" in type(small.transformer.resblocks[0].mlp.c_fc).__module__
    tokens = clip.tokenize(["a cat", "a dog"])
    with torch.no_grad():
        for one, two in (
            (small.encode_text(tokens), loaded.encode_text(tokens)),
            (small.encode_image(photos), loaded.encode_image(photos)),
        ):
            assert torch.cosine_similarity(one, two).min() > 0.95


def test_another_default_dtype_changes_nothing(
    loaded: CLIP, photos: Tensor, bundled_as_they_are: None
) -> None:
    want = loaded.encode_image(photos), loaded.encode_text(clip.tokenize("a cat"))
    torch.set_default_dtype(torch.float64)
    try:
        other = clip.load(loaded.name, "cpu")[0]
        got = other.encode_image(photos), other.encode_text(clip.tokenize("a cat"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_a_device_may_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[Any] = []
    monkeypatch.setattr(CLIP, "to", lambda self, device: wanted.append(device) or self)
    clip.load("clipag", device=0)
    assert wanted[-1] == 0 and wanted[-1] is not False


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "DataParallel", "replica", "open_clip"])
def test_copies_compute_the_same(loaded: CLIP, photos: Tensor, how: str) -> None:
    want = loaded.encode_image(photos)
    if how == "deepcopy":
        other: Any = copy.deepcopy(loaded)
    elif how == "DataParallel":
        other, tokens = nn.DataParallel(loaded).module, clip.tokenize("a cat")
        assert torch.equal(nn.DataParallel(loaded)(photos, tokens)[0], loaded(photos, tokens)[0])
    elif how == "replica":  # what DataParallel makes on each device: tensors in place of parameters
        other = copy.deepcopy(loaded)
        for module in other.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    del module._parameters[name]
                    setattr(module, name, parameter.detach().clone())
    else:
        other = pickle.loads(pickle.dumps(as_open_clip(loaded) if how == "open_clip" else loaded))
    assert torch.allclose(other.encode_image(photos), want, atol=1e-5)
    assert other.encode_text(clip.tokenize("a cat")).shape == (1, want.shape[1])


def _in_a_worker(model: CLIP, image: Tensor, answer: Any) -> None:
    answer.put(model.encode_image(image).detach().numpy())


@pytest.mark.long
def test_a_spawned_process_gets_the_model(loaded: CLIP, photos: Tensor) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_a_worker, args=(loaded, photos[:1], queue))
    process.start()
    got = torch.from_numpy(queue.get(timeout=300))
    process.join()
    assert torch.allclose(got, loaded.encode_image(photos[:1]), atol=1e-6)


@pytest.mark.parametrize("backbone", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_coops_trainer_gets_its_model_and_learns_a_context(
    backbone: str, tmp_path: Path, bundled_as_they_are: None
) -> None:
    """What CoOp's loader and prompt learner do with the private names of `clip.clip`."""
    from clipag_plug import clip as module
    from clipag_plug.simple_tokenizer import SimpleTokenizer

    path = module._download(module._MODELS[backbone], str(tmp_path))
    try:
        state = torch.jit.load(path, map_location="cpu").eval().state_dict()
    except RuntimeError:
        state = torch.load(path, map_location="cpu")
    model = module.build_model(state)
    assert model.dtype == torch.float16
    model.float().requires_grad_(False)
    want = clip.load(backbone, "cpu")[0]
    tokens = torch.cat([module.tokenize(f"X X X X {name}.") for name in ("cat", "dog")])
    assert torch.allclose(model.encode_text(tokens), want.encode_text(tokens), atol=0.02)
    embedding = model.token_embedding(tokens).type(model.dtype)
    context = embedding[:, 1:5].clone().requires_grad_()
    prompts = torch.cat([embedding[:, :1], context, embedding[:, 5:]], 1)
    x = (prompts + model.positional_embedding.type(model.dtype)).permute(1, 0, 2)
    x = model.ln_final(model.transformer(x).permute(1, 0, 2)).type(model.dtype)
    features = x[torch.arange(2), tokens.argmax(-1)] @ model.text_projection
    assert torch.allclose(features, model.encode_text(tokens), atol=1e-5)
    assert torch.autograd.grad(features[:, 0].sum(), context)[0].any()
    assert module._tokenizer.encode("a cat") == SimpleTokenizer().encode("a cat")
    with pytest.raises(RuntimeError, match=r"none of clip\._MODELS"):
        module._download("https://example.org/model.pt")


def test_clip_surgerys_own_attention_runs_on_a_block(photos: Tensor) -> None:
    """CLIPSurgery and MaskCLIP compute a block by its parts: query, key and value of a block's weights, (L, N, D)."""
    model = clip.load("clipag", "cpu")[0]
    block, seen = model.visual.transformer.resblocks[-1], []
    block.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    model.encode_image(photos)
    x, out = seen[0]
    y = block.ln_1(x)
    attended, weights = nn.functional.multi_head_attention_forward(
        *(y, y, y, block.attn.embed_dim, block.attn.num_heads, block.attn.in_proj_weight),
        *(block.attn.in_proj_bias, None, None, False, 0.0),
        *(block.attn.out_proj.weight, block.attn.out_proj.bias),
        training=False,
    )
    assert weights.shape == (4, 17, 17)
    z = x + attended
    assert torch.allclose(z + block.mlp(block.ln_2(z)), out, atol=1e-5)
    assert torch.allclose(block.attention(y), attended, atol=1e-5)
    assert torch.allclose(block.attn(y, y, y)[1], weights, atol=1e-5)
    assert torch.allclose(
        block.attn(y, x, x)[0].shape and block.attn(y, y * 1, y * 1)[0], attended, atol=1e-5
    )


def test_denseclips_towers_are_made_from_the_published_classes() -> None:
    from clipag_plug.model import (
        AttentionPool2d,
        Bottleneck,
        LayerNorm,
        ModifiedResNet,
        QuickGELU,
        ResidualAttentionBlock,
        Transformer,
        VisionTransformer,
        convert_weights,
    )  # fmt: skip

    class Dense(ModifiedResNet):
        def forward(self, x: Tensor) -> Any:
            x = self.avgpool(self.relu3(self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(
                self.relu1(self.bn1(self.conv1(x))))))))))  # fmt: skip
            maps = [x := stage(x) for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]
            return maps, self.attnpool(x)

    maps, pooled = Dense([1, 1, 1, 1], 32, 8, input_resolution=64, width=16)(
        torch.rand(2, 3, 64, 64)
    )
    assert [m.shape[1:] for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert pooled.shape == (2, 32)
    assert isinstance(Bottleneck(16, 4).relu3, nn.ReLU) and AttentionPool2d(2, 8, 2).num_heads == 2
    mask = torch.full((5, 5), -torch.inf).triu(1)
    text = Transformer(width=16, layers=2, heads=2, attn_mask=mask)
    x = torch.rand(5, 3, 16)
    changed = x.clone()
    changed[-1] += 1
    assert torch.allclose(text(x)[:-1], text(changed)[:-1], atol=1e-6)
    assert not torch.allclose(text(x)[-1], text(changed)[-1])
    assert isinstance(ResidualAttentionBlock(16, 2).mlp.gelu, QuickGELU)
    tower = VisionTransformer(
        input_resolution=32, patch_size=8, width=16, layers=1, heads=2, output_dim=4
    )
    assert tower(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    convert_weights(tower)
    assert tower.conv1.weight.dtype == tower.proj.dtype == torch.float16
    assert LayerNorm(4)(torch.rand(2, 4).half()).dtype == torch.float16
    assert tower.transformer.resblocks[0].attn.in_proj_weight.dtype == torch.float16
