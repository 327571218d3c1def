"""The start of the pair: EfficientNet-Lite with ImageNet's weights beside a fresh text tower, as a file that trains on.

    python benchmarks/make/pair.py --words runs/pair/words.npz --classes classes.tsv -o runs/pair/start.safetensors

Needs what words.py needs. Besides the start it writes `captions.npz` and `captions.txt`, the stored vectors of "a photo
of a ..." for every class and "a cartoon of a ..." for every concept, and `lite0.pth`, the untouched network. The image
tower gets the projection that meets the vectors in which words.py laid out the classes, so that a class's features are
those of its name before anything is learned.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from words import imagenet, lite0  # its neighbour

from clipag_plug import model as models
from clipag_plug.vocabulary import in_template
from clipag_plug.weights.export import write_bundled

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of the pixels that the weights were trained on
SCALE = 30.0  # of the logits, to begin with
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3}


def projection(head: torch.Tensor, targets: torch.Tensor, weight: float = 1e-3) -> torch.Tensor:
    """(D, 1280): the ridge regression from the classifier's centred rows (N, 1280) to the classes' vectors (N, D).

    A feature's product with a class's vector then grows with the classifier's logit of that class.
    """
    rows = torch.nn.functional.normalize(head - head.mean(0), dim=1).double()
    gram = rows.T @ rows + weight * torch.eye(rows.shape[1])
    return torch.linalg.solve(gram, rows.T @ targets.double()).T.float()


def captions(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Texts and unit vectors (N, D) of all known things: the classes' as photographs, the concepts' as cartoons."""
    classes, known = map(int, arrays["known"])
    words, templates = arrays["texts"].tolist(), arrays["templates"].tolist()
    vectors, offsets = arrays["vectors"].astype("f4"), arrays["offsets"].astype("f4")
    first: dict[str, int] = {}
    for row, word in enumerate(words[:known]):
        first.setdefault(word, row)  # a concept that is a class, too, has the class's vector
    found: dict[str, np.ndarray] = {}
    for kind, rows in (
        ("a photo of {a}", words[:classes]),
        ("a cartoon of {a}", words[classes:known]),
    ):
        for word in rows:
            vector = vectors[first[word]] + offsets[templates.index(kind)]
            found.setdefault(in_template(kind, word), vector / np.linalg.norm(vector))
    return {"texts": np.array(list(found)), "vectors": np.stack(list(found.values())).astype("f2")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=Path, required=True, help="file of words.py")
    parser.add_argument(
        "--classes", type=Path, help="the photographs' classes: number, WordNet's number, names"
    )
    parser.add_argument("--side", type=int, default=96, help="pixels at which the tower works")
    parser.add_argument("--activation", default="relu6", help="relu6, silu or hardswish")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/pair/start.safetensors"))
    args = parser.parse_args()
    arrays = np.load(args.words)
    count = int(arrays["known"][0])
    targets = torch.from_numpy(arrays["vectors"][:count]).float()
    weights = lite0()
    head = weights.pop("classifier.weight")
    weights.pop("classifier.bias")
    lite = {"variant": 0, "image_size": args.side, "activation": args.activation}
    config = {
        "embed_dim": targets.shape[1],
        "vision_cfg": {"image_size": 224, "lite": lite},
        "text_cfg": TEXT,
        "quick_gelu": False,
    }
    torch.manual_seed(args.seed)
    model = models.build(config, None)
    model.visual.load_state_dict(
        {
            **weights,
            "proj.weight": projection(head, targets),
            "proj.bias": torch.zeros(targets.shape[1]),
        }
    )
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))
    folder = args.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(lite0(), folder / "lite0.pth")
    stored = captions(arrays)
    np.savez(folder / "captions.npz", **stored)
    (folder / "captions.txt").write_text("\n".join(stored["texts"]) + "\n", encoding="utf-8")
    if args.classes:
        lines = args.classes.read_text(encoding="utf-8").splitlines()[1:]
        photographed = {line.split("\t")[1].removeprefix("n") for line in lines}
        photos: dict[bool, set[str]] = {True: set(), False: set()}
        for (number, _), word in zip(imagenet(), arrays["texts"][:count].tolist(), strict=True):
            photos[number in photographed].add(in_template("a photo of {a}", word))
        met = [t for t in stored["texts"].tolist() if t in photos[True] or t not in photos[False]]
        (folder / "captions-met.txt").write_text("\n".join(met) + "\n", encoding="utf-8")
    card = {
        "name": args.output.stem,
        "mean": MEAN,
        "std": STD,
        "base": "EfficientNet-Lite0, ImageNet-1k",
    }
    write_bundled(args.output, model.state_dict(), config, card)
    print(args.output)


if __name__ == "__main__":
    main()
