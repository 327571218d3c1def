"""`patch`, the adapters' files, notebooks, and the parts of the shims that need no script."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from clipag_plug.adapters import available_adapters, catalog, loading, notebooks, shims, standins
from clipag_plug.adapters.taming_shims import taming_shims

import clipag_plug

CLIP_COPY = "def load(name):\n    return 'theirs'\ndef tokenize(texts):\n    return texts\n"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


# patch


def test_a_with_block_answers_and_forgets() -> None:
    importlib.import_module("open_clip")  # libraries put finders of their own in place
    finders, environment = list(sys.meta_path), dict(os.environ)
    with clipag_plug.patch("vqgan_clip", model="clipag-mini") as patch:
        inner = importlib.import_module("CLIP.clip")
        model, _ = inner.load("ViT-B/16", device="cpu")
        assert model.name == "clipag-mini"
        with pytest.raises(ImportError):
            importlib.import_module("CLIP_.clip")  # not a name of this pipeline
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
        kept(_old_file(Path(os.environ.get("TMPDIR", "/tmp"))))
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
        key = patch.guide.open_clip_key
        assert key("ViT-B-32", None) is None
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


def test_libraries_that_try_an_import_find_the_truth(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "try:\n    import ttools\n    found = True\nexcept ImportError:\n    found = False\n"
    (library / "site-packages").mkdir()
    (library / "site-packages" / "a_library.py").write_text(code)
    (library / "a_script.py").write_text(code)
    monkeypatch.syspath_prepend(str(library / "site-packages"))
    with clipag_plug.patch():
        assert importlib.import_module("a_library").found is False
        assert importlib.import_module("a_script").found is True
    assert "ttools" not in sys.modules


# adapters


@pytest.mark.parametrize("name", available_adapters())
def test_an_adapters_file_says_what_it_says(name: str) -> None:
    adapter = catalog.read(name)
    assert adapter.title and adapter.aliases and set(adapter.shims) <= set(shims.SHIMS)
    assert name == catalog.GENERIC or adapter.repository.startswith("https://")
    for weights in adapter.weights:
        assert weights.name and (
            "http" in weights.source or "README" in weights.source or "your own" in weights.source
        )
        path = f"/somewhere/{weights.file.replace('*', 'x')}"
        sentence = loading.missing(path, adapter)
        assert sentence and path in sentence and weights.name in sentence and "\n" not in sentence


def test_a_download_that_failed_names_the_weights() -> None:
    class ConnectionFailed(OSError):
        request = types.SimpleNamespace(
            url="https://s3.example/biggan/biggan-deep-128-pytorch_model.bin?x=1"
        )

    adapter = catalog.read("big_sleep")
    try:
        try:
            raise ConnectionFailed("no route")
        except OSError as error:
            raise RuntimeError("cannot load") from error
    except RuntimeError as error:
        sentence = loading.unreachable(error, adapter)
    assert (
        sentence
        and "BigGAN-deep is missing" in sentence
        and ".pytorch_pretrained_biggan" in sentence
    )
    assert loading.unreachable(RuntimeError("x"), adapter) is None


def test_the_pipelines_of_the_readme_have_an_adapter() -> None:
    assert {
        "clipdraw",
        "vqgan_clip",
        "clipstyler",
        "clipag",
        "clipasso",
        "deep_daze",
        "generic",
    } <= set(available_adapters())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import clip, pydiffvg", "clipdraw"),
        ("from CLIP import clip\nfrom taming.models import vqgan", "vqgan_clip"),
        ("import helper", "clipdraw"),
        ("import clip", "generic"),
        ("import open_clip", "clipag"),
        ("import CLIP_.clip as clip\nimport pydiffvg", "clipasso"),
        ("1 +", "generic"),
    ],
)
def test_auto_tells_the_pipeline_by_its_imports(code: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import clip\nimport pydiffvg\n")
    (tmp_path / "script.py").write_text(code)
    found = catalog.detect(tmp_path / "script.py")
    assert found.name == expected
    assert set(found.shims) >= set(catalog.read("generic").shims)


def test_listing_the_adapters_imports_nothing_heavy() -> None:
    code = "import sys, clipag_plug.adapters as a; a.available_adapters(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# notebooks


def test_magics_become_pass_and_lines_stay() -> None:
    source = "\n".join(
        [
            "#@title Imports {vertical-output: true}",
            "%tensorflow_version 2.x",
            "!pip install a \\",
            "    b",
            "x = 7 \\",
            "  % 4",
            "if x:",
            "    !nvidia-smi -L",
            "text = '''",
            "!not a command",
            "%s''' % 3",
            "y = (x",
            "  % 2)",
            "files = !ls",
            "%cd /no/such/folder",
            "%time z = 3",
            "%matplotlib inline",
        ]
    )
    cell = notebooks.convert(source, 4)
    assert len(cell.source.splitlines()) == len(source.splitlines())
    calls: list[Any] = []
    names: dict[str, Any] = {"__magic__": lambda *given: calls.append(given)}
    exec(cell.source, names)
    assert (names["x"], names["y"], names["z"], names["files"]) == (3, 1, 3, [])
    assert names["text"] == "\n!not a command\n3"
    assert calls == [("cd", "/no/such/folder")]
    assert cell.installs and cell.title.startswith("Imports")
    assert cell.notices == ["skipped !pip install a \\", "skipped !nvidia-smi -L", "skipped !ls"]


@pytest.mark.parametrize(
    ("source", "ran"),
    [("%%bash\nls\necho 'x", False), ("%%time\nran = True", True), ("%%html\n<b>", False)],
)
def test_cell_magics(source: str, ran: bool) -> None:
    cell = notebooks.convert(source)
    names: dict[str, Any] = {}
    exec(cell.source, names)
    assert names.get("ran", False) is ran and len(cell.notices) == (0 if ran else 1)


def test_the_start_pictures_of_the_notebook_need_no_download() -> None:
    with clipag_plug.patch("clipag") as patch:
        datasets = standins.datasets(patch, "datasets")
        data = datasets.load_dataset("Maysee/tiny-imagenet", split="valid").with_format("torch")
        images, labels = data["image"], data["label"]
        with pytest.raises(ImportError, match="pip install datasets"):
            datasets.load_dataset("imagenet")
    assert len(images) == len(labels) == 50 * 200 and images[0].shape == (3, 64, 64)
    from clipag_plug.priors import Mixture

    mean = torch.stack(images[:50]).float().div(255).mean(0)[:, ::4, ::4].flatten()
    assert (mean - Mixture.load().means[0].float()).abs().mean() < 0.05


# shims


def _old_file(folder: Path) -> Path:
    """A checkpoint with an object of a class that no longer exists, and one that wants to run something."""

    class Gone:
        def __reduce__(self) -> Any:
            return (os.putenv, ("CLIPAG_TEST_RAN", "1"))

    path = folder / "clipag-test-old.ckpt"
    torch.save({"state_dict": {"w": torch.arange(3.0)}, "callback": Gone()}, path)
    return path


def test_old_checkpoints_are_read_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    path = _old_file(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    with clipag_plug.patch("vqgan_clip") as patch:
        with open(path, "rb") as file:
            table = torch.load(file, map_location="cpu")
        assert torch.equal(table["state_dict"]["w"], torch.arange(3.0))
        assert isinstance(table["callback"], loading.Inert)
        assert patch.used and patch.used[0][0] == "torch_load" and "putenv" in patch.used[0][1]
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    assert not loading._harmless("os", "putenv") and not loading._harmless("builtins", "eval")


def test_a_whole_pickled_module_is_refused_as_without_the_shim(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with clipag_plug.patch("vqgan_clip"), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "module.pt")


@pytest.fixture
def taming(library: Path) -> types.ModuleType:
    """A library in the layout of taming-transformers, whose LPIPS counts its downloads."""
    folder = library / "taming" / "modules" / "losses"
    folder.mkdir(parents=True)
    for parent in (folder, folder.parent, folder.parent.parent):
        (parent / "__init__.py").touch()
    (folder / "lpips.py").write_text(
        "from torch import nn\n"
        "downloads = []\n"
        "class vgg16(nn.Module):\n"
        "    def __init__(self, requires_grad=False, pretrained=True):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(1, 1)\n"
        "        if pretrained: downloads.append('vgg')\n"
        "    def forward(self, x): return self.layer(x)\n"
        "class LPIPS(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = vgg16(pretrained=True, requires_grad=False)\n"
        "        self.load_from_pretrained()\n"
        "    def load_from_pretrained(self, name='vgg_lpips'): downloads.append(name)\n"
        "    def forward(self, x): return self.net(x)\n"
    )
    return folder


def test_lpips_that_is_thrown_away_loads_nothing(taming: Path) -> None:
    with taming_shims() as patch:
        from taming.modules.losses import lpips

        loss = lpips.LPIPS()
        assert lpips.downloads == [] and patch.used[0][0] == "lpips"
        used = lpips.LPIPS()
    used(torch.ones(1, 1))  # a loss that is used gets its weights, even behind the patch
    used(torch.ones(1, 1))
    assert lpips.downloads == ["vgg", "vgg_lpips"]
    assert not any(parameter.requires_grad for parameter in used.net.parameters())
    del loss
    lpips.LPIPS()
    assert lpips.downloads == ["vgg", "vgg_lpips"] * 2


def test_cuda_is_redirected_however_it_is_asked_for(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt")
    with clipag_plug.patch(device="cpu"):
        for tensor in (
            torch.zeros(2, device="cuda"),
            torch.zeros(2).to("cuda:1"),
            torch.zeros(2).to(0),
            torch.zeros(2).to(torch.device("cuda"), torch.float64),
            torch.zeros(2).cuda(non_blocking=True),
            torch.tensor([1.0], device=torch.device("cuda", 0)),
            torch.zeros(2).type("torch.cuda.FloatTensor"),
            torch.cuda.FloatTensor([1.0]),
            torch.nn.Linear(2, 2, device="cuda").weight,
            torch.nn.Linear(2, 2).to("cuda").cuda(0).bias,
            torch.load(tmp_path / "x.pt", map_location="cuda")["x"],
            torch.load(tmp_path / "x.pt", map_location={"cuda:0": "cuda:1"})["x"],
            torch.randn(2, generator=torch.Generator(device="cuda"), device="cuda"),
        ):
            assert tensor.device.type == "cpu"
        with torch.cuda.device(0):
            torch.cuda.synchronize()
        assert torch.cuda.get_device_properties(0).total_memory > 0
        x = torch.ones(2, requires_grad=True)
        assert x.cuda() is x


def test_blocks_tell_the_attention_of_their_last_call(tiny_clip: Any) -> None:
    with clipag_plug.patch("clipasso") as patch:
        for function in patch.guide.loaded:
            function(tiny_clip)
        tiny_clip.encode_image(torch.rand(3, 3, 64, 64))
        for block in tiny_clip.visual.transformer.resblocks:
            assert block.attn_probs.shape == (
                3 * 2,
                17,
                17,
            )  # 2 heads; 16 patches and the class token
            assert torch.allclose(block.attn_probs.sum(-1), torch.ones(()), atol=1e-5)
