"""Scores as pure functions of logits, features and gradients: of single items, and of whole sets by torch-fidelity.

FID, KID and Inception Score are numbers of a set. A block of neighbouring items gets the set's number plus the
block's pseudo-value of the delete-a-block jackknife (Quenouille 1956, Tukey 1958): with blocks as units, means,
paired differences and their intervals then work as for any other metric.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..priors import Mixture

BLOCKS = 20


def ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """How many other columns of `scores` (N, C) reach the one of `truth` (N,) or beat it: 0 is first. Shape (N,).
    Ties count against the item, so that a scorer which says the same of everything scores nothing."""
    own = scores.gather(1, truth[:, None])
    return (scores >= own).sum(dim=1) - 1


def top(scores: Tensor, truth: Tensor, k: int) -> Tensor:
    """1.0 where the true column of `scores` (N, C) is among the first `k`, else 0.0. Shape (N,)."""
    return (ranks(scores, truth) < k).float()


def r_precision(image_features: Tensor, text_features: Tensor) -> Tensor:
    """1.0 where picture i ranks its own caption i first among all captions (VectorFusion, Jain et al. 2023). (N,).
    Features (N, D) need not be normalised. Chance is 1 / N."""
    scores = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
    return top(scores, torch.arange(len(scores), device=scores.device), 1)


def recall(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """1.0 for each query (row) where a relevant column is among the first `k` of scores (Q, M). Shape (Q,).
    relevant: bool (Q, M), with at least one in a row. Irrelevant columns that tie with the best relevant one count as
    before it, so that a scorer which says the same of everything finds nothing."""
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return (((scores >= best) & ~relevant).sum(dim=1) < k).float()


def similarity(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of picture i and caption i, (N, D), (N, D) -> (N,)."""
    return F.cosine_similarity(image_features, text_features, dim=-1)


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """z_a - log mean_{c != a} exp z_c: how far class a stands out of the others, in nats.
    logits (N, C), classes a (N, K) -> (N, K)."""
    columns = []
    count = torch.tensor(float(logits.shape[1] - 1), dtype=logits.dtype)
    for chosen in classes.T[..., None]:
        others = logits.scatter(1, chosen, -torch.inf).logsumexp(dim=1)
        columns.append(logits.gather(1, chosen)[:, 0] - others + count.log().to(others))
    return torch.stack(columns, dim=1)


def target_effect(before: Tensor, after: Tensor, targets: Tensor, controls: Tensor) -> Tensor:
    """Shuffle-corrected gain of the target's margin: what a perturbation adds to its own target, minus what it adds to
    targets that were not its own.
    before, after: judge's logits (N, C) of the pictures without and with the perturbation; targets (N,); controls (N,
    K), other classes for each picture. Returns nats, (N,)."""
    own = margin(after, targets[:, None]) - margin(before, targets[:, None])
    others = margin(after, controls) - margin(before, controls)
    return own[:, 0] - others.mean(dim=1)


