"""Sheets of pictures: the trajectory of a run (supplement, fig. 3) and its stochasticity (fig. 9)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..images import contact_sheet
from .loop import Synthesis

# The paper shows the start, one picture on the way and the end; three of the kept frames do the same.
TRAJECTORY = 3


def sheet(kind: str, results: Sequence[Synthesis]) -> Tensor:
    """The sheet `kind` ('contact', 'trajectory' or 'stochasticity') of the pictures of one run: (3, H, W).

    trajectory: a row per picture and a column per kept frame. stochasticity: a row per prompt and a
    column per seed. contact: as stochasticity where a prompt has several seeds, else as square as it gets.
    """
    if kind == "trajectory":
        return trajectory_sheet(results)
    if kind == "stochasticity":
        return stochasticity_sheet(results)
    rows = by_prompt(results)
    if any(len(row) > 1 for row in rows):
        return stochasticity_sheet(results)
    columns = max(round(len(results) ** 0.5 + 0.49), 1)
    pictures = [result.image for result in results]
    return contact_sheet([pictures[i : i + columns] for i in range(0, len(pictures), columns)])


def trajectory_sheet(results: Sequence[Synthesis]) -> Tensor:
    """One row per picture: the frames its run kept, the start first. ValueError where none were kept."""
    if not all(len(result.frames) > 1 for result in results):
        raise ValueError(
            "a trajectory needs the frames of a finished run; set --frames to 2 or more"
        )
    headings = [
        f"{round(100 * i / (len(results[0].frames) - 1))} %" for i in range(len(results[0].frames))
    ]
    return contact_sheet(
        [result.frames for result in results],
        captions=[f"{result.prompt} (seed {result.seed})" for result in results],
        headings=headings,
    )


def stochasticity_sheet(results: Sequence[Synthesis]) -> Tensor:
    """One row per prompt, one column per seed."""
    rows = by_prompt(results)
    return contact_sheet(
        [[result.image for result in row] for row in rows],
        captions=[row[0].prompt for row in rows],
        headings=[f"seed {result.seed}" for result in rows[0]],
    )


def by_prompt(results: Sequence[Synthesis]) -> list[list[Synthesis]]:
    """The results of each prompt; a new row starts where the prompt or the run of seeds does."""
    rows: list[list[Synthesis]] = []
    for result in results:
        if rows and rows[-1][0].prompt == result.prompt and result.seed > rows[-1][-1].seed:
            rows[-1].append(result)
        else:
            rows.append([result])
    return rows
