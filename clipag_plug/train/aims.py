"""What the images of a step are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..options.train import Train
from .data import Batches
from .described import Described
from .matches import Matches
from .objective import Targets
from .teachers import Taught, TextTeacher
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
    image_heads: Tensor | nn.Module | None = (
        None  # class features or a linear map for --image-teacher
    )
    text_teacher: TextTeacher | None = None
    text_head: nn.Module | None = None

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
        said: Tensor | None = None,
        texts: list[str] | None = None,
    ) -> Targets:
        """Those of step number `step`; see `Targets`, `Described` (amounts) and `Taught` (what is said).

        texts: the captions, where a text teacher shall tell of them."""
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
        if said is not None:
            kind, weight = self.options.image_teacher_loss, self.options.image_teacher_weight
            head = self.image_heads if isinstance(self.image_heads, nn.Module) else None
            classes = self.image_heads if isinstance(self.image_heads, Tensor) else None
            targets.taught = Taught(said, kind, weight, classes, head)
        if texts is not None and self.text_teacher is not None:
            targets.said = self.text_teacher(texts)
            targets.text_head, targets.text_weight = (
                self.text_head,
                self.options.text_teacher_weight,
            )
        return targets
