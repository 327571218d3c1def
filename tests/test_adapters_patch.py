"""`patch` answers for `clip` while it holds, and leaves everything as it was."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_helpers import library, old_file
from clipag_plug.adapters import models

import clipag_plug
from clipag_plug import simple_tokenizer

CLIP_COPY = "def load(name):\n    return 'theirs'\ndef tokenize(texts):\n    return texts\n"


def test_a_with_block_answers_and_forgets() -> None:
    importlib.import_module("open_clip")  # libraries put finders of their own in place
    finders, environment = list(sys.meta_path), dict(os.environ)
    with clipag_plug.patch("vqgan_clip", model="clipag-mini") as patch:
        inner = importlib.import_module("CLIP.clip")
        model, _ = inner.load("ViT-B/16", device="cpu")
        assert model.name == "clipag-mini"
        os.environ["SET_BY_A_SCRIPT"] = "1"
    assert sys.meta_path == finders and dict(os.environ) == environment
    assert not [name for name in sys.modules if name.partition(".")[0] == "CLIP"]
    assert ("names", "`CLIP.clip` is answered by clipag_plug") in patch.used
    with pytest.raises(ImportError):
        importlib.import_module("CLIP.clip")


def test_for_good_until_undo() -> None:
    patch = clipag_plug.patch("clipdraw", model="clip-mini")
    try:
        import clip

        assert clip.load("ViT-B/32", "cpu")[0].name == "clip-mini"
        assert {"ViT-B/32", "RN50", "clipag"} <= set(clip.available_models())
        assert clip.load("clipag-mini", "cpu")[0].name == "clipag-mini", (
            "a key is taken at its word"
        )
        from clip import clip as inner
        from clip.simple_tokenizer import SimpleTokenizer

        assert inner.load is clip.load and clip.clip is inner and SimpleTokenizer
    finally:
        patch.undo()
    patch.undo()
    assert "clip" not in sys.modules


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_inside_undoes_too(error: type[BaseException]) -> None:
    load = torch.load
    with pytest.raises(error):
        with clipag_plug.patch(model="clipag-mini", device="cpu"):
            import clip

            assert clip and torch.load is not load
            raise error
    assert torch.load is load and "clip" not in sys.modules
    with (
        pytest.raises((RuntimeError, AssertionError))
        if not torch.cuda.is_available()
        else pytest.raises(ZeroDivisionError)
    ):
        torch.zeros(1, device="cuda") if not torch.cuda.is_available() else 1 / 0


def test_patches_nest_and_an_outer_undo_takes_the_inner_with_it() -> None:
    load = torch.load
    outer = clipag_plug.patch(model="clipag-mini")
    import clip as first

    inner = clipag_plug.patch(model="clip-mini")
    import clip as second

    assert first is not second and second.load("ViT-B/32", "cpu")[0].name == "clip-mini"
    inner.undo()
    assert sys.modules["clip"] is first
    inner = clipag_plug.patch(model="clip-mini")
    outer.undo()
    assert torch.load is load and not inner.active and "clip" not in sys.modules


def test_the_real_clip_comes_back(library: Path) -> None:
    (library / "clip").mkdir()
    (library / "clip" / "__init__.py").write_text("from .clip import load, tokenize\n")
    (library / "clip" / "clip.py").write_text(CLIP_COPY)
    (library / "clip" / "simple_tokenizer.py").touch()
    (library / "painter").mkdir()
    (library / "painter" / "__init__.py").write_text("from .clip import load\n")
    (library / "painter" / "clip.py").write_text(CLIP_COPY)
    import clip as real
    import painter

    assert real.load("x") == painter.load("x") == "theirs"
    with clipag_plug.patch(model="clipag-mini"):
        import clip
        import painter as patched

        assert clip.load("x", "cpu")[0].name == patched.load("x", "cpu")[0].name == "clipag-mini"
    assert sys.modules["clip"] is real and sys.modules["painter"] is painter
    assert sys.modules["clip.clip"].load("x") == "theirs" and real.clip is sys.modules["clip.clip"]
    import painter as again

    assert again is painter and again.load("x") == "theirs"


def test_a_package_first_imported_under_a_patch_is_imported_anew_after_it(library: Path) -> None:
    (library / "dreamer").mkdir()
    (library / "dreamer" / "__init__.py").touch()
    (library / "dreamer" / "clip.py").write_text(CLIP_COPY)
    (library / "dreamer" / "main.py").write_text("from .clip import load, tokenize\n")
    with clipag_plug.patch(model="clipag-mini"):
        from dreamer.main import load
    assert callable(load) and not [name for name in sys.modules if name.startswith("dreamer")]
    from dreamer.main import load as theirs

    assert theirs("x") == "theirs"


def test_what_a_library_kept_does_as_the_original_after_the_patch() -> None:
    import numpy

    with clipag_plug.patch(device="cpu"):
        kept, numbers = torch.load, torch.Generator
        assert numpy.int is int
    with pytest.raises(AttributeError):
        _ = numpy.int
    with pytest.raises(pickle.UnpicklingError):
        kept(old_file(Path(os.environ.get("TMPDIR", "/tmp"))))
    assert isinstance(numbers(), torch.Generator)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("clip-draw",), "did you mean 'clipdraw'"), ((), "it must be 'cpu'")],
)
def test_requests_that_cannot_be_met(arguments: tuple[str, ...], message: str) -> None:
    keywords = {} if arguments else {"device": "tpu"}
    finders = list(sys.meta_path)
    with pytest.raises(ValueError, match=message):
        clipag_plug.patch(*arguments, **keywords)
    assert sys.meta_path == finders


def test_open_clip_without_weights_is_left_alone_and_without_a_model_the_counterpart_is_meant() -> (
    None
):
    import open_clip

    real = open_clip.create_model
    with clipag_plug.patch("clipag") as patch:
        key = functools.partial(models.open_clip_key, patch)
        assert key("ViT-B-32", None) is None and key("coca_ViT-B-32", "laion2b") is None
        assert (
            key("ViT-B-32", "laion2b_s34b_b79k") == key("ViT-B-32-quickgelu", "openai") == "clipag"
        )
        assert key("ViT-L-14", "openai") == "fare4-l14" and key("ViT-L-14-336", "openai") is None
        assert key("anything", "~/CLIPAG_ViTB32.pt") == "clipag"
        assert key("hf-hub:org/name", None) == "hf-hub:org/name"
        assert open_clip.create_model is not real
    assert open_clip.create_model is real


def test_a_pipeline_that_is_not_there_is_not_made_up() -> None:
    with clipag_plug.patch("deep_daze"), pytest.raises(ModuleNotFoundError, match="deep_daze"):
        importlib.import_module("deep_daze")


def test_what_is_only_tried_stays_absent(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "try:\n    import ttools\n    found = True\nexcept ImportError:\n    found = False\n"
    (library / "site-packages").mkdir()
    (library / "site-packages" / "a_library.py").write_text(code)
    (library / "a_script.py").write_text(code)
    monkeypatch.syspath_prepend(str(library / "site-packages"))
    with clipag_plug.patch():
        assert importlib.import_module("a_library").found is False
        assert importlib.import_module("a_script").found is False, "who tries does without"
        assert importlib.util.find_spec("wandb") is None
        (library / "plain.py").write_text("import ttools\nfound = True\n")
        assert importlib.import_module("plain").found is True
        # A library that needs what is gone from another one gets it.
        (library / "site-packages" / "old_one.py").write_text("import pkg_resources\n")
        assert importlib.import_module("old_one").pkg_resources.resource_stream
    assert "ttools" not in sys.modules


COPY = """
_MODELS = {}
def load(name, device="cuda", jit=True, is_train=False):
    model = torch_is_not_here
    return model, 1, 2
