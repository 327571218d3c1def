"""Blending rows of coverage into pixels, back to front, and the exact derivative of that.

diffvg divides colour by alpha in every sample and averages afterwards. So a pixel has two states: the
premultiplied colour with alpha (C, A), and the straight colour S that the output shows, which moves towards
the straight colour of a covered sample in proportion to the stroke's coverage v:
    S <- lerp(S, [a c + (1 - a) C] / [a + (1 - a) A], v),    (C, A) <- lerp((C, A), (c, 1), a v).
All arrays end in (PIXELS, slots), slots as in tiles.py: one lerp a rank and state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import PIXELS, segment_sums
from .tiles import Plan

TRANSPARENT = 1e-6  # diffvg's rule: colour is not divided by an alpha up to this


@dataclass(frozen=True)
class History:
    """What the backward pass needs, one entry per slot."""

    coverage: Tensor  # (PIXELS, R)
    before: Tensor  # (4, PIXELS, R) premultiplied colour and alpha below each row
    shown: Tensor  # (3, PIXELS, R) straight colour below each row
    target: Tensor  # (3, PIXELS, R) straight colour of a sample that the row covers
    depth: Tensor  # (PIXELS, R) alpha of such a sample, 1 more where that is TRANSPARENT


def composite(coverage: Tensor, colors: Tensor, plan: Plan) -> tuple[Tensor, History]:
    """Pixels (4, PIXELS, T), straight colour and alpha, from coverage (PIXELS, R) and RGBA per stroke (N, 4)."""
    paint, alpha = _paint(colors, plan)
    weight = coverage * alpha
    ranks, tiles, slots = _ranks(plan), len(plan.tile), len(plan.stroke)
    premultiplied = coverage.new_zeros(4, PIXELS, tiles)
    before = coverage.new_empty(4, PIXELS, slots)
    for rows, n in ranks:
        state = premultiplied[..., :n]
        before[..., rows] = state
        state.lerp_(paint[..., rows], weight[:, rows])
    over = torch.lerp(before, paint, alpha)
    depth = over[3]
    depth.add_(depth <= TRANSPARENT)
    target = over[:3].div_(depth)
    straight = coverage.new_zeros(3, PIXELS, tiles)
    shown = coverage.new_empty(3, PIXELS, slots)
    for rows, n in ranks:
        state = straight[..., :n]
        shown[..., rows] = state
        state.lerp_(target[..., rows], coverage[:, rows])
    pixels = torch.cat((straight, premultiplied[3:]))
    return pixels, History(coverage, before, shown, target, depth)


def composite_backward(
    gradient: Tensor, history: History, colors: Tensor, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Gradients for the coverage (PIXELS, R) and for the colours (N, 4), from that for the pixels."""
    paint, alpha = _paint(colors, plan)
    coverage, target = history.coverage, history.target
    weight, rest = coverage * alpha, 1 - alpha
    ranks = _ranks(plan)

    # What lies above a row lets a fraction of its straight colour through: its gradient is the output's, faded.
    to_shown = torch.empty_like(target)
    fade, open_ = torch.ones_like(gradient[0]), 1 - coverage
    for rows, n in reversed(ranks):
        torch.mul(gradient[:3, :, :n], fade[:, :n], out=to_shown[..., rows])
        fade[:, :n].mul_(open_[:, rows])
    on_coverage = ((target - history.shown).mul_(to_shown)).sum(0)

    # target = over[:3] / over[3] with over = lerp(before, paint, alpha).
    to_over = torch.empty_like(history.before)
    torch.mul(to_shown.mul_(coverage), 1 / history.depth, out=to_over[:3])
    torch.mul((to_over[:3] * target).sum(0), history.depth <= 1, out=to_over[3]).neg_()
    difference = paint - history.before

    to_state = torch.zeros_like(gradient)
    to_state[3] = gradient[3]
    after, kept, passed = torch.empty_like(to_over), 1 - weight, to_over * rest
    for rows, n in reversed(ranks):
        state = to_state[..., :n]
        after[..., rows] = state
        torch.addcmul(passed[..., rows], state, kept[:, rows], out=state)
    on_weight = (after * difference).sum(0)
    on_coverage.addcmul_(on_weight, alpha)
    on_alpha = on_weight.mul_(coverage).sum(0) + difference.mul_(to_over).sum((0, 1))
    on_paint = after[:3].mul_(weight).sum(1) + to_over[:3].sum(1) * alpha
    columns = torch.cat((on_paint, on_alpha[None])).index_select(1, plan.by_stroke)
    return on_coverage, segment_sums(columns, plan.rows_of).t()


def _paint(colors: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Per slot: (c, 1) as (4, 1, R), and alpha (R,)."""
    paint = colors.t().contiguous().index_select(1, plan.stroke)
    alpha = paint[3].clone()
    paint[3] = 1
    return paint.unsqueeze(1), alpha


def _ranks(plan: Plan) -> list[tuple[slice, int]]:
    """Slots of each rank, and how many tiles have it."""
    ranks, begin = [], 0
    for count in plan.counts:
        ranks.append((slice(begin, begin + count), count))
        begin += count
    return ranks
