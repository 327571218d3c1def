"""In a notebook a picture shows how it grows, and then itself."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from clipag_plug.guide import guide_for
from clipag_plug.paint import notebook, synthesize
from clipag_plug.pipelines import clipdraw

PNG = b"\x89PNG"


class Shown(list[Any]):
    """What cells displayed."""

    def display(self, content: Any, **keywords: Any) -> Any:
        self.append(content)
        return SimpleNamespace(update=lambda content, **keywords: self.append(content))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """A kernel without ipywidgets, and what it displays."""
    found = Shown()
    python, display = ModuleType("IPython"), ModuleType("IPython.display")
    python.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    display.display = found.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(notebook, "PAUSE", 0)
    return found


@pytest.fixture
def widgets(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> Shown:
    class Widget(SimpleNamespace):
        def __init__(self, children: Any = (), **values: Any) -> None:
            super().__init__(children=children, history=[], closed=False, **values)

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "value":
                self.history.append(value)

        def close(self) -> None:
            self.closed = True

    made = ModuleType("ipywidgets")
    made.VBox = made.Image = made.IntProgress = Widget  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipywidgets", made)
    return shown


def test_the_picture_grows_and_makes_way_for_the_result(widgets: Shown, tiny_clip: Any) -> None:
    result = synthesize("a fox", model=tiny_clip, steps=3, views=1)
    (box,) = widgets
    bar, image = box.children
    assert bar.history == [1, 2, 3] and bar.max == 3 and bar.description == "a fox"
    assert len(image.history) == 3 and all(value.startswith(PNG) for value in image.history)
    assert box.closed and result._repr_png_().startswith(PNG)


def test_without_widgets_the_steps_are_said(shown: Shown, tiny_clip: Any) -> None:
    clipdraw(
        "a fox",
        model=guide_for(tiny_clip),
        preset="demo",
        steps=2,
        strokes=2,
        views=1,
        canvas=32,
        size=0,
    )
    said = [content["text/plain"] for content in shown]
    assert [line.rpartition(": ")[2] for line in said] == [
        *("begun", "step 1 of 2", "step 2 of 2", "done")
    ]


def test_elsewhere_nothing_is_shown(
    shown: Shown, tiny_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "IPython")
    synthesize("a fox", model=tiny_clip, steps=1, views=1)
    assert shown == []