def tokenize(texts): return texts
def encode_with_ensemble(model, texts): return model.encode_text(tokenize(texts)).mean(0, keepdim=True)
def who(): return load
"""


def test_a_copy_keeps_its_other_names_and_submodules_on_our_weights(library: Path) -> None:
    folder = library / "CLIP" / "clip"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from .clip import *\n")
    (folder / "clip.py").write_text(COPY)
    (folder / "simple_tokenizer.py").touch()
    (folder / "surgery.py").write_text("from .clip import load\nDEPTH = 3\n")
    (folder / "model.py").write_text(
        "class Changed:\n    attn_probs = None\nclass CLIP:\n    def encode_text(self, text): 1 / 0\n"
        "    def width(self, x): return self.unit(x).shape[1] + self.visual.twice(x)\n"
        "    unit = staticmethod(lambda x: x / x.norm(dim=1, keepdim=True))\n"
        "class LiteVisual:\n    def twice(self, x): return 2 * x.shape[0]\n"
    )
    (folder / "explainability.py").write_text(COPY)
    with clipag_plug.patch(model="clipag-mini") as patch:
        from CLIP import clip
        from CLIP.clip import encode_with_ensemble, explainability, surgery
        from CLIP.clip.model import CLIP, Changed

        model, train, test = clip.load("ViT-B/32", "cpu", jit=False)
        assert model.name == "clipag-mini" and train is test and isinstance(model, CLIP) and Changed
        assert encode_with_ensemble(model, ["a fox", "a dog"]).shape == (1, 512)
        assert model.width(torch.rand(3, 5)) == 5 + 6, "methods of their classes, on our model"
        assert surgery.DEPTH == 3 and surgery.load is clip.clip.load and clip.who()("x", "cpu")
        assert explainability.load("ViT-B/32", "cpu")[0].name == "clipag-mini" and patch.attention
        assert pickle.loads(pickle.dumps(clip.load)).args == clip.load.args
        with pytest.raises(AttributeError):
            _ = clip.no_such_name
        said = " ".join(what for _, what in patch.used)
        assert "load(name, device, jit, is_train) differs" in said and "3 values" in said
    assert not [name for name in sys.modules if name.partition(".")[0] == "CLIP"]


def test_open_clips_calls_are_there(tmp_path: Path) -> None:
    import open_clip

    with clipag_plug.patch(model="clipag-mini") as patch:
        create = open_clip.create_model_and_transforms
        model, train, test = create("ViT-B-32", pretrained="openai", output_dict=True)
        images, tokenizer = torch.rand(2, 3, 224, 224), open_clip.get_tokenizer("ViT-B-32")
        tokens = tokenizer(["a fox", "a very long text " * 50])
        assert tokens.dtype == torch.int64 and tokens.shape == (2, tokenizer.context_length)
        assert tokenizer.decode(tokenizer.encode("a fox")).strip() == "a fox"
        assert open_clip.get_tokenizer("ViT-B-32", context_length=20)("a").shape == (1, 20)
        out = model(images, tokens)
        assert set(out) == {"image_features", "text_features", "logit_scale"}
        assert "Random" in repr(train) and train.transforms[0].size == (224, 224) != test
        assert train.transforms[-1].mean == test.transforms[-1].mean
        logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
        assert torch.allclose(model.get_logits(images, tokens)[0], logits, atol=1e-4)
        assert torch.equal(model.encode_image(images, normalize=True), out["image_features"])
        model.set_grad_checkpointing()
        model.lock_image_tower()
        model.lock_text_tower()
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        assert {"visual", "transformer"} <= {name.partition(".")[0] for name in frozen}
        assert open_clip.load_openai_model("ViT-B/32").name == "clipag-mini"
        assert pickle.loads(pickle.dumps((model, tokenizer)))[0].name == "clipag-mini"
        settings = open_clip.get_model_preprocess_cfg(model)
        assert (settings["size"], settings["mean"]) == (224, model.visual.image_mean)
        assert not [said for _, said in patch.used if "not followed" in said]
        open_clip.create_model("RN50", "openai", force_image_size=160, image_mean=(0.5,) * 3)
        assert any("force_image_size, image_mean not followed" in said for _, said in patch.used)
        bare, _ = open_clip.create_model_from_pretrained("ViT-B-32", pretrained="laion2b_s34b_b79k")
        assert len(bare(images, tokens)) == 3 and bare(images)[1] is None


def test_transformers_gets_a_model_of_its_layout_or_a_sentence(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = {"vocab_size": 49408, "max_position_embeddings": 77, "num_hidden_layers": 1}
    vision = {"image_size": 224, "patch_size": 32, "num_hidden_layers": 1}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text | sizes, vision_config=vision | sizes, projection_dim=24
        )
    )
    theirs.save_pretrained(tmp_path / "hf")
    name, images = "openai/clip-vit-base-patch32", torch.rand(2, 3, 224, 224)
    with clipag_plug.patch(model=f"local-dir:{tmp_path / 'hf'}#quickgelu") as patch:
        model = transformers.CLIPModel.from_pretrained(name)
        assert patch.used[-1][0] == "transformers" and patch.widths == {24}
        own = transformers.CLIPModel.from_pretrained(tmp_path / "hf")
        with torch.no_grad():
            ours, real = model.get_image_features(images), own.get_image_features(images)
        ours, real = (getattr(value, "pooler_output", value) for value in (ours, real))
        assert torch.allclose(ours, real, atol=1e-5)
    with clipag_plug.patch(model="clipag-mini"), pytest.raises(ValueError, match="cannot build"):
        transformers.CLIPModel.from_pretrained(name)


def test_a_patch_is_passed_on_and_leaves_no_variable_behind() -> None:
    before = dict(os.environ)
    with clipag_plug.patch(model="clipag-mini"):
        assert "clipag-mini" in os.environ["CLIPAG_RUN"] and "child" in os.environ["PYTHONPATH"]
    assert dict(os.environ) == before


def test_under_a_patch_private_names_and_stars_are_the_originals() -> None:
    names: dict[str, Any] = {}
    with clipag_plug.patch(model="clipag-mini") as patch:
        inner = importlib.import_module("clip.clip")
        exec("from clip.clip import *", names)
        assert {"load", "tokenize", "available_models"} == names.keys() - {"__builtins__"}
        exec("from clip.model import *\nfrom clip.simple_tokenizer import *", names)
        assert {"CLIP", "Transformer", "nn", "np", "OrderedDict", "SimpleTokenizer"} <= names.keys()
        assert inner._Tokenizer is names["SimpleTokenizer"] and inner.Image.new
        assert inner.Compose and inner.BICUBIC is inner.InterpolationMode.BICUBIC
        assert os.path.isfile(inner.__file__) and inspect.getsource(importlib.import_module("clip"))
        assert set(inner._MODELS) >= {"RN50", "ViT-B/16", "ViT-L/14@336px"}
        state = torch.load(inner._download(inner._MODELS["RN50"]), weights_only=True)
        assert inner.build_model(state).name == names["build_model"](state).name == "clipag-mini"
        assert ("model", "build_model gives 'clipag-mini'") in patch.used and patch.widths == {512}
        with pytest.raises(TypeError, match="own build_model takes 1 arguments"):
            inner.build_model(state, {"trainer": "CoOp"})


OPEN_CLIP_COPY = """
class CLIP:
    def encode_image(self, image): raise NotImplementedError
    def encode_embedding(self, x, ids):
        x = (x + self.positional_embedding).permute(1, 0, 2)
        x = self.transformer(x, attn_mask=self.attn_mask).permute(1, 0, 2)
        return self.ln_final(x)[range(len(x)), ids.argmax(-1)] @ self.text_projection
