"""Speed and memory of each part against the loop that people write first, on the same machine and weights.

    OMP_NUM_THREADS=1 python benchmarks/speed.py paint      # a step of synthesis against the published loop
    OMP_NUM_THREADS=1 python benchmarks/speed.py train      # an adversarial step against three plain loops
    OMP_NUM_THREADS=1 python benchmarks/speed.py memory     # peak of a step of 64 micro-batches against one of 1
    OMP_NUM_THREADS=1 python benchmarks/speed.py strokes    # the renderer against a loop over strokes
    OMP_NUM_THREADS=1 python benchmarks/speed.py cam        # gScoreCAM in batches against mask after mask
    OMP_NUM_THREADS=1 python benchmarks/speed.py towers     # small image towers in training
    OMP_NUM_THREADS=1 python benchmarks/speed.py load       # clipag_plug.load and open_clip on files of 605 MB
    OMP_NUM_THREADS=1 python benchmarks/speed.py data       # reading, decoding and cropping files, and an earlier way

Each prints JSON. Ways take turns, and the shortest time of each counts: on one CPU thread that of the processor, which
other programs do not lengthen, else that of the clock. Networks are ViT-B/32 with random weights unless it says so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

VISION = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
VIT_B_32: dict[str, Any] = {"embed_dim": 512, "vision_cfg": VISION, "text_cfg": TEXT}
EPS, STEPS = 1.5, 5
SIZE = 224


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Time of one call."""
    one = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def best(
    ways: dict[str, Callable[[], object]], rounds: int, device: str = "cpu"
) -> dict[str, float]:
    """The shortest time of each way, after one call to warm up."""
    for way in ways.values():
        way()
    times = [{name: seconds(way, device) for name, way in ways.items()} for _ in range(rounds)]
    return {name: min(each[name] for each in times) for name in ways}


def compared(found: dict[str, float], reference: str) -> dict[str, Any]:
    """Seconds, and their ratios to the reference's."""
    ratios = {name: round(value / found[reference], 2) for name, value in found.items()}
    return {"seconds": found, f"ratio to {reference}": ratios}


def child(case: str, number: int, *words: str, **settings: str) -> dict[str, float]:
    """What `case` finds in a process of its own, which is told its number; `settings`: of the environment."""
    line = [sys.executable, __file__, case, *words, "--child", str(number)]
    environment = {**os.environ, **settings}
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)[case]


