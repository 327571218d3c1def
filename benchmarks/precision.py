"""What bf16 is worth: the figures of the table in `clipag_plug/precision.py`, on the machine that it runs on.

    OMP_NUM_THREADS=1 python benchmarks/precision.py ViT-B-32 RN50 clipag-mini     # architectures, or models by name
    OMP_NUM_THREADS=1 python benchmarks/precision.py --judge clipag-mini --count 100

An architecture of open_clip's has random weights. Both formats take turns, the shortest time of each counts. `guide`:
how many times as fast is a pass forward and back to the pixels of a frozen model, `train`: one such pass and one to the
weights, for 4 and 32 images; cosines are the smallest of 32 images'. `--judge` paints so many prompts with each format
and with another seed, and says what judge-mini recognises.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from speed import TEXT, best
from torch import Tensor
from torch.nn import functional as F


def opened(name: str) -> Any:
    """A model by a name that load() takes, or an architecture with random weights and a small text tower."""
    from clipag_plug.clip import load_model
    from clipag_plug.model import build
    from clipag_plug.weights import configs, registry

    if registry.get(name) or name.endswith((".safetensors", ".pt")):
        return load_model(name, "cpu")
    torch.manual_seed(0)
    if name.startswith("lite"):
        lite = {"variant": int(name[4:] or 0), "image_size": 96}
        config = {"embed_dim": 256, "vision_cfg": {"image_size": 224, "lite": lite}}
    else:
        config = configs.named(name)
    text = {**TEXT, "vocab_size": 1000, "width": 64, "heads": 2, "layers": 1}
    return build({**config, "text_cfg": text}, None, name=name).eval()


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Ratios of times and cosines of one model."""
    from clipag_plug.guide import Guide, frozen

    guides = {each: Guide(opened(name), precision=each) for each in ("fp32", "bf16")}
    side, found = guides["fp32"].side, dict[str, Any]()
    images = torch.rand(32, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = guides["fp32"].features(images).roll(1, 0)

    def back(guide: Guide, count: int) -> tuple[Tensor, Tensor]:
        leaf = images[:count].clone().requires_grad_()
        with frozen([guide.model]):
            features = guide.features(leaf)
            (gradient,) = torch.autograd.grad((features * wanted[:count]).sum(), leaf)
        return features.detach(), gradient.flatten(1)

    def weights(guide: Guide, count: int) -> None:
        guide.model.visual.train().requires_grad_(True)
        guide.model.zero_grad()
        (guide.features(images[:count]) * wanted[:count]).sum().backward()

    names = ("features", "gradient")
    for what, ours, exact in zip(names, back(guides["bf16"], 32), back(guides["fp32"], 32)):
        found[what] = round(float(F.cosine_similarity(ours, exact).min()), 5)
    for count in (4, 32):
        taken: dict[str, dict[str, float]] = {}
        for way in (back, weights):
            ways: dict[str, Callable[[], object]] = {
                each: partial(way, guide, count) for each, guide in guides.items()
            }
            taken[way.__name__] = best(ways, rounds)
        both = {each: sum(times[each] for times in taken.values()) for each in guides}
        for what, times in (("guide", taken["back"]), ("train", both)):
            found[f"{what}, {count}"] = round(times["fp32"] / times["bf16"], 2)
            found[f"{what}, {count}, ms an image in bf16"] = round(1e3 * times["bf16"] / count, 2)
    return found


def judged(name: str, count: int) -> dict[str, Any]:
    """Shares that the judge recognises, and its similarity: fp32, bf16, and fp32 from other starts."""
    from clipag_plug.bench.judges import Judge
    from clipag_plug.clip import load_model
    from clipag_plug.paint import synthesize
    from clipag_plug.vocabulary import bundled_vocabulary, sentence

    judge = Judge(load_model("judge-mini", "cpu"), "judge-mini", bundled_vocabulary().class_names)
    step = len(judge.classes) // count or 1
    rows = list(range(0, len(judge.classes), step))[:count]
    prompts = [sentence(judge.classes[row], "a {}") for row in rows]
    truth, found = torch.tensor(rows), dict[str, Any]()
    for what, seed, precision in (
        ("fp32", 0, "fp32"),
        ("bf16", 0, "bf16"),
        ("fp32, other starts", 1000, "fp32"),
    ):
        images = []
        for start in range(0, len(prompts), 20):
            part = prompts[start : start + 20]
            made = synthesize(part, model=name, seed=seed + start, precision=precision)
            images += [each.image for each in made]
        scores = judge.logits(judge.enlarged(torch.stack(images)))
        logp = scores.log_softmax(1)[torch.arange(len(rows)), truth].mean()
        right = (scores.topk(5).indices == truth[:, None]).cpu()
        found[what] = {"top-1": float(right[:, 0].float().mean())}
        found[what] |= {"top-5": float(right.any(1).float().mean()), "log p": float(logp)}
    return found


def main() -> int:
    """Measures what is named and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--count", type=int, default=100, help="prompts of the judge")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for name in given.models:
        found = judged(name, given.count) if given.judge else measured(name, given.rounds)
        print(json.dumps({name: found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
