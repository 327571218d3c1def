"""Runs other people's programs, unmodified, under `clipag run`, and prints the table of docs/programs.md.

    python benchmarks/programs.py FOLDER [NAME ...]

FOLDER holds a checkout of each repository of programs.toml, named as the repository. Each program runs on a copy of
its checkout, on the CPU, to its own end: the exit code must be 0 and the files of `writes` must be new.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROWS = Path(__file__).with_suffix(".toml")
MOST_SECONDS = 1800
HEAD = "| program | commit | command, behind `clipag run --device cpu` | seconds | to install | stand-in weights |"


def vgg19(folder: Path) -> None:
    """Random VGG19 in torch.hub's cache."""
    import torch
    from torchvision.models import vgg19

    path = Path(os.environ["TORCH_HOME"], "hub", "checkpoints", "vgg19-dcbb9e9d.pth")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(vgg19(weights=None).state_dict(), path)


def vqgan(folder: Path) -> None:
    """A small random VQGAN in the files that VQGAN-CLIP loads by default."""
    import torch
    import yaml
    from clipag_plug.adapters.shims import taming_shims

    config = {"double_z": False, "z_channels": 16, "resolution": 64, "in_channels": 3, "out_ch": 3}
    config |= {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": []}
    loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
    params = {"embed_dim": 16, "n_embed": 64, "lossconfig": loss}
    params["ddconfig"] = config | {"dropout": 0.0}
    with taming_shims():
        from taming.models.vqgan import VQModel

        state = VQModel(**params).state_dict()
    for name in ("checkpoints", "models"):
        (folder / name).mkdir(exist_ok=True)
        torch.save({"state_dict": state}, folder / name / "vqgan_imagenet_f16_16384.ckpt")
        model = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
        (folder / name / "vqgan_imagenet_f16_16384.yaml").write_text(yaml.safe_dump(model))


def u2net(folder: Path) -> None:
    """A random U2Net where CLIPasso looks for it."""
    import torch

    sys.path.insert(0, str(folder))
    from U2Net_.model import U2NET

    path = folder / "U2Net_" / "saved_models" / "u2net.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(U2NET(3, 1).state_dict(), path)


def vit(folder: Path, width: int) -> None:
    """A random ViT with 12 blocks of patch 32: `vit.pt` in OpenAI's layout, and `vit.json`. Width of the features: 512
    for programs written for ViT-B/32, 768 for those with a head for ViT-L/14."""
    import json

    import open_clip
    import torch

    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    vision = {"image_size": 224, "layers": 12, "width": 64, "head_width": 64, "patch_size": 32}
    config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}
    (folder / "vit.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.CLIP(width, vision, text, quick_gelu=True)
    torch.save(model.state_dict(), folder / "vit.pt")


def pictures(folder: Path) -> None:
    """Two pictures of noise and their texts, where programs look for inputs that their repositories lack."""
    import numpy
    from PIL import Image

    for name in ("images", "texts", "examples"):
        (folder / name).mkdir(exist_ok=True)
    noise = numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), "uint8")
    for name in ("images/a.png", "images/b.png", "examples/CLIP.png"):
        Image.fromarray(noise).save(folder / name)
    for name in ("a", "b"):
        (folder / "texts" / f"{name}.txt").write_text("a photo")


def caltech(folder: Path) -> None:
    """A data set in the layout of Caltech101 with two classes of two pictures in each split."""
    import json

    import numpy
    from PIL import Image

    root, splits = folder / "Caltech101", {}
    generator = numpy.random.default_rng(0)
    for split in ("train", "val", "test"):
        splits[split] = []
        for label, name in enumerate(("noise", "fog")):
            for number in range(2):
                path = root / "101_ObjectCategories" / name / f"{split}{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 255, (64, 64, 3), "uint8")).save(path)
                splits[split].append([f"{name}/{path.name}", label, name])
    (root / "split_zhou_Caltech101.json").write_text(json.dumps(splits))


MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker for maker in (vgg19, vqgan, u2net, pictures, caltech)
}
MAKERS |= {f"vit{width}": partial(vit, width=width) for width in (512, 768)}


def run(row: dict[str, Any], checkouts: Path) -> str:
    """Runs one program; returns its row of the table. RuntimeError with the end of its output if it failed."""
    source = checkouts / row["repository"].rpartition("/")[2]
    if not source.is_dir():
        raise RuntimeError(
            f"{source} is not there: git clone https://github.com/{row['repository']}"
        )
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / source.name
        shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        os.environ["TORCH_HOME"] = str(Path(place) / "torch")
        for name in row.get("standins", ()):
            subprocess.run([sys.executable, __file__, str(copy), "--make", name], check=True)
        folder = copy / row.get("folder", "")
        for name in (*row.get("copies", ()), *row.get("files", ())):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name, source_name in row.get("copies", {}).items():
            shutil.copy(copy / source_name, folder / name)
        for name, text in row.get("files", {}).items():
            (folder / name).write_text(text)
        command = [sys.executable, "-m", "clipag_plug", "run", "--device", "cpu"]
        home = {"HOME": str(folder)} if row.get("home") else {}
        paths = [row.get("path") and str(copy / row["path"]), os.environ.get("PYTHONPATH")]
        start, before = time.perf_counter(), set(folder.rglob("*"))
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(
            [*command, *shlex.split(row["command"])],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | home,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            errors="replace",
            timeout=MOST_SECONDS,
            **output,
        )
        seconds = time.perf_counter() - start
        new = [p for p in set(folder.rglob(row.get("writes", "*"))) - before if p.is_file()]
        if done.returncode != row.get("code", 0) or not (new or row.get("writes") == ""):
            raise RuntimeError(
                f"exit code {done.returncode}, {len(new)} files\n{done.stdout[-3000:]}"
            )
    install = f"`{row['install']}`" if row.get("install") else "nothing"
    standins = ", ".join(row.get("standins", ())) or "none"
    link = f"[{row['repository']}](https://github.com/{row['repository']})"
    return f"| {link} | {row['commit']} | `{row['command']}` | {seconds:.0f} | {install} | {standins} |"


def main() -> int:
    """Runs the programs that were named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.folder.is_dir():
        parser.error(
            f"there is no folder {given.folder} of checkouts; git clone what programs.toml names into it"
        )
    if given.make:
        MAKERS[given.make](given.folder)
        return 0
    failed = 0
    print(HEAD, "|---|---|---|---:|---|---|", sep="\n", flush=True)
    for row in tomllib.loads(ROWS.read_text(encoding="utf-8"))["program"]:
        if not given.names or row["name"] in given.names:
            try:
                print(run(row, given.folder), flush=True)
            except (RuntimeError, subprocess.SubprocessError) as error:
                failed += 1
                print(f"{row['name']}: {error}", file=sys.stderr, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