def shuffled_targets(targets: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each row `count` targets (N, count) of other rows, never its own class.
    Drawn from the targets in use, so that what the attack does to every one of them alike cancels."""
    if len(targets.unique()) < 2:
        raise ValueError("all targets are one class; a control needs at least two")
    drawn = torch.randint(len(targets), (len(targets), count), generator=generator)
    while (clash := targets[drawn] == targets[:, None]).any():
        drawn[clash] = torch.randint(len(targets), (int(clash.sum()),), generator=generator)
    return targets[drawn]


def inside(gradients: Tensor, masks: Tensor) -> Tensor:
    """Share of the squared gradient (N, 3, H, W) that lies inside the masks (N, 1, H, W). Shape (N,)."""
    energy = gradients.square().sum(dim=1, keepdim=True)
    return (energy * masks).sum((1, 2, 3)) / energy.sum((1, 2, 3)).clamp_min(1e-30)


def power(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Power spectrum (N, H, W) of gradients (N, 3, H, W), summed over colours, without the mean; and the frequency
    (H, W) of each cell, 1 for Nyquist along an axis."""
    centred = gradients - gradients.mean((2, 3), keepdim=True)
    spectrum = torch.fft.fft2(centred.double()).abs().square().sum(1)
    down = torch.fft.fftfreq(gradients.shape[2], dtype=torch.float64) * 2
    across = torch.fft.fftfreq(gradients.shape[3], dtype=torch.float64) * 2
    return spectrum, (down[:, None].square() + across.square()).sqrt()


def fine_share(gradients: Tensor, above: float = 0.25) -> Tensor:
    """Share of a gradient's energy at frequencies above a quarter of Nyquist (N,): noise has about 95 %."""
    spectrum, frequency = power(gradients)
    total = spectrum.sum((1, 2)).clamp_min(1e-300)
    return ((spectrum * (frequency > above)).sum((1, 2)) / total).float()


def slope(gradients: Tensor) -> Tensor:
    """Exponent of the power spectrum over frequency (N,), least squares in logarithms over rings up to Nyquist.
    White noise has 0, photographs about -2 (Field 1987). A flat gradient counts as 0."""
    spectrum, frequency = power(gradients)
    size = min(gradients.shape[2:])
    rings = (frequency * size / 2).round().long()
    inside = (rings >= 1) & (rings <= size // 2)
    index, spectrum = rings[inside] - 1, spectrum[:, inside]
    sums = spectrum.new_zeros(len(spectrum), size // 2).index_add_(1, index, spectrum)
    means = sums / torch.bincount(index)
    flat = means.amax(1) <= 1e-300
    across = torch.arange(1, size // 2 + 1, dtype=torch.float64).log()
    across = across - across.mean()
    up = means.clamp_min(1e-12 * means.amax(1, keepdim=True).clamp_min(1e-300)).log()
    found = (up * across).sum(1) / across.square().sum()
    return torch.where(flat, 0.0, found).float()


def roughness(gradients: Tensor) -> Tensor:
    """Total variation over magnitude (N,): mean difference of neighbours by mean absolute value; scale-free.
    Independent Gaussian noise has sqrt(2), a picture of two flat halves almost 0."""
    down = gradients.diff(dim=2).abs().mean((1, 2, 3))
    across = gradients.diff(dim=3).abs().mean((1, 2, 3))
    return (down + across) / 2 / gradients.abs().mean((1, 2, 3)).clamp_min(1e-30)


def stability(gradients: Tensor, others: Tensor) -> Tensor:
    """Cosine of the gradients at a picture and at the same picture with noise, (N, 3, H, W) twice -> (N,)."""
    return torch.cosine_similarity(gradients.flatten(1), others.flatten(1), dim=1)


def mixture_score(mixture: Mixture, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient (N, P) of the log-density of each class's Gaussian at images (N, 3, side, side), P = 3 * side^2."""
    found = []
    for image, label in zip(images.flatten(1), labels.tolist()):
        factors = mixture.factors[label] @ mixture.basis
        rest = mixture.rest[label].expand(factors.shape[1])
        gap = image - mixture.means[label]
        inner = torch.eye(len(factors)) + factors / rest @ factors.T
        explained = factors.T @ torch.linalg.solve(inner, factors / rest @ gap)
        found.append((explained - gap) / rest)
    return torch.stack(found)


def fid(made: Tensor, real: Tensor) -> float:
    """Frechet distance (Heusel et al. 2017) of features (N, D) and (M, D)."""
    metric = _fidelity("metric_fid")
    found = [metric.fid_features_to_statistics(part.double().cpu()) for part in (made, real)]
    return float(metric.fid_statistics_to_metric(*found, False)[metric.KEY_METRIC_FID])


def kid(made: Tensor, real: Tensor) -> float:
    """Unbiased squared MMD (Binkowski et al. 2018), cubic kernel, of features; the larger set is cut to the smaller."""
    count = min(len(made), len(real))
    both = (part[:count].double().cpu().numpy() for part in (made, real))
    cubic = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_coef0": 1}
    return float(_fidelity("metric_kid").kernel_mmd(*both, **cubic, kid_kernel_poly_gamma=None))


def inception_score(logits: Tensor, splits: int = 1) -> float:
    """exp of the mean KL divergence of class distributions (N, C) from their mean (Salimans et al. 2016)."""
    metric = _fidelity("metric_isc")
    found = metric.isc_features_to_metric(logits.double().cpu(), splits)
    return float(found[metric.KEY_METRIC_ISC_MEAN])


def jackknife(
    statistic: Callable[[Tensor], float], count: int, blocks: int = BLOCKS
) -> tuple[list[float], int]:
    """A value for each of `count` items, whose mean is the `statistic` of all rows, and the number of blocks.
    statistic: rows (n,) -> number of the set of these items. ValueError for fewer than three items."""
    if count < 3:
        raise ValueError(f"a number of a set of {count} has no interval; give at least 3 pictures")
    blocks = min(blocks, count)
    rows = torch.arange(count)
    block = rows * blocks // count
    without = [statistic(rows[block != b]) for b in range(blocks)]
    left_out = torch.tensor(without, dtype=torch.float64)
    moved = ((blocks - 1) * (left_out.mean() - left_out))[block]
    # Blocks that differ by one item: the mean stays the set's number.
    found: list[float] = (statistic(rows) + moved - moved.mean()).tolist()
    return found, blocks


class Inception:
    """torch-fidelity's Inception v3, with which published FID and IS are computed, from the user's weight file."""

    name = "inception-v3-compat"

    def __init__(self, weights: str) -> None:
        utils = _fidelity("utils")
        wanted, how = ["2048", "logits_unbiased"], {"cuda": False, "verbose": False}
        self._network = utils.create_feature_extractor(
            self.name, wanted, feature_extractor_weights_path=weights, **how
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pool features (N, 2048) and logits (N, 1008) of images in [0, 1]."""
        levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        parts = [self._network(part) for part in levels.split(32)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _fidelity(module: str) -> Any:
    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise ImportError(
            "FID, KID and Inception Score need torch-fidelity: pip install 'clipag_plug[bench]'"
        ) from error
