"""Speed of one adversarial training step against the loop that people write first: same model, images and attack.

    OMP_NUM_THREADS=1 python benchmarks/train_speed.py            # ViT-B/32 at 224, random weights, fp32, CPU
    python benchmarks/train_speed.py --device cuda --batch 256 --precision bf16

The plain loops are written here from the published descriptions of TeCoA and RobustVLM, in fp32: the weights'
gradients stay enabled while the attack runs, and
  backward    calls loss.backward() in every attack step and encodes the captions again each time (TeCoA's way);
  grad        asks autograd for the gradient of the perturbation alone, and encodes the captions each time;
  grad, text once   the same with the captions encoded once before (RobustVLM's way).
On the CPU the times are CPU time of the process, which other programs do not change much; on a GPU, wall time. Prints
JSON: seconds a step, best of the rounds, which go in turn; the ratios; and where the time of ours goes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug.clip import tokenize  # noqa: E402
from clipag_plug.options.train import Train  # noqa: E402
from clipag_plug.train import loop, setup  # noqa: E402
from clipag_plug.train.data import Batch  # noqa: E402

VIT_B_32: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
FORWARD = 8.8e9  # FLOP of the image tower for a picture
EPS, STEPS = 1.5, 5
LOOPS = ("backward", "grad", "grad, text once")


def trainer_of(options: argparse.Namespace, folder: str) -> loop.Trainer:
    """Ours, on synthetic images with captions."""
    recipe = Train(
        data=[f"synthetic:{2 * options.batch}"],
        architecture=json.dumps(VIT_B_32),
        samples=100 * options.batch,
        batch_size=options.batch,
        objective="contrastive",
        attack_objective="image_to_text",
        eps=EPS,
        attack_steps=STEPS,
        precision=options.precision,
        compile=options.compile,
        device=options.device,
        output=folder,
        quiet=True,
    )
    return setup.prepare(recipe)[0]


def plain_step(trainer: loop.Trainer, optimizer: Any, batch: Batch, how: str) -> None:
    """One step of a loop that knows neither of the savings; L2 PGD from a random start, then AdamW."""
    model, device = trainer.model, trainer.device
    images, tokens = batch.images.to(device), tokenize(batch.texts, truncate=True).to(device)
    target = torch.arange(len(images), device=device)
    kept = model.encode_text(tokens) if how == "grad, text once" else None

    def loss(x: Tensor) -> Tensor:
        text = model.encode_text(tokens) if kept is None else kept
        image = F.normalize(model.encode_image(model.normalize(x)), dim=-1)
        scores = model.logit_scale.exp() * image @ F.normalize(text, dim=-1).T
        return F.cross_entropy(scores, target)

    model.eval()
    delta = torch.randn_like(images)
    delta = EPS * delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for _ in range(STEPS):
        delta.requires_grad_(True)
        value = loss((images + delta).clamp(0, 1))
        if how == "backward":
            value.backward()
            gradient = delta.grad
        else:
            (gradient,) = torch.autograd.grad(value, delta)
        delta = _projected(delta.detach(), gradient)
    model.train()
    value = loss((images + delta).clamp(0, 1))
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def _projected(delta: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise RuntimeError("no gradient reached the perturbation")
    delta = delta + 2.5 * EPS / STEPS * F.normalize(gradient.flatten(1), dim=1).view_as(gradient)
    norm = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return delta * (EPS / norm).clamp(max=1)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """CPU time of a call on the CPU, wall time on a GPU."""
    if device.type == "cpu":
        started = time.process_time()
        run()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def parts_of(trainer: loop.Trainer) -> dict[str, float]:
    """Seconds of one step of ours by part."""
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, call: Any) -> Any:
        def run(*args: Any, **keywords: Any) -> Any:
            found: list[Any] = []
            spent[name] += seconds(lambda: found.append(call(*args, **keywords)), trainer.device)
            return found[0]

        return run

    class Timed:  # `Batches` with a clock
        def __init__(self, batches: Any) -> None:
            self.batches, self.read = batches, timed("data", batches.__getitem__)

        def __getitem__(self, index: int) -> Batch:
            return self.read(index)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.batches, name)

    original, batches = loop.whole_loss, trainer.batches
    names = {
        "_attack": "attack",
        "_features": "forward",
        "_backward": "backward",
        "_update": "optimizer",
    }
    try:
        trainer.batches = Timed(batches)  # type: ignore[assignment]
        loop.whole_loss = timed("loss", original)
        for method, name in names.items():
            setattr(trainer, method, timed(name, getattr(trainer, method)))
        whole = seconds(trainer.step, trainer.device)
    finally:
        trainer.batches, loop.whole_loss = batches, original
        for method in names:
            delattr(trainer, method)
    return {**{name: round(value, 3) for name, value in spent.items()}, "step": round(whole, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", default="fp32", help="of ours; the plain loops take fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(options, folder)
        weights = list(trainer.weights.values())
        optimizer = torch.optim.AdamW(weights, lr=1e-5, weight_decay=1e-4)
        batch = trainer.batches[0]
        trainer.step()  # first calls set things up; the plain loops share all of it
        for _ in range(options.rounds):
            for how in ("ours", *LOOPS):
                run = trainer.step if how == "ours" else (
                    lambda how=how: plain_step(trainer, optimizer, batch, how)
                )  # fmt: skip
                best[how] = min(best.get(how, float("inf")), seconds(run, trainer.device))
        optimizer.zero_grad()
        parts = parts_of(trainer)
    print(json.dumps(result(options, best, parts), indent=1))
    return 0


def result(
    options: argparse.Namespace, best: dict[str, float], parts: dict[str, float]
) -> dict[str, Any]:
    flop = (2 * STEPS + 3) * FORWARD * options.batch
    device = "cpu" if options.device == "cpu" else torch.cuda.get_device_name()
    return {
        "setting": {**vars(options), "threads": torch.get_num_threads(), "on": device},
        "torch": torch.__version__,
        "seconds a step": {name: round(value, 3) for name, value in best.items()},
        "images/s": {name: round(options.batch / value, 3) for name, value in best.items()},
        "ratio to ours": {name: round(best[name] / best["ours"], 2) for name in LOOPS},
        "TFLOP/s of ours": round(flop / best["ours"] / 1e12, 3),
        "where the time goes": parts,
    }


if __name__ == "__main__":
    sys.exit(main())
