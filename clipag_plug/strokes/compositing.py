"""Blending rows of coverage into pixels, back to front, and the exact derivative of that.

diffvg divides colour by alpha in every sample and averages afterwards. So a pixel has two states: the
premultiplied colour with alpha (C, A), and the straight colour S that the output shows, which moves towards
the straight colour of a covered sample in proportion to the stroke's coverage v:
    S <- lerp(S, [a c + (1 - a) C] / [a + (1 - a) A], v),    (C, A) <- lerp((C, A), (c, 1), a v).
All arrays end in (PIXELS, slots), slots as in scene.py: one lerp a rank and state. Everything else is done for
a block of ranks at a time, which keeps it in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .coverage import PIXELS
from .scene import Plan, run_sums

TRANSPARENT = 1e-6  # diffvg's rule: colour is not divided by an alpha up to this
_BLOCK = 2048  # slots; a block is at least one rank


@dataclass(frozen=True)
class Layers:
    """One block of slots (PIXELS, B), with what its derivative needs."""

    ranks: list[tuple[slice, int]]  # the slots of a rank within the block, and how many they are
    coverage: Tensor  # (PIXELS, B)
    paint: Tensor  # (4, 1, B): c and 1
    alpha: Tensor  # (B,)
    before: Tensor  # (4, PIXELS, B) premultiplied colour and alpha below each row
    shown: Tensor  # (3, PIXELS, B) straight colour below each row
    target: Tensor  # (3, PIXELS, B) straight colour of a sample that the row covers
    depth: Tensor  # (PIXELS, B) alpha of such a sample, 1 more where that is TRANSPARENT


def composite(coverage: Tensor, colors: Tensor, plan: Plan) -> tuple[Tensor, list[Layers]]:
    """Pixels (4, PIXELS, T), straight colour and alpha, from coverage (PIXELS, R) and RGBA per stroke (N, 4)."""
    paint = colors.t().contiguous().index_select(1, plan.stroke)[:, None]
    alpha = paint[3, 0].clone()
    paint[3] = 1
    mixed = coverage.new_zeros(4, PIXELS, len(plan.tile))
    straight = coverage.new_zeros(3, PIXELS, len(plan.tile))
    blocks: list[Layers] = []
    ranks: list[tuple[slice, int]] = []
    begin = size = 0
    for k, count in enumerate(plan.counts):
        ranks.append((slice(size, size + count), count))
        size += count
        if size >= _BLOCK or k == len(plan.counts) - 1:
            part = slice(begin, begin + size)
            given = (coverage[:, part], paint[..., part], alpha[part])
            blocks.append(_blend(ranks, *given, mixed, straight))
            begin, size, ranks = begin + size, 0, []
    return torch.cat((straight, mixed[3:])), blocks


def _blend(
    ranks: list[tuple[slice, int]],
    coverage: Tensor,
    paint: Tensor,
    alpha: Tensor,
    mixed: Tensor,
    straight: Tensor,
) -> Layers:
    """Blends one block into the two states, in place."""
    weight = coverage * alpha
    before = coverage.new_empty(4, *coverage.shape)
    for rows, n in ranks:
        before[..., rows] = mixed[..., :n]
        mixed[..., :n].lerp_(paint[..., rows], weight[:, rows])
    over = torch.lerp(before, paint, alpha)
    target, depth = over[:3], over[3]
    depth.add_(depth <= TRANSPARENT)
    target.div_(depth)
    shown = torch.empty_like(target)
    for rows, n in ranks:
        shown[..., rows] = straight[..., :n]
        straight[..., :n].lerp_(target[..., rows], coverage[:, rows])
    return Layers(ranks, coverage, paint, alpha, before, shown, target, depth)


def composite_backward(gradient: Tensor, blocks: list[Layers], plan: Plan) -> tuple[Tensor, Tensor]:
    """Gradients for the coverage (PIXELS, R) and for the colours (N, 4), from that for the pixels."""
    if not blocks:
        return gradient.new_zeros(PIXELS, 0), gradient.new_zeros(len(plan.rows_of), 4)
    to_mixed = torch.zeros_like(gradient)
    to_mixed[3] = gradient[3]
    to_straight = gradient[:3].clone()
    found = [_blend_backward(layers, to_mixed, to_straight) for layers in reversed(blocks)][::-1]
    to_coverage, to_color = (torch.cat(parts, 1) for parts in zip(*found))
    return to_coverage, run_sums(to_color.index_select(1, plan.by_stroke), plan.rows_of).t()


def _blend_backward(layers: Layers, to_mixed: Tensor, to_straight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for the coverage (PIXELS, B) and colours (4, B); those of the two states go on downwards in place."""
    coverage, alpha, target = layers.coverage, layers.alpha, layers.target
    to_shown, rest = torch.empty_like(target), 1 - coverage
    for rows, n in reversed(layers.ranks):
        to_shown[..., rows] = to_straight[..., :n]
        to_straight[..., :n].mul_(rest[:, rows])
    on_coverage = (target - layers.shown).mul_(to_shown).sum(0)

    # target = over[:3] / over[3] with over = lerp(before, paint, alpha).
    to_over = torch.empty_like(layers.before)
    torch.mul(to_shown, coverage / layers.depth, out=to_over[:3])
    opaque = (layers.depth <= 1).to(coverage.dtype)
    torch.mul((to_over[:3] * target).sum(0), opaque.neg_(), out=to_over[3])

    weight = coverage * alpha
    after, passed = torch.empty_like(to_over), to_over * (1 - alpha)
    torch.sub(1, weight, out=rest)
    for rows, n in reversed(layers.ranks):
        state = to_mixed[..., :n]
        after[..., rows] = state
        torch.addcmul(passed[..., rows], state, rest[:, rows], out=state)
    difference = layers.paint - layers.before
    on_weight = (after * difference).sum(0)
    on_coverage.addcmul_(on_weight, alpha)
    on_alpha = on_weight.mul_(coverage).sum(0) + difference.mul_(to_over).sum((0, 1))
    on_paint = after[:3].mul_(weight).sum(1) + to_over[:3].sum(1) * alpha
    return on_coverage, torch.cat((on_paint, on_alpha[None]))
