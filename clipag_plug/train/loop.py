"""A training step: attack the images, lower the outer loss; with what a checkpoint needs to go on from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..model import CLIP
from ..options.train import Train
from .data import Batch, Batches
from .distributed import Workers
from .evaluate import Evaluation
from .finite import diagnose
from .objective import Targets, attack_images, outer_loss
from .precision import Precision
from .schedule import learning_rate, radius
from .state import load_state, save_state
from .text import TextFeatures
from .weights import decay_groups, original_tower, trained_weights, update_average

ALONE = Workers()


class Trainer:
    """Adversarial image-text training (Ganz & Elad 2024, supplement section 1.1) of `model.visual`.

    Every random choice of step i is a pure function of (seed, i), so a resumed run repeats the original exactly.
    """

    def __init__(
        self,
        model: CLIP,
        options: Train,
        batches: Batches,
        evaluate: Callable[[CLIP], Evaluation] | None = None,
        prompts: Tensor | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.batch = options.batch_size * options.accumulation * workers.size
        if options.samples < options.batch_size * workers.size:
            raise ValueError(
                f"--samples is {options.samples}; it must be at least one batch of "
                f"{options.batch_size * workers.size}"
            )
        self.model, self.options, self.batches, self.evaluate = model, options, batches, evaluate
        self.prompts, self.workers = prompts, workers
        self.device = next(model.parameters()).device
        self.steps = max(1, options.samples // self.batch)
        self.text = TextFeatures(model, trained=options.text == "train")
        if options.bank and (options.text == "train" or batches.vocabulary is None):
            raise ValueError("--bank needs --text frozen and --captions vocabulary")
        self.weights = trained_weights(model, options)
        self.optimizer = torch.optim.AdamW(
            decay_groups(model, self.weights, options.weight_decay),
            lr=options.lr,
            betas=(0.9, options.beta2),
            eps=1e-6,
        )
        self.average = (
            {n: p.detach().clone() for n, p in self.weights.items()} if options.ema else None
        )
        self.original = (
            original_tower(model)
            if "fare" in (options.objective, options.attack_objective)
            else None
        )
        self.adversarial = options.attack_steps > 0 and options.eps > 0
        self.precision = Precision(options.precision, str(self.device))
        if options.checkpointing:
            _set_checkpointing(model.visual)
        self._tower = torch.compile(model.encode_image) if options.compile else model.encode_image
        self.index = 0

    def resolution(self) -> int:
        """Side of the training images."""
        return self.options.resolution or int(self.model.visual.input_resolution)

    def eps_at(self, index: int) -> float:
        """Radius of the attack at a step, in the units of the training images; see `schedule.radius`."""
        shrink = self.resolution() / int(self.model.visual.input_resolution)
        return radius(self.options, index, self.steps, shrink)

    def step(self) -> tuple[float, float, float]:
        """One optimiser step over all its micro-batches; returns (loss, learning rate, eps).

        With accumulation, or several workers, the loss is that of the whole batch, every image against every text:
        the features are computed without a graph, the loss gives each feature its gradient, and a second forward of
        each micro-batch passes that on to the weights (gradient caching, Gao et al. 2021). Exact, in the memory of
        one micro-batch; the adversarial images of the first pass are kept for the second.
        """
        count, eps = self.options.accumulation, self.eps_at(self.index)
        lr = learning_rate(self.options, self.index, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        numbers = range(self.index * count, (self.index + 1) * count)
        parts = [self.batches[number] for number in numbers]
        inputs = [self._attack(part, eps, number) for number, part in zip(numbers, parts)]
        single = count == 1
        self.model.train()
        with torch.set_grad_enabled(single):
            outputs = [
                self._features(images, part.texts)
                for images, part in zip(inputs, parts, strict=True)
            ]
        leaves = [tuple(f.detach().requires_grad_(True) for f in output) for output in outputs]
        loss = self._loss(leaves, parts)
        if not math.isfinite(loss.item()):
            raise self._not_finite(f"the loss is {loss.item()}", inputs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for place, (images, part) in enumerate(zip(inputs, parts, strict=True)):
            output = outputs[place] if single else self._features(images, part.texts)
            pairs = [
                (f, leaf.grad)
                for f, leaf in zip(output, leaves[place], strict=True)
                if f.requires_grad and leaf.grad is not None
            ]
            self.precision.backward([f for f, _ in pairs], [g for _, g in pairs])
        self._update(inputs)
        self.index += 1
        return loss.item(), lr, eps

    def _update(self, inputs: list[Tensor]) -> None:
        """The workers' gradients together, checked and clipped; then the optimiser's step and what follows it."""
        self.workers.sum_gradients(self.weights.values())
        self.precision.unscale(self.optimizer)
        norm = torch.nn.utils.get_total_norm(
            [w.grad for w in self.weights.values() if w.grad is not None]
        )
        if not bool(norm.isfinite()) and not self.precision.scaler.is_enabled():
            raise self._not_finite("a gradient is not finite", inputs)
        if self.options.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self.weights.values(), self.options.clip_norm, norm
            )
        self.precision.step(self.optimizer)
        self.workers.average_buffers(self.model.visual)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
        if self.average is not None:
            update_average(self.average, self.weights, self.options.ema, self.index)

    def _not_finite(self, what: str, inputs: list[Tensor]) -> FloatingPointError:
        where = diagnose(self.model.visual, self._encode, inputs, self.weights)
        return FloatingPointError(
            f"{what} in batch {self.index} with objective {self.options.objective!r}; {where}; the last checkpoint "
            "is kept. Lower --lr, set --clip-norm, or use --precision fp32"
        )

    def _attack(self, part: Batch, eps: float, number: int) -> Tensor:
        """The micro-batch's adversarial images, stacked on its clean ones where the outer loss needs both."""
        images = part.images.to(self.device)
        if not self.adversarial:
            return images
        self.model.eval()
        with torch.no_grad():
            text = self.text(part.texts)
        targets = self._targets(
            text,
            part.words,
            part.labels,
            self._original(images),
            self.model.logit_scale.exp().detach(),
        )
        # Workers draw other starts for their images, as the micro-batches of one process do.
        generator = torch.Generator(device=self.device).manual_seed(
            self.options.seed * 1_000_003 + number * self.workers.size + self.workers.rank
        )
        attacked = attack_images(
            self._encode, images, targets, self.options, eps, generator, self.precision.attack_scale
        )
        return torch.cat([attacked, images]) if self._needs_clean else attacked

    @property
    def _needs_clean(self) -> bool:
        return self.adversarial and bool(self.options.clean_weight or self.options.trades)

    def _features(self, images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Image features, text features and the logit scale: everything of the model that the loss sees."""
        return self._encode(images), self.text(texts), self.model.logit_scale.exp()

    def _encode(self, images: Tensor) -> Tensor:
        with self.precision.autocast():
            features: Tensor = self._tower(self.model.normalize(images))
        return features.float()

    def _loss(self, leaves: list[tuple[Tensor, ...]], parts: list[Batch]) -> Tensor:
        """The outer loss of the whole batch, of all workers, as a function of this worker's features."""
        everyone = self.workers.all
        halves = [leaf[0].chunk(2 if self._needs_clean else 1) for leaf in leaves]
        features = [torch.cat([everyone(half) for half in side]) for side in zip(*halves)]
        text = torch.cat([everyone(leaf[1]) for leaf in leaves])
        labels = torch.cat([everyone(part.labels.to(self.device)) for part in parts]).cpu()
        words = [
            word for part in parts for mine in self.workers.objects(part.words) for word in mine
        ]
        originals = [self._original(part.images.to(self.device)) for part in parts]
        original = torch.cat([everyone(o) for o in originals if o is not None] or [text[:0]])
        # Each worker holds a 1/size share of the scale's gradient, so that their sum is the whole.
        scale = torch.stack([leaf[2] for leaf in leaves]).mean()
        scale = scale / self.workers.size + scale.detach() * (1 - 1 / self.workers.size)
        targets = self._targets(text, words, labels, original if len(original) else None, scale)
        return outer_loss(features, targets, self.options)

    def _original(self, clean: Tensor) -> Tensor | None:
        """The initial tower's features of clean images, where an objective asks for them."""
        if self.original is None:
            return None
        with torch.no_grad(), self.precision.autocast():
            features: Tensor = self.original(self.model.normalize(clean)).float()
        return features

    def _targets(
        self, text: Tensor, words: list[str], labels: Tensor, original: Tensor | None, scale: Tensor
    ) -> Targets:
        positives = self.batches.positives(words, labels)
        bank = bank_positives = None
        if self.options.bank:
            texts, names = self.batches.bank(self.index)
            bank = self.text(texts)
            bank_positives = self.batches.positives(names, labels).to(self.device)
        return Targets(
            text,
            positives.to(self.device),
            scale,
            original,
            labels.to(self.device),
            self.prompts,
            bank,
            bank_positives,
        )

    def result(self) -> dict[str, Tensor]:
        """The trained model's state dict: with the moving average in place where one is kept."""
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {**state, **(self.average or {})}

    def save(self, folder: Path) -> None:
        """Checkpoints the run; see `restore`. The first worker writes, for all hold the same."""
        if not self.workers.first:
            return
        rest = {
            "index": self.index,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average or {},
            "scaler": self.precision.scaler.state_dict(),
            "tally": self.batches.tally.state(),
            "batch": self.batch,
        }
        save_state(folder, self.model.state_dict(), rest)

    def restore(self, folder: Path) -> None:
        """Continues from the folder's checkpoint as if never stopped."""
        state = load_state(folder)
        if state.get("batch", self.batch) != self.batch:
            raise ValueError(
                f"the checkpoint was made with {state['batch']} images a step and this run takes {self.batch}; "
                "set --batch-size and --accumulation so that their product times the workers is the same"
            )
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.precision.scaler.load_state_dict(state["scaler"])
        if "tally" in state:
            self.batches.tally.merge([state["tally"]])
            self.batches.tally.workers = self.workers.size
        self.index = state["index"]
        if self.average is not None:
            self.average = state["average"]


def _set_checkpointing(tower: torch.nn.Module) -> None:
    switch = getattr(tower, "set_grad_checkpointing", None)
    if switch is None:
        raise ValueError(
            "--checkpointing is for transformer and ResNet towers; this one has no such switch"
        )
    switch(True)
