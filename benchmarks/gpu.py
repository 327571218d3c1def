"""All figures of one GPU by one command, in at most 8 minutes.

    python benchmarks/gpu.py -o benchmarks/results/gpu.json
    python benchmarks/gpu.py --device cpu --tiny            # a rehearsal: a small network, two rounds

Prints JSON and writes it after each case: a step of synthesis (ViT-B/32, 64 views) against the published loop, an
adversarial step (5 PGD steps, 256 images) against RobustVLM's way, APGD, the data stage of this machine, strokes. Ours
run in bf16, the others in fp32, with TF32 where the card has it. `share of the peak`: operations a second (PyTorch's
counter, a product with a sum counted as two) over those of one large matrix product in bf16 on the same card.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {**speed.TEXT, "width": 64, "heads": 2, "layers": 1},
}


def operations(way: Callable[[], object]) -> int:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def peak(device: str, side: int, rounds: int) -> float:
    """Operations a second of a product of square bf16 matrices."""
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    found = speed.best({"product": lambda: [a @ b for _ in range(8)]}, rounds, device)
    return 8 * 2 * side**3 / found["product"]


def attack(given: argparse.Namespace) -> dict[str, Any]:
    """Images a second through one step of APGD on a zero-shot classifier of 1,000 classes."""
    from clipag_plug.attacks import apgd
    from clipag_plug.guide import PRECISIONS, frozen
    from clipag_plug.model import build

    model = build(speed.VIT_B_32, None, name="random").to(given.device)
    side, count, steps = model.visual.input_resolution, given.batch or 256, 10
    images = torch.rand(count, 3, side, side, device=given.device)
    texts = F.normalize(torch.randn(1000, model.text_projection.shape[1], device=given.device))
    labels = torch.arange(count, device=given.device) % 1000

    def loss(x: torch.Tensor) -> torch.Tensor:
        low = PRECISIONS[given.precision]
        with torch.autocast(given.device, dtype=low, enabled=low is not None):
            features = model.encode_image(model.normalize(x))
        scores = 100 * F.normalize(features.float(), dim=-1) @ texts.T
        return F.cross_entropy(scores, labels, reduction="none")

    with frozen([model]):
        found = speed.best(
            {"ours": lambda: apgd(loss, images, eps=1.5, steps=steps)}, given.rounds, given.device
        )
    return {"images a second, one step": round(count * (steps + 1) / found["ours"], 1)}


def data(given: argparse.Namespace) -> dict[str, Any]:
    """Reading, decoding and cropping 640x480 JPEG files, as speed.py has it, without an earlier way."""
    with tempfile.TemporaryDirectory() as folder:
        speed.photographs(Path(folder))
        command = [sys.executable, "-c", speed.FEEDING, folder, str(given.batch or 64)]
        done = subprocess.run(command, cwd=speed.ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small network, for a rehearsal")
    parser.add_argument("-o", "--output", type=Path, help="file to write")
    given = parser.parse_args()
    cuda = given.device == "cuda"
    if cuda and not torch.cuda.is_available():
        print("gpu: error: no CUDA device; rehearse with --device cpu --tiny", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if given.tiny:
        speed.VIT_B_32 = TINY
    rounds = 1 if given.tiny else 5
    flops: dict[str, float] = {}
    plain = speed.best

    def counting(ways: dict[str, Callable[[], object]], *rest: Any) -> dict[str, float]:
        times = plain(ways, *rest)
        flops.update({name: operations(way) / times[name] for name, way in ways.items()})
        return times

    top = peak(given.device, 64 if given.tiny else 8192, rounds)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else given.device,
        "torch": torch.__version__,
        "network": "a small ViT" if given.tiny else "ViT-B/32",
        "bf16 matrix product, operations a second": top,
    }
    for name, case, batch in (
        ("synthesis step", speed.paint, 64),
        ("adversarial step", speed.train, 256),
        ("APGD", attack, 256),
        ("data", data, 64),
        ("strokes", speed.strokes, 0),
    ):
        started = time.perf_counter()
        size = (2 if batch else 16) if given.tiny else batch
        how = {"device": given.device, "precision": "bf16", "batch": size, "rounds": rounds}
        options = argparse.Namespace(**how)
        speed.best = counting if case in (speed.paint, speed.train) else plain
        flops.clear()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        each = case(options)
        if flops:
            each["operations a second"] = dict(flops)
            each["share of the peak"] = round(flops["ours"] / top, 3)
        if cuda:
            each["peak memory, MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
        found[name] = {**each, "wall seconds": round(time.perf_counter() - started, 1)}
        if given.output:
            given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