class Peak(TorchDispatchMode):
    """Bytes alive at once of storages that operations made inside this block, without those of `model`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.alive = self.peak = 0
        tensors = [*model.parameters(), *model.buffers()]
        self.known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if size and key not in self.known:
                    self.known.add(key)
                    self.alive += size
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self._drop, key, size)
        return found

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def paint(given: argparse.Namespace) -> dict[str, Any]:
    """The published loop is tests/transcription.py on open_clip's network, its weights not frozen, in fp32, as in the
    authors' notebook; it is also timed on this package's network, which is the quicker one, and in our precision."""
    import transcription
    from open_clip.model import CLIP

    from clipag_plug.guide import frozen
    from clipag_plug.model import build
    from clipag_plug.options.generate import Generate
    from clipag_plug.paint import Synthesizer

    torch.manual_seed(0)
    model = build(VIT_B_32, None, name="random ViT-B/32").to(given.device)
    network = CLIP(**VIT_B_32).eval()
    network.load_state_dict(model.state_dict())
    network.tokenize = model.tokenize
    network = network.to(given.device)
    views = {"views": given.batch or 32, "patches": given.batch or 32}
    start = {"preset": "notebook", "init": "noise", "precision": given.precision}
    options = Generate(prompts=["a goldfish"], **views, **start)
    run = Synthesizer(options, model)
    for name in ("MEAN", "STD"):
        setattr(transcription, name, getattr(transcription, name).to(given.device))
    gaussian = transcription.gaussian
    transcription.gaussian = lambda number, shape: gaussian(number, shape).to(given.device)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(given.precision)
    numbers = torch.Generator().manual_seed(0)

    def tape(_: int) -> tuple[Tensor, ...]:
        shapes = ((options.views, 9), (options.views, 11))
        return tuple(torch.rand(*shape, generator=numbers).to(given.device) for shape in shapes)

    def published(of: Any, low: torch.dtype | None = None) -> None:
        tokens = model.tokenize(options.prompts).to(given.device)
        text = F.normalize(of.encode_text(tokens).detach())
        with torch.autocast(given.device, dtype=low) if low else contextlib.nullcontext():
            transcription.notebook_loop(of, text, run.canvas.start, tape, 1)

    def ours() -> None:
        with frozen([model]):
            run._step(0)

    ways: dict[str, Callable[[], object]] = {
        "ours": ours,
        "published": functools.partial(published, network),
        "published, our network": functools.partial(published, model),
    }
    if low:
        ways[f"published, {given.precision}"] = functools.partial(published, network, low)
    found = compared(best(ways, given.rounds, given.device), "ours")
    for name, of in (("published", network), ("ours", model)):
        of.zero_grad(set_to_none=True)
        with Peak(of) as peak:
            ways[name]()
        found[f"{name}, peak MiB"] = round(peak.peak / 2**20, 1)
    return found


def recipe(folder: str, batch: int, given: argparse.Namespace, **changes: Any) -> Any:
    """A trainer on synthetic images with captions."""
    from clipag_plug.options.train import Train
    from clipag_plug.train import setup

    options = {"data": [f"synthetic:{2 * batch}"], "samples": 100 * batch, "batch_size": batch}
    options |= {"architecture": json.dumps(VIT_B_32), "attack_steps": STEPS, "eps": EPS}
    options |= {"device": given.device, "precision": given.precision}
    options |= {"output": folder, "quiet": True}
    return setup.prepare(Train(**{**options, **changes}))[0]


def train(given: argparse.Namespace) -> dict[str, Any]:
    """The plain loops follow the published descriptions of TeCoA and RobustVLM, on open_clip's network as theirs do, in
    fp32, the weights' gradients enabled while the attack runs: `backward` calls loss.backward() in every attack step
    and encodes the captions each time; `grad` asks for the perturbation's gradient alone; `grad, text once` encodes the
    captions once before."""
    from open_clip.model import CLIP

    from clipag_plug.clip import tokenize

    batch = given.batch or 8
    with tempfile.TemporaryDirectory() as folder:
        objective = {"objective": "contrastive", "attack_objective": "image_to_text"}
        trainer = recipe(folder, batch, given, **objective)
        model, pictures = CLIP(**VIT_B_32), trainer.batches[0]
        model.load_state_dict(trainer.model.state_dict())
        model = model.to(given.device).train()
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in trainer.weights)
        images = pictures.images.to(given.device)
        tokens = tokenize(pictures.texts, truncate=True).to(given.device)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=1e-4)

        def loss(x: Tensor, text: Tensor | None) -> Tensor:
            text = model.encode_text(tokens) if text is None else text
            image = F.normalize(model.encode_image(trainer.model.normalize(x)), dim=-1)
            scores = model.logit_scale.exp() * image @ F.normalize(text, dim=-1).T
            return F.cross_entropy(scores, torch.arange(len(x), device=x.device))

        def plain(how: str) -> None:
            text = model.encode_text(tokens) if how == "grad, text once" else None
            model.eval()
            delta = torch.randn_like(images)
            delta = EPS * F.normalize(delta.flatten(1), dim=1).view_as(delta)
            for _ in range(STEPS):
                delta.requires_grad_(True)
                value = loss((images + delta).clamp(0, 1), text)
                if how == "backward":
                    value.backward()
                    gradient: Any = delta.grad
                else:
                    (gradient,) = torch.autograd.grad(value, delta)
                step = F.normalize(gradient.flatten(1), dim=1).view_as(delta)
                delta = delta.detach() + 2.5 * EPS / STEPS * step
                norm = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                delta = delta * (EPS / norm).clamp(max=1)
            model.train()
            optimizer.zero_grad()
            loss((images + delta).clamp(0, 1), text).backward()
            optimizer.step()

        names = ("backward", "grad", "grad, text once")
        ways = {"ours": trainer.step} | {name: functools.partial(plain, name) for name in names}
        return compared(best(ways, given.rounds, given.device), "ours")


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """Processes of their own train on as many images in steps of 1 and of 64 micro-batches of a small ViT; the peak is
    the operating system's. What could grow with their number is the same for every tower."""
    if given.child:
        vision = {"image_size": SIZE, "patch_size": 32, "width": 192, "layers": 4}
        text = {**TEXT, "width": 128, "heads": 2, "layers": 1}
        tower = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
        batch = given.batch or 64
        changes = {"architecture": json.dumps(tower), "attack_steps": 1, "data": ["synthetic:256"]}
        changes |= {"samples": 128 * batch, "accumulation": given.child}
        with tempfile.TemporaryDirectory() as folder:
            trainer = recipe(folder, batch, given, **changes)
            for _ in range(trainer.steps):
                trainer.step()
        unit = 1 if sys.platform == "darwin" else 1024
        return {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    words = [word for word in sys.argv[1:] if word not in CASES]
    found = {f"{n} micro-batches, MB": child("memory", n, *words)["MB"] for n in (1, 64)}
    one, many = found.values()
    return {**found, "ratio": round(many / one, 3)}


def scene(count: int, width: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """CLIPDraw's start: 1 to 3 segments, steps of a tenth of the canvas; mix50 is log-uniform in [1, 50]."""
    numbers = torch.Generator().manual_seed(0)
    points = []
    for _ in range(count):
        length = 3 * int(torch.randint(1, 4, (1,), generator=numbers)) + 1
        steps = 0.1 * SIZE * (torch.rand(length, 2, generator=numbers) - 0.5)
        steps[0] = torch.rand(2, generator=numbers) * SIZE
        points.append(steps.cumsum(0).requires_grad_())
    mixed = (torch.rand(count, generator=numbers) * math.log(50)).exp()
    widths = mixed if width == "mix50" else torch.full((count,), float(width))
    return points, widths.requires_grad_(), torch.rand(count, 4, generator=numbers).requires_grad_()


def stroke_loop(points: list[Tensor], widths: Tensor, colors: Tensor) -> Tensor:
    """Premultiplied RGBA, stroke after stroke into a crop of the canvas, each cubic as eight capsules."""
    t = torch.linspace(0, 1, 9).view(-1, 1)
    canvas = torch.zeros(SIZE, SIZE, 4)
    for stroke, width, color in zip(points, widths, colors, strict=True):
        p = stroke.unfold(0, 4, 3).permute(2, 0, 1)[:, :, None]
        ends = (1 - t) ** 3 * p[0] + t**3 * p[3]
        curve = ends + 3 * t * (1 - t) ** 2 * p[1] + 3 * t**2 * (1 - t) * p[2]
        start, end = curve[:, :-1].reshape(-1, 1, 2), curve[:, 1:].reshape(-1, 1, 2)
        margin = float(width.detach()) + 1
        low = (stroke.detach().amin(0) - margin).floor().clamp(0, SIZE).int().tolist()
        high = (stroke.detach().amax(0) + margin).ceil().clamp(0, SIZE).int().tolist()
        if low[0] >= high[0] or low[1] >= high[1]:
            continue
        places = torch.arange(low[1], high[1]), torch.arange(low[0], high[0])
        y, x = torch.meshgrid(*places, indexing="ij")
        pixels = torch.stack((x, y), -1).view(-1, 2) + 0.5
        along = end - start
        where = ((pixels - start) * along).sum(-1) / (along.square().sum(-1) + 1e-9)
        foot = start + where.clamp(0, 1)[..., None] * along
        distance = ((pixels - foot).square().sum(-1).amin(0) + 1e-9).sqrt()
        weight = ((width - distance + 0.5).clamp(0, 1) * color[3]).view(*x.shape, 1)
        crop = canvas[low[1] : high[1], low[0] : high[0]]
        paint = torch.cat((color[:3], torch.ones(1)))
        canvas[low[1] : high[1], low[0] : high[0]] = crop + weight * (paint - crop)
    return canvas


def strokes(given: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward passes of scenes like CLIPDraw's, on one thread."""
    from clipag_plug.strokes import render_strokes

    weights = torch.randn(SIZE, SIZE, 4, generator=torch.Generator().manual_seed(0))
    weights, found = weights.to(given.device), {}
    for count in [count for count in (16, 64, 256) if count <= (given.batch or 256)]:
        for width in ("1", "10", "mix50"):
            points, *rest = scene(count, width)
            what = [p.to(given.device) for p in points], *(t.to(given.device) for t in rest)
            ways = {
                "ours": lambda what=what: render_strokes(*what, SIZE, SIZE).backward(weights),
                "loop": lambda what=what: stroke_loop(*what).backward(weights),
            }
            with torch.device(given.device):
                times = best(ways, given.rounds, given.device)
            found[f"{count} strokes, width {width}"] = compared(times, "ours")
    return found


def cam(given: argparse.Namespace) -> dict[str, Any]:
    """gScoreCAM of one text on a bundled model: the loop draws one mask and takes one forward pass a channel."""
    from clipag_plug.explanation.cam import find_layer, gscorecam, maps_and_gradients, masks
    from clipag_plug.explanation.maps import text_features
    from clipag_plug.guide import frozen, guide_for

    guide = guide_for("clipag-mini", device=given.device)
    numbers = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, guide.side, guide.side, generator=numbers).to(guide.device)
    with frozen([guide.model]):
        layer, texts = find_layer(guide), text_features(guide, ["a dog"])[None]

        def loop() -> Tensor:
            activations, gradients = maps_and_gradients(guide, images, texts, layer)
            importance = layer.as_map(gradients[0]).mean((2, 3))[0]
            seen = (images - guide.mean) / guide.std
            scores = torch.zeros_like(importance)
            with torch.no_grad():
                for channel in importance.topk(min(300, len(importance))).indices:
                    mask = masks(activations[0, channel][None], guide.side)
                    cosine = guide.features(mask * seen, normalize=False)[0] @ texts[0, 0]
                    scores[channel] = guide.model.logit_scale.exp() * cosine
            return torch.einsum("c,chw->hw", scores.softmax(0), activations[0]).relu()

        def batched() -> Tensor:
            return gscorecam(guide, images, texts, layer=layer, channels=300, batch_size=64)

        apart = float((loop() - batched()[0, 0]).abs().max() / loop().abs().max())
        found = compared(best({"ours": batched, "loop": loop}, given.rounds, given.device), "ours")
    return {**found, "maps differ by": apart}


# name: (side, widths, blocks of each stage, kernel and stride of the first convolution, activation)
TOWERS = {
    "40 inside": (40, (32, 64, 144, 320), 1, 3, 2, "relu"),
    "40 inside, SiLU": (40, (32, 64, 144, 320), 1, 3, 2, "silu"),
    "40 inside, two blocks a stage": (40, (32, 64, 144, 320), 2, 3, 2, "relu"),
    "twice as wide, 32 inside": (32, (64, 128, 256, 512), 1, 4, 2, "relu"),
    "twice as wide, 64 inside, stride 4": (64, (64, 128, 256, 512), 1, 6, 4, "relu"),
    "the same with SiLU": (64, (64, 128, 256, 512), 1, 6, 4, "silu"),
}


def towers(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a batch of 64 at the tower's own side: weights' gradients, and a gradient for the input."""
    from clipag_plug.mini import MiniVisual

    found: dict[str, Any] = {}
    for name, (side, widths, depth, stem, stride, activation) in TOWERS.items():
        tower = MiniVisual(192, side, widths, [depth] * len(widths), stem, stride, activation)
        images = torch.rand(given.batch or 64, 3, side, side, requires_grad=True)

        def training(tower: Any = tower, images: Tensor = images) -> None:
            tower.zero_grad(set_to_none=True)
            tower(images.detach()).square().mean().backward()

        def gradient(tower: Any = tower, images: Tensor = images) -> None:
            torch.autograd.grad(tower(images).square().mean(), images)

        found[name] = best({"training": training}, given.rounds)
        tower.requires_grad_(False)
        found[name] |= best({"input gradient": gradient}, given.rounds)
    return found


WAYS = {
    "from the cache": "served",
    "own .safetensors": "{}/w.safetensors#gelu,arch=ViT-B-32",
    "own .pt": "{}/w.pt#gelu,arch=ViT-B-32",
    "open_clip": "{}/w.safetensors",
}


def load(given: argparse.Namespace) -> dict[str, Any]:
    """Loads of one ViT-B/32, each in a process of its own that has imported torch, torchvision and the packages that it
    needs. Memory: what the peak of resident pages grows by (Linux only), over the bytes of the weights."""
    import torchvision.transforms  # noqa: F401

    import clipag_plug
    from clipag_plug.weights import registry

    def serve(port: int) -> None:
        row = registry.Checkpoint("served", "ViT-B-32", False, (f"http://127.0.0.1:{port}/w.pt",))
        registry._table = lambda: {"served": row}  # type: ignore[assignment]

    if given.child:
        kind = list(WAYS)[given.child - 1]
        name = WAYS[kind].format(os.environ["CLIPAG_HOME"])
        way: Callable[[], object] = lambda: clipag_plug.load(name, "cpu")  # noqa: E731
        if kind != "from the cache":
            import open_clip  # our configs of named architectures are open_clip's files and networks
        if kind == "open_clip":
            way = lambda: open_clip.create_model("ViT-B-32", pretrained=name)  # noqa: E731
        serve(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        return {"seconds": seconds(way), "memory": (resident("VmHWM") - before) / given.batch}

    from open_clip.model import CLIP
    from safetensors.torch import save_file

    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        state = CLIP(**VIT_B_32).state_dict()
        save_file(state, f"{folder}/w.safetensors")
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, f"{folder}/w.pt")
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        serve(server.server_port)
        first = seconds(lambda: clipag_plug.load("served", "cpu", download_root=folder))
        server.shutdown()
        size = sum(value.nbytes for value in state.values())
        # Compiled to bytecode, as pip leaves a package.
        settings = {"CLIPAG_HOME": folder, "PYTHONPYCACHEPREFIX": f"{folder}/code"}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(given.rounds + 1):
            for number, kind in enumerate(WAYS, 1):
                found[kind].append(child("load", number, "--batch", str(size), **settings))
    best = {kind: min(one["seconds"] for one in each[1:]) for kind, each in found.items()}
    most = {kind: round(max(one["memory"] for one in each[1:]), 3) for kind, each in found.items()}
    return {"first": first, **compared(best, "from the cache"), "memory over weights": most}


def resident(name: str) -> int:
    """Bytes of pages in memory: "VmRSS" now, "VmHWM" at most so far."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024


FEEDING = """
import json, sys, time, torch
torch.set_num_threads(1)
from clipag_plug.train.data import Batches, open_data
data = open_data([sys.argv[1]], 237, memory=0.0)  # as the recipes of CLIPAG decode: crops of 0.9 at 224
ways = {"crop": 0.9, "flip": False, "seed": 0, "vocabulary": None, "group_share": 0.0}
alone, stream = (Batches(data, 16, 224, decoders=number, **ways) for number in (0, 2))
count = int(sys.argv[2])
cpu = time.process_time()
for index in range(count // 4):
    alone[index]
found = {"images a second of one core": count // 4 * 16 / (time.process_time() - cpu)}
stream[0]
clock = time.perf_counter()
for index in range(1, count):
    stream[index]
rate = (time.perf_counter() - clock) / (count - 1)
found["images a second with two workers"] = 16 / rate
clock = time.perf_counter()
for index in range(count, 2 * count):
    time.sleep(rate / 0.9)
    stream[index]
found["share of the time computing"] = count * rate / 0.9 / (time.perf_counter() - clock)
print(json.dumps(found))
"""


def photographs(folder: Path) -> None:
    """64 JPEG files of 640x480 pixels with captions."""
    import numpy as np
    from PIL import Image

    for number in range(64):
        coarse = np.random.default_rng(number).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 480)).save(folder / f"{number}.jpg", quality=90)
        (folder / f"{number}.txt").write_text("a thing")


def data(given: argparse.Namespace) -> dict[str, Any]:
    """Reading, decoding and cropping 640x480 JPEG files on two cores, and the way of commit 45d2067."""
    count, found = given.batch or 64, dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        photos, old = Path(folder, "photos"), Path(folder, "old")
        photos.mkdir()
        photographs(photos)
        add = ["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(old), "45d2067"]
        subprocess.run(add, check=True)
        try:
            for name, tree in (("ours", ROOT), ("45d2067", old)) * given.rounds:
                command = [sys.executable, "-c", FEEDING, str(photos), str(count)]
                done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
                told = json.loads(done.stdout.splitlines()[-1])
                mine = found.setdefault(name, told)
                found[name] = {key: max(mine[key], value) for key, value in told.items()}
        finally:
            subprocess.run([*add[:3], "worktree", "remove", "--force", str(old)], check=True)
    keys = list(found["ours"])[:2]
    found["ratio to 45d2067"] = {k: round(found["ours"][k] / found["45d2067"][k], 2) for k in keys}
    return found


CASES = {each.__name__: each for each in (paint, train, memory, strokes, cam, towers, load, data)}


def main() -> int:
    """Measures what is named and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+", choices=tuple(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--batch", type=int, default=0, help="views or images; 0 takes the case's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    print(json.dumps({name: CASES[name](given) for name in given.cases}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
