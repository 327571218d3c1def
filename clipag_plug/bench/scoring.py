"""What judges say of pictures made from prompts: the columns that the paper's protocols share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..pipelines.gan_search import enlarged
from .distribution import Inception, fid, inception_score, kid, values
from .judge import Judge
from .metrics import r_precision, similarity
from .records import Metric
from .registry import Context

AESTHETIC = "aesthetic score"


def scores(
    context: Context,
    images: Tensor,
    prompts: Sequence[str],
    *,
    second: str = "",
    sets: bool = False,
    inception: str = "",
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Metrics of pictures (N, 3, S, S) of N prompts, and the columns that stay empty with the reason for each.

    Similarity and R-Precision by the judge, and by the model `second`, neither of which may have guided; aesthetic
    score where there is a predictor. sets: FID, KID and Inception Score against the photographs as well, by
    torch-fidelity's Inception from the weight file `inception`, else in the judge's features and classes.
    """
    judge = context.need_judge()
    metrics, empty = _captions(judge, "", images, prompts), {}
    if second:
        metrics |= _captions(context.other_judge(second), "second_", images, prompts)
    else:
        empty["similarity by a second CLIP"] = (
            "no second judge was named; set the entry's option second to a model that guides nothing"
        )
    predictor = context.aesthetic
    if isinstance(predictor, str):
        empty[AESTHETIC] = predictor
    else:
        found = predictor(images).tolist()
        metrics["aesthetic"] = Metric(AESTHETIC, "score", predictor.name, found)
    if sets:
        metrics |= _sets(context, judge, images, inception)
    return metrics, empty


def _captions(
    judge: Judge, prefix: str, images: Tensor, prompts: Sequence[str]
) -> dict[str, Metric]:
    features = judge.features(enlarged(images, judge.side))
    texts = judge.texts(prompts).cpu()
    by = f" by {judge.name}" if prefix else ""
    found = {
        "similarity": (f"similarity to the prompt{by}", "cosine", similarity(features, texts)),
        "r_precision": (
            f"R-Precision among {len(prompts)} prompts{by}",
            "share",
            r_precision(features, texts),
        ),
    }
    return {
        prefix + key: Metric(title, unit, judge.name, column.tolist())
        for key, (title, unit, column) in found.items()
    }


def _sets(context: Context, judge: Judge, images: Tensor, inception: str) -> dict[str, Metric]:
    photos = context.need_photos().pixels(range(len(context.need_photos())))
    name = judge.name
    if inception:
        network = Inception(inception)
        name = network.name
        made, logits = network(images)
        real, _ = network(photos)
    else:
        shown = enlarged(images, judge.side)
        made, logits = judge.features(shown), judge.logits(shown)
        real = judge.features(enlarged(photos, judge.side))
    count = len(images)
    # KID compares sets of one size: the photographs are taken at equal distances, not from the first classes.
    same = real[:: max(len(real) // count, 1)][:count]
    found = {
        "fid": ("FID", "distance", values(lambda rows: fid(made[rows], real), count)),
        "kid": (
            "KID x 1000",
            "distance",
            values(lambda rows: 1000 * kid(made[rows], same[rows[rows < len(same)]]), count),
        ),
        "isc": (
            "Inception Score",
            "score",
            values(lambda rows: inception_score(logits[rows]), count),
        ),
    }
    where = "Inception v3" if inception else f"the features of {name}"
    return {
        key: Metric(f"{title}, {where}, n = {count}", unit, name, column)
        for key, (title, unit, column) in found.items()
    }
