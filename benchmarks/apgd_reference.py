"""Auto-PGD of this package against its authors' implementation: robust accuracy on the bundled models.

    git clone https://github.com/fra31/auto-attack
    python benchmarks/apgd_reference.py auto-attack                 # both models, 505 photographs, 20 steps
    python benchmarks/apgd_reference.py auto-attack --models clipag-mini --images 100 --steps 50

Both attack the photographs that the model names rightly, in batches of 50 at 224x224, in L2 1.5 and Linf 2/255, with
APGD on the cross-entropy and with APGD-T on nine targets. One restart. Writes benchmarks/results/apgd.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug import clip  # noqa: E402
from clipag_plug.attacks import pgd  # noqa: E402
from clipag_plug.attacks.apgd import apgd_ce, apgd_targeted  # noqa: E402
from clipag_plug.bench.judges import Classifier  # noqa: E402
from clipag_plug.bundled.photos import bundled_photos  # noqa: E402
from clipag_plug.files import write_text  # noqa: E402
from clipag_plug.losses.margins import ce  # noqa: E402
from clipag_plug.vocabulary import bundled_vocabulary  # noqa: E402

BALLS = (("l2", 1.5, "L2"), ("linf", 2 / 255, "Linf"))
BATCH = 50
Attack = Callable[[Tensor, Tensor], Tensor]


def batches(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Photographs at 224 pixels with their labels."""
    photos = bundled_photos()
    for part in rows.split(BATCH):
        yield photos.pixels(part, 224), photos.labels[part]


@torch.no_grad()
def named_rightly(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Which pictures the model names rightly."""
    return classifier.logits(images).argmax(1) == labels


def standing(
    classifier: Classifier, rows: Tensor, attack: Attack, norm: str, eps: float
) -> tuple[int, float]:
    """How many of the photographs are still named rightly, and processor seconds."""
    count, start = 0, time.process_time()
    for images, labels in batches(rows):
        found = attack(images, labels).detach()
        change = found - images
        size = change.flatten(1).norm(dim=1).max() if norm == "l2" else change.abs().max()
        assert size <= eps * 1.0001 and found.min() >= 0 and found.max() <= 1
        count += int(named_rightly(classifier, found, labels).sum())
    return count, time.process_time() - start


def attacks(logits: Any, norm: str, eps: float, steps: int, official: str) -> dict[str, Attack]:
    """Ours and theirs under one name each."""
    from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    ours: dict[str, Any] = {"eps": eps, "norm": norm, "steps": steps}
    theirs: dict[str, Any] = {"n_iter": steps, "norm": official, "eps": eps, "seed": 0}
    theirs["device"] = "cpu"
    generator = torch.Generator().manual_seed(0)
    return {
        "PGD": lambda x, y: pgd(lambda z: ce(logits(z), y), x, **ours),
        "APGD-CE": lambda x, y: apgd_ce(logits, x, y, **ours, generator=generator),
        "APGD-CE, theirs": lambda x, y: APGDAttack(logits, loss="ce", **theirs).perturb(x, y),
        "APGD-T": lambda x, y: apgd_targeted(logits, x, y, **ours, generator=generator),
        "APGD-T, theirs": lambda x, y: APGDAttack_targeted(logits, **theirs).perturb(x, y),
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reference", type=Path, help="folder of a clone of fra31/auto-attack")
    parser.add_argument("--models", nargs="+", default=["clip-mini", "clipag-mini"])
    parser.add_argument("--images", type=int, default=505)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", "--output", default=str(ROOT / "benchmarks" / "results" / "apgd.md"))
    given = parser.parse_args()
    sys.path.insert(0, str(given.reference))
    lines = [
        "# Auto-PGD against its authors' implementation\n",
        f"`python benchmarks/apgd_reference.py auto-attack --images {given.images} --steps {given.steps}`, torch "
        f"{torch.__version__}. Percent of the photographs that are named rightly under attack; in brackets seconds of "
        "one core. One restart, nine targets; random starts differ.\n",
        "| model | ball | PGD | APGD-CE | theirs | APGD-T | theirs |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in given.models:
        model = clip.load(name, device="cpu")[0].requires_grad_(False)
        classifier = Classifier(model, bundled_vocabulary().class_names)
        rows = torch.arange(min(given.images, len(bundled_photos())))
        count, own = len(rows), [named_rightly(classifier, *batch) for batch in batches(rows)]
        rows = rows[torch.cat(own)]
        for norm, eps, official in BALLS:
            cells = []
            ways = attacks(classifier.logits, norm, eps, given.steps, official)
            for title, attack in ways.items():
                found, seconds = standing(classifier, rows, attack, norm, eps)
                percent = 100 * found / count
                sys.stderr.write(f"{name} {norm} {title}: {percent:.2f} % {seconds:.0f} s\n")
                cells.append(f"{percent:.2f} ({seconds:.0f})")
            ball = "L2 1.5" if norm == "l2" else "Linf 2/255"
            lines.append(f"| {name} | {ball} | {' | '.join(cells)} |")
    sys.stdout.write(f"{write_text(given.output, chr(10).join(lines) + chr(10))}\n")


if __name__ == "__main__":
    main()
