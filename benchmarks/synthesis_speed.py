"""Speed and memory of the loop against the published one: same weights, same views, same precision, one run.

    python benchmarks/synthesis_speed.py                     # ViT-B/32, random weights, CPU
    python benchmarks/synthesis_speed.py --device cuda --steps 20 --precision bf16
    python benchmarks/synthesis_speed.py --model clipag      # real weights

The published loop is tests/transcription.py on open_clip's own network, whose weights are not frozen, as in the
authors' notebook; it is also timed on this package's network, which is the quicker one. Prints JSON.
Peak memory is that of PyTorch's allocator over one step, without the weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import transcription  # noqa: E402

from clipag_plug.guide import frozen  # noqa: E402
from clipag_plug.options.generate import Generate  # noqa: E402
from clipag_plug.paint import Synthesizer  # noqa: E402

VIT_B_32: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


class Peak(TorchDispatchMode):
    """Bytes alive at once of storages that operations made inside this block, on any device, without the weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self.known = {
            tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return found

    def _watch(self, storage: Any) -> None:
        import weakref

        key, size = storage._cdata, storage.nbytes()
        if key in self.known or size == 0:
            return
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def model_of(name: str, device: str) -> Any:
    """ViT-B/32 with random weights, or a model by key."""
    from clipag_plug import clip
    from clipag_plug.model import build

    if name != "random":
        return clip.load(name, device)[0]
    torch.manual_seed(0)
    return build(VIT_B_32, None, name="random ViT-B/32").to(device)


def stock(model: Any) -> Any:
    """open_clip's own network with the weights of the random ViT-B/32."""
    from open_clip.model import CLIP

    network = CLIP(**VIT_B_32).eval()
    network.load_state_dict(model.state_dict())
    network.tokenize = model.tokenize
    return network.to(next(model.parameters()).device)


def seconds(step: Callable[[], object], steps: int, device: str) -> float:
    """Time of one step, after one to warm up: of the clock, or on one CPU thread of the processor, which other
    programs on the machine do not change."""
    clock = (
        time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    )
    step()
    _wait(device)
    start = clock()
    for _ in range(steps):
        step()
    _wait(device)
    return (clock() - start) / steps


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def published(model: Any, run: Synthesizer, views: int, steps: int, device: str, low: Any) -> Any:
    """One call = `steps` steps of the transcription on the same start with rows of the same kind."""
    transcription.MEAN, transcription.STD = (
        transcription.MEAN.to(device),
        transcription.STD.to(device),
    )
    text = F.normalize(
        model.encode_text(model.tokenize(run.options.prompts).to(device)).mean(0, keepdim=True)
    )
    generator = torch.Generator().manual_seed(0)
    gaussian = transcription.gaussian
    transcription.gaussian = lambda number, shape: gaussian(number, shape).to(device)

    def tape(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.rand(views, k, generator=generator).to(device) for k in (9, 11))  # type: ignore[return-value]

    def go() -> None:
        with torch.autocast(device, dtype=low) if low else contextlib.nullcontext():
            transcription.notebook_loop(model, text.detach(), run.canvas.start, tape, steps)

    return go


def ours(run: Synthesizer) -> Callable[[], object]:
    """One call = one step of the package's loop."""

    def go() -> None:
        with frozen([guide.model for guide in run.guides]):
            run._step(0)

    return go


def encoder_share(run: Synthesizer, steps: int, device: str) -> float:
    """Share of a step spent in the encoder's forward and its way back to the views."""
    guide = run.guides[0]
    views = torch.rand(run.objective.sets[0].count, 3, guide.side, guide.side, device=device)

    def encoder() -> None:
        for view_set in run.objective.sets:
            leaf = views[: view_set.count].detach().requires_grad_(True)
            torch.autograd.grad(guide.features(leaf).sum(), leaf)

    with frozen([guide.model]):
        alone = seconds(encoder, steps, device)
    return alone / seconds(ours(run), steps, device)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random", help="key of a model, or random")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--views", type=int, default=32, help="views and as many patches")
    parser.add_argument("--memory", type=int, default=256, help="MiB for the run in micro-batches")
    parser.add_argument(
        "--batch", type=int, default=8, help="prompts of the batch against single runs"
    )
    given = parser.parse_args()
    device, low = (
        given.device,
        {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[given.precision],
    )
    model = model_of(given.model, device)
    options = Generate(
        prompts=["a goldfish"], preset="notebook", init="noise", views=given.views, patches=given.views,
        precision=given.precision,
    )  # fmt: skip
    run = Synthesizer(options, model)
    peer = stock(model) if given.model == "random" else model
    theirs = published(peer, run, given.views, 1, device, low)
    result: dict[str, Any] = {
        "model": run.guides[0].name, "device": device, "precision": given.precision, "views": given.views,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    result["published_seconds"] = seconds(theirs, given.steps, device)
    same = published(model, run, given.views, 1, device, low)
    result["published_on_our_network_seconds"] = seconds(same, given.steps, device)
    for network in (peer, model):
        network.zero_grad(set_to_none=True)
    result["ours_seconds"] = seconds(ours(run), given.steps, device)
    result["speedup"] = result["published_seconds"] / result["ours_seconds"]
    result["speedup_on_our_network"] = (
        result["published_on_our_network_seconds"] / result["ours_seconds"]
    )
    result["encoder_share"] = encoder_share(run, given.steps, device)
    small = Synthesizer(options.replace(memory=given.memory), model)
    large = Synthesizer(
        options.replace(memory=given.memory, views=4 * given.views, patches=4 * given.views), model
    )
    jobs = {
        "published": theirs,
        "ours": ours(run),
        "ours_limited": ours(small),
        "ours_limited_4x_views": ours(large),
    }
    for name, job in jobs.items():
        for network in (peer, model):
            network.zero_grad(set_to_none=True)
        with Peak(peer if name == "published" else model) as peak:
            job()
        result[f"{name}_peak_mib"] = peak.peak / 2**20
    model.zero_grad(set_to_none=True)
    few: dict[str, Any] = {"views": 2, "patches": 0}
    prompts = [f"a thing number {number}" for number in range(given.batch)]
    single = seconds(ours(Synthesizer(options.replace(**few), model)), given.steps, device)
    batch = seconds(
        ours(Synthesizer(options.replace(**few, prompts=prompts), model)), given.steps, device
    )
    result[f"batch_of_{given.batch}_speedup_at_2_views"] = given.batch * single / batch
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
