"""FID, KID and Inception Score by torch-fidelity, on features that somebody else extracts, with jackknife intervals.

These are numbers of a whole set. To keep to a value per item, each item gets the set's number plus its block's share
of the delete-a-block jackknife (Quenouille 1956, Tukey 1958), scaled so that resampling items has the jackknife's
variance: means, paired differences and their bootstrap intervals then work as for any other metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

BLOCKS = 20
INSTALL = "FID, KID and Inception Score need torch-fidelity: pip install 'clipag_plug[bench]'"


def fid(made: Tensor, real: Tensor) -> float:
    """Frechet distance (Heusel et al. 2017) of features (N, D) and (M, D)."""
    metric = _fidelity("metric_fid")
    found = [metric.fid_features_to_statistics(part.double().cpu()) for part in (made, real)]
    value: float = metric.fid_statistics_to_metric(*found, False)[metric.KEY_METRIC_FID]
    return value


def kid(made: Tensor, real: Tensor) -> float:
    """Unbiased squared MMD (Binkowski et al. 2018), cubic kernel, of features; the larger set is cut to the smaller."""
    metric = _fidelity("metric_kid")
    count = min(len(made), len(real))
    first, second = (part[:count].double().cpu().numpy() for part in (made, real))
    return float(
        metric.kernel_mmd(
            first,
            second,
            kid_kernel="poly",
            kid_kernel_poly_degree=3,
            kid_kernel_poly_gamma=None,
            kid_kernel_poly_coef0=1,
        )
    )


def inception_score(logits: Tensor, splits: int = 1) -> float:
    """exp of the mean KL divergence of class distributions (N, C) from their mean (Salimans et al. 2016)."""
    metric = _fidelity("metric_isc")
    value: float = metric.isc_features_to_metric(logits.double().cpu(), splits)[
        metric.KEY_METRIC_ISC_MEAN
    ]
    return value


def values(statistic: Callable[[Tensor], float], count: int, blocks: int = BLOCKS) -> list[float]:
    """A value for each of `count` items: their mean is `statistic` of all rows, their spread the jackknife's.

    statistic: rows (n,) -> number of the set of these items. ValueError for fewer than three items.
    """
    if count < 3:
        raise ValueError(f"a number of a set of {count} has no interval; give at least 3 pictures")
    blocks = min(blocks, count)
    rows = torch.arange(count)
    block = rows * blocks // count
    whole = statistic(rows)
    without = torch.tensor(
        [statistic(rows[block != b]) for b in range(blocks)], dtype=torch.float64
    )
    sizes = torch.bincount(block, minlength=blocks).double()
    moved = (blocks - 1) * (without.mean() - without) * math.sqrt(count / blocks)
    moved -= (
        moved * sizes
    ).sum() / count  # blocks that differ by one item: the mean stays the set's number
    found: list[float] = (whole + moved[block]).tolist()
    return found


class Inception:
    """torch-fidelity's Inception v3, with which published FID and IS are computed, from the user's weight file."""

    name = "inception-v3-compat"

    def __init__(self, weights: str) -> None:
        utils = _fidelity("utils")
        self._network = utils.create_feature_extractor(
            self.name,
            ["2048", "logits_unbiased"],
            cuda=False,
            feature_extractor_weights_path=weights,
            verbose=False,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pool features (N, 2048) and logits (N, 1008) of images in [0, 1]."""
        levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        parts = [self._network(part) for part in levels.split(32)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _fidelity(module: str):  # type: ignore[no-untyped-def]
    import importlib

    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise ImportError(INSTALL) from error
