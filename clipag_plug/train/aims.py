"""What the images of a step are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..options.train import Train
from .data import Batches
from .described import Described
from .matches import Matches
from .objective import Targets
from .text import TextFeatures


@dataclass
class Aims:
    """Makes the targets of images. prompts: unit features of the classes (C, D), where an objective asks for them.

    Raises ValueError where the options ask for captions that the data or the text tower cannot give.
    """

    text: TextFeatures
    batches: Batches
    options: Train
    prompts: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("bank", "attributes"):
            known = self.batches.vocabulary is not None and not self.text.trained
            if getattr(self.options, name) and not known:
                raise ValueError(f"--{name} needs --text frozen and --captions vocabulary")

    def __call__(
        self,
        step: int,
        text: Tensor,
        matches: Matches,
        labels: Tensor,
        original: Tensor | None,
        scale: Tensor,
        amounts: Tensor | None,
    ) -> Targets:
        """Those of step number `step`; see `Targets` for the arguments, and `Described` for the amounts."""
        targets = Targets(text, matches, scale, original, labels, self.prompts)
        targets.distil = self.options.distil if self.options.teachers else 0.0
        if self.options.bank:
            texts, names = self.batches.bank(step)
            targets.bank = self.text(texts)
            targets.bank_positives = self.batches.positives(names, labels.cpu()).to(text.device)
        if amounts is not None:
            texts, own = self.batches.described(step, labels.cpu())
            captions = self.text(texts).unflatten(0, (-1, amounts.shape[1]))
            told = own.to(text.device), amounts.to(text.device), self.options.attributes
            targets.described = Described(captions, *told)
        return targets