"""


def test_methods_of_an_own_older_open_clip_run_on_our_model(library: Path) -> None:
    (library / "open_clip").mkdir()
    (library / "open_clip" / "__init__.py").write_text(
        "from . import factory, model, tokenizer, transformer\n"
        "from .factory import create_model, get_tokenizer\n"
    )
    (library / "open_clip" / "factory.py").write_text(
        "def create_model(name, pretrained=''): 1 / 0\ndef get_tokenizer(name): return len\n"
    )
    (library / "open_clip" / "tokenizer.py").write_text("class SimpleTokenizer: pass\n")
    (library / "open_clip" / "model.py").write_text(OPEN_CLIP_COPY)
    (library / "open_clip" / "transformer.py").write_text(
        "class Transformer:\n    def __init__(self, width, layers, heads): pass\n"
    )
    simple_tokenizer.shared.cache_clear()  # its words are those of the installed open_clip
    kept = {
        name: sys.modules.pop(name)
        for name in list(sys.modules)
        if name.split(".")[0] == "open_clip"
    }
    try:
        with clipag_plug.patch(model="clipag-mini"):
            import open_clip

            model = open_clip.create_model("ViT-B-32", pretrained="openai")
            tokens = clipag_plug.tokenize(["a fox", "two dogs"])
            assert open_clip.get_tokenizer("ViT-B-32") is len, "its own, which is older"
            found = model.encode_embedding(model.token_embedding(tokens), tokens)
            assert torch.allclose(found, model.encode_text(tokens), atol=1e-5)
            again = pickle.loads(pickle.dumps(model))
            assert torch.allclose(
                again.encode_embedding(again.token_embedding(tokens), tokens), found
            )
            assert model.encode_image(torch.rand(1, 3, 224, 224)).shape == (1, 512)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "open_clip"]:
            del sys.modules[name]
        sys.modules.update(kept)
