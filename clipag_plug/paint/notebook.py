"""A picture in the making inside a notebook: its progress, and with ipywidgets the picture as it grows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from ..images import png_bytes
from .results import Step

PAUSE = 0.3  # s between two pictures


def in_notebook() -> bool:
    """Whether this is a cell of Jupyter or Colab: what is displayed there reaches a page."""
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python else None
    return hasattr(shell, "kernel")


def watched(
    steps: Iterable[Step], total: int, label: str, picture: Callable[[], Tensor]
) -> Iterator[Step]:
    """The steps, shown while they are done where this is a notebook.

    picture: gives (3, H, W) as it is now.
    """
    if not in_notebook():
        yield from steps
        return
    show = _widgets(total, label) or _text(total, label)
    shown = 0.0
    try:
        for done, step in enumerate(steps, 1):
            yield step
            if time.monotonic() - shown >= PAUSE:
                show(done, picture())
                shown = time.monotonic()
    finally:
        show(None, None)


def _widgets(total: int, label: str) -> Callable[[int | None, Tensor | None], None] | None:
    """A bar above the picture, gone when it is finished: the cell then shows the result. None without ipywidgets."""
    try:
        import ipywidgets as widgets
    except ImportError:
        return None
    from IPython.display import display

    bar = widgets.IntProgress(
        max=total, description=label[:40], style={"description_width": "initial"}
    )
    image = widgets.Image(format="png")
    box = widgets.VBox([bar, image])
    display(box)

    def show(done: int | None, picture: Tensor | None) -> None:
        if done is None or picture is None:
            box.close()
            return
        bar.value, image.value = done, png_bytes(picture)

    return show


def _text(total: int, label: str) -> Callable[[int | None, Tensor | None], None]:
    from IPython.display import display

    line: Any = display({"text/plain": f"{label}: begun"}, raw=True, display_id=True)

    def show(done: int | None, picture: Tensor | None) -> None:
        said = "done" if done is None else f"step {done} of {total}"
        line.update({"text/plain": f"{label}: {said}"}, raw=True)

    return show
