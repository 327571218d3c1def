"""What small image towers cost in training: images a second of one thread, as multiples of the first tower's.

    python benchmarks/tower_speed.py                 # about two minutes
    python benchmarks/tower_speed.py --precision bf16

Three rates of a batch of 64 at the tower's own side: a training step's passes (weights' gradients), a gradient for the
input, and one-step adversarial training, which needs both. No data, no optimiser: the towers alone.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug.mini import MiniVisual  # noqa: E402

BATCH = 64
# name: (side, widths, blocks of each stage, kernel and stride of the first convolution, activation)
TOWERS = {
    "40 inside": (40, (32, 64, 144, 320), 1, 3, 2, "relu"),
    "48 inside, stride 3": (48, (48, 96, 192, 384), 1, 5, 3, "relu"),
    "40 inside, SiLU": (40, (32, 64, 144, 320), 1, 3, 2, "silu"),
    "40 inside, two blocks a stage": (40, (32, 64, 144, 320), 2, 3, 2, "relu"),
    "40 inside, twice as wide": (40, (64, 128, 256, 512), 1, 4, 2, "relu"),
    "twice as wide, 32 inside": (32, (64, 128, 256, 512), 1, 4, 2, "relu"),
    "twice as wide, 64 inside, stride 4": (64, (64, 128, 256, 512), 1, 6, 4, "relu"),
    "bundled guides: the same with SiLU": (64, (64, 128, 256, 512), 1, 6, 4, "silu"),
    "three wide stages, 48 inside, stride 4": (48, (96, 192, 384), 1, 6, 4, "relu"),
}


def rate(work: Callable[[], object], seconds: float) -> float:
    """Images a second, after two runs to warm up."""
    work(), work()
    started, runs = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        runs += 1
    return BATCH * runs / (time.perf_counter() - started)


def rates(tower: MiniVisual, precision: str, seconds: float) -> tuple[float, float, float]:
    """Training, input gradient, one-step adversarial training, in images a second."""
    images = torch.rand(BATCH, 3, tower.image_size, tower.image_size)
    low = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def loss(x: torch.Tensor) -> torch.Tensor:
        with low:
            features = tower(x)
        return features.float().square().mean()

    def train() -> None:
        tower.zero_grad(set_to_none=True)
        loss(images).backward()

    def gradient() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(loss(x), x)

    trained = rate(train, seconds)
    tower.requires_grad_(False)
    moved = rate(gradient, seconds)
    return trained, moved, 1 / (1 / trained + 1 / moved)


def main() -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", nargs="+", choices=tuple(TOWERS), default=tuple(TOWERS))
    parser.add_argument("--seconds", type=float, default=2.5, help="for each rate")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| tower | million weights | training | input gradient | one-step adversarial |")
    print("|---|---:|---:|---:|---:|")
    base: tuple[float, ...] = ()
    for name in given.only:
        side, widths, depth, stem, stride, activation = TOWERS[name]
        tower = MiniVisual(192, side, widths, [depth] * len(widths), stem, stride, activation)
        found = rates(tower.train(), given.precision, given.seconds)
        base = base or found
        cells = [f"{each:.0f} ({each / first:.2f}x)" for each, first in zip(found, base)]
        size = sum(weight.numel() for weight in tower.parameters()) / 1e6
        print(f"| {name} | {size:.1f} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
