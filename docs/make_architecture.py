"""Draws docs/architecture.svg, the rooms of the package and who imports whom: `python docs/make_architecture.py`.

Rows and imports are those that tests/test_architecture.py checks; nothing is drawn by hand.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))
from test_architecture import ROWS, graph, longest_chain, modules, room  # noqa: E402

SMALL = 0.62  # width of a room without a folder of its own, in units of the figure
COLOURS = ("#dfe8f6", "#fbe9d7", "#e4f1df", "#f3e1ee", "#eeeeee")


def sizes() -> dict[str, tuple[int, int]]:
    """Files and lines of each room."""
    found: dict[str, tuple[int, int]] = {}
    for module, path in modules().items():
        files, lines = found.get(room(module), (0, 0))
        found[room(module)] = (
            files + 1,
            lines + len(path.read_text(encoding="utf-8").splitlines()),
        )
    return found


def edges() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second, without those that follow from others."""
    pairs = {(room(a), room(b)) for a, others in graph().items() for b in others}
    pairs = {(a, b) for a, b in pairs if a != b and a and b}

    def reach(start: str, end: str, through: set[tuple[str, str]]) -> bool:
        seen, waiting = {start}, [start]
        while waiting:
            above = waiting.pop()
            below = {d for c, d in through if c == above} - seen
            seen |= below
            waiting += below
        return end in seen

    return {pair for pair in pairs if not reach(*pair, pairs - {pair})}


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "house"  # the same ids each time
    from matplotlib import pyplot as plt

    size, places = sizes(), {}
    figure, axes = plt.subplots(figsize=(11, 0.82 * len(ROWS)))
    for level, names in enumerate(ROWS):
        widths = [1.35 if size[name][0] > 1 else SMALL + 0.05 * len(name) for name in names]
        left = -sum(widths) / 2 - 0.1 * (len(names) - 1)
        for name, width in zip(names, widths):
            places[name] = (left + width / 2, -level)
            left += width + 0.2
            x, y = places[name]
            box = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "ec": "#555555", "lw": 0.8}
            colour = COLOURS[min(level, len(COLOURS) - 1)]
            axes.add_patch(
                matplotlib.patches.FancyBboxPatch(
                    (x - width / 2, y - 0.24), width, 0.48, fc=colour, zorder=3, **box
                )
            )
            files, lines = size[name]
            axes.text(
                x, y + 0.06, name, ha="center", va="center", fontsize=10, weight="bold", zorder=4
            )
            said = f"{files} files, {lines} lines" if files > 1 else f"{lines} lines"
            axes.text(
                x, y - 0.13, said, ha="center", va="center", fontsize=6.5, color="#444444", zorder=4
            )
    for above, below in sorted(edges()):
        (x0, y0), (x1, y1) = places[above], places[below]
        bend = 0.12 if x1 > x0 else -0.12
        style = {"arrowstyle": "-|>", "color": "#88888899", "lw": 0.8, "mutation_scale": 6}
        axes.annotate(
            "",
            (x1, y1 + 0.26),
            (x0, y0 - 0.26),
            arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"},
            zorder=1,
        )
    chain = " → ".join(name.removeprefix("clipag_plug.") for name in longest_chain())
    said = f"Longest chain of imports, {len(longest_chain())} files: {chain}"
    axes.set_title(textwrap.fill(said, 170), fontsize=6.5, color="#444444")
    axes.set_xlim(-4.6, 4.6)
    axes.set_ylim(-len(ROWS) + 0.5, 0.5)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw(DOCS / "architecture.svg")
