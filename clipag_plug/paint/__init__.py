"""Text to picture with an encoder and no generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..guide import Guide
from ..options.generate import Generate
from .loop import Synthesizer
from .notebook import watched
from .results import NotFiniteError, Step, Synthesis

__all__ = ["Generate", "Guide", "NotFiniteError", "Step", "Synthesis", "Synthesizer", "synthesize"]


def synthesize(
    prompts: str | Sequence[str],
    *,
    model: Any = "clipag-mini",
    seed: int = 0,
    callback: Callable[[Step], object] | None = None,
    readout: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> Any:
    """Draws pictures from text by following the input gradient of `model` (Ganz & Elad 2024, supplement 1.3).

    Args:
        prompts: one text, or several that are drawn in one batch; 'a fox:1 | blurry:-0.3' weighs parts.
        model: a key, a file, a CLIP of clipag_plug, clip or open_clip, or a `Guide`.
        callback: called with each `Step`.
        readout: maps views (V, 3, side, side) in [0, 1] to losses (V,) that are added to the text's; prompts may be
            [] then.
        options: fields of `Generate`; views=0 (or "none") optimises the bare picture; size is a side, a
            (height, width) pair or the text of --size.

    In a notebook its progress is shown, with ipywidgets the picture too.

    Returns one `Synthesis` for one text with one seed, else a list of them. Raises ValueError for options that make no
    sense, and NotFiniteError, with the `results` so far, when the model's features stop being finite.
    """
    single = isinstance(prompts, str)
    if options.get("views") == "none":
        options["views"] = 0
    size = options.get("size", "")
    options["size"] = f"{size[1]}x{size[0]}" if isinstance(size, (tuple, list)) else str(size)
    name = model if isinstance(model, str) else "custom"
    options |= {"prompts": [prompts] if single else list(prompts), "model": name, "seed": seed}
    chosen = Generate.from_dict(options)
    run = Synthesizer(chosen, None if isinstance(model, str) else model, readout)
    try:
        for step in watched(run, run.steps, run.captions[0], run.leading):
            if callback is not None:
                callback(step)
    except NotFiniteError as error:
        error.results = run.results()
        raise
    results = run.results()
    return results[0] if single and len(results) == 1 else results
