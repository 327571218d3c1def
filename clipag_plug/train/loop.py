"""The training loop: attack the images, lower the outer loss, log, evaluate, save; resumable at any step."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..model import CLIP
from ..options.train import Train
from .data import Batch, Batches
from .evaluate import Evaluation
from .log import Log
from .objective import Targets, attack_images, whole_batch
from .state import load_state, save_state
from .text import TextFeatures


@dataclass
class Step:
    """What one optimiser step did. `loss` is the outer loss, `seconds` the step's wall time."""

    index: int
    samples: int
    loss: float
    lr: float
    eps: float
    images_per_second: float
    evaluation: Evaluation | None = None


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
    ) -> None:
        if options.samples < options.batch_size:
            raise ValueError(
                f"--samples is {options.samples}; it must be at least one batch of {options.batch_size}"
            )
        self.model, self.options, self.batches, self.evaluate = model, options, batches, evaluate
        self.prompts = prompts
        self.device = next(model.parameters()).device
        self.steps = max(1, options.samples // (options.batch_size * options.accumulation))
        self.text = TextFeatures(model, trained=options.text == "train")
        if options.bank and (options.text == "train" or batches.vocabulary is None):
            raise ValueError("--bank needs --text frozen and --captions vocabulary")
        self.weights = _trained_weights(model, options)
        self.optimizer = torch.optim.AdamW(
            _decay_groups(model, self.weights, options.weight_decay),
            lr=options.lr,
            betas=(0.9, options.beta2),
            eps=1e-6,
        )
        self.average = (
            {n: p.detach().clone() for n, p in self.weights.items()} if options.ema else None
        )
        self.original = (
            _original_tower(model)
            if "fare" in (options.objective, options.attack_objective)
            else None
        )
        self.adversarial = options.attack_steps > 0 and options.eps > 0
        self.index = 0

    def resolution(self) -> int:
        """Side of the training images."""
        return self.options.resolution or int(self.model.visual.input_resolution)

    def eps_at(self, index: int) -> float:
        """Radius of the attack at a step, in the units of the training images.

        An L2 ball of radius eps at the model's input resolution matches one of eps * side / resolution on images
        of a smaller side: the same root-mean-square change of a pixel.
        """
        options = self.options
        shrink = (
            self.resolution() / int(self.model.visual.input_resolution)
            if options.norm == "l2"
            else 1.0
        )
        ramp = options.eps_ramp * self.steps
        return options.eps * shrink * (min(1.0, (index + 1) / ramp) if ramp else 1.0)

    def lr_at(self, index: int) -> float:
        """Linear warm-up, then cosine to zero or constant."""
        warm = max(1, round(self.options.warmup * self.steps))
        if index < warm:
            return self.options.lr * (index + 1) / warm
        if self.options.schedule == "constant":
            return self.options.lr
        return (
            self.options.lr
            * 0.5
            * (1 + math.cos(math.pi * (index - warm) / max(1, self.steps - warm)))
        )

    def step(self) -> tuple[float, float, float]:
        """One optimiser step over all its micro-batches; returns (loss, learning rate, eps).

        With accumulation the loss is that of the whole batch, every image against every text: the features are
        computed without a graph, the loss gives each feature its gradient, and a second forward of each micro-batch
        passes that on to the weights (gradient caching, Gao et al. 2021). Exact, in the memory of one micro-batch;
        the adversarial images of the first pass are kept for the second.
        """
        count, eps, lr = self.options.accumulation, self.eps_at(self.index), self.lr_at(self.index)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parts = [self.batches[self.index * count + place] for place in range(count)]
        inputs = [
            self._attack(part, eps, self.index * count + place) for place, part in enumerate(parts)
        ]
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
            raise FloatingPointError(
                f"loss of objective {self.options.objective!r} is {loss.item()} at step "
                f"{self.index}; the last checkpoint is kept. Lower --lr or set --clip-norm"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for place, (images, part) in enumerate(zip(inputs, parts, strict=True)):
            output = outputs[place] if single else self._features(images, part.texts)
            pairs = [
                (f, leaf.grad)
                for f, leaf in zip(output, leaves[place], strict=True)
                if f.requires_grad and leaf.grad is not None
            ]
            torch.autograd.backward([f for f, _ in pairs], [g for _, g in pairs])
        if self.options.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.options.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
            self._update_average()
        self.index += 1
        return loss.item(), lr, eps

    def _attack(self, part: Batch, eps: float, number: int) -> Tensor:
        """The micro-batch's adversarial images, stacked on its clean ones where the clean loss counts too."""
        images = part.images.to(self.device)
        if not self.adversarial:
            return images
        self.model.eval()
        with torch.no_grad():
            text = self.text(part.texts)
        targets = self._targets(text, [part], images, self.model.logit_scale.exp().detach())
        generator = torch.Generator(device=self.device).manual_seed(
            self.options.seed * 1_000_003 + number
        )
        attacked = attack_images(self._encode, images, targets, self.options, eps, generator)
        return torch.cat([attacked, images]) if self.options.clean_weight else attacked

    def _features(self, images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Image features, text features and the logit scale: everything of the model that the loss sees."""
        return self._encode(images), self.text(texts), self.model.logit_scale.exp()

    def _encode(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(self.model.normalize(images))
        return features

    def _loss(self, leaves: list[tuple[Tensor, ...]], parts: list[Batch]) -> Tensor:
        """The outer loss of the whole batch as a function of its features."""
        text = torch.cat([leaf[1] for leaf in leaves])
        scale = torch.stack([leaf[2] for leaf in leaves]).mean()
        clean = torch.cat([part.images for part in parts]).to(self.device)
        targets = self._targets(text, parts, clean, scale)
        weight = self.options.clean_weight if self.adversarial else 0.0
        halves = [leaf[0].chunk(2 if weight else 1) for leaf in leaves]
        loss = whole_batch(self.options.objective, torch.cat([half[0] for half in halves]), targets)
        if weight:
            clean_loss = whole_batch(
                self.options.objective, torch.cat([half[1] for half in halves]), targets
            )
            loss = (loss + weight * clean_loss) / (1 + weight)
        return loss

    def _targets(self, text: Tensor, parts: list[Batch], clean: Tensor, scale: Tensor) -> Targets:
        labels = torch.cat([part.labels for part in parts])
        positives = self.batches.positives([word for part in parts for word in part.words], labels)
        original = None
        if self.original is not None:
            with torch.no_grad():
                original = self.original(self.model.normalize(clean))
        bank = bank_positives = None
        if self.options.bank:
            texts, words = self.batches.bank(self.index)
            bank = self.text(texts)
            bank_positives = self.batches.positives(words, labels).to(self.device)
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

    def _update_average(self) -> None:
        if self.average is not None:
            # The average warms up: early weights are far from the end and must not linger in it.
            decay = min(self.options.ema, (1 + self.index) / (10 + self.index))
            for name, weight in self.weights.items():
                self.average[name].lerp_(weight.detach(), 1 - decay)

    def result(self) -> dict[str, Tensor]:
        """The trained model's state dict: with the moving average in place where one is kept."""
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {**state, **(self.average or {})}

    def save(self, folder: Path) -> None:
        """Checkpoints the run; see `restore`."""
        rest = {
            "index": self.index,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average or {},
        }
        save_state(folder, self.model.state_dict(), rest)

    def restore(self, folder: Path) -> None:
        """Continues from the folder's checkpoint as if never stopped."""
        state = load_state(folder)
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.index = state["index"]
        if self.average is not None:
            self.average = state["average"]

    def run(self, folder: Path, report: Callable[[Step], None] = lambda step: None) -> None:
        """Trains to the end, calling `report` after each step; SIGTERM and Ctrl-C save before they stop it."""
        log = Log(folder)
        saved = evaluated = time.monotonic()
        with _Interrupts() as interrupts:
            while self.index < self.steps:
                started = time.monotonic()
                loss, lr, eps = self.step()
                now = time.monotonic()
                evaluation = None
                last = self.index == self.steps
                if self.evaluate is not None and (
                    last or now - evaluated > self.options.evaluate_every
                ):
                    evaluation, evaluated = self.evaluate(self.model), time.monotonic()
                batch = self.options.batch_size * self.options.accumulation
                step = Step(
                    self.index,
                    self.index * batch,
                    loss,
                    lr,
                    eps,
                    batch / (now - started),
                    evaluation,
                )
                log.write(step)
                report(step)
                if last or interrupts.received or now - saved > self.options.save_every:
                    self.save(folder)
                    saved = time.monotonic()
                if interrupts.received:
                    raise KeyboardInterrupt(f"stopped after step {self.index}; --resume continues")


class _Interrupts:
    """Turns SIGINT and SIGTERM into a flag for the time of a `with`, so that a step in progress ends whole."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: the caller's own handling stays
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def _trained_weights(model: CLIP, options: Train) -> dict[str, torch.nn.Parameter]:
    """The parameters that train; every other one is frozen."""
    model.requires_grad_(False)
    chosen = {
        n: p
        for n, p in model.named_parameters()
        if options.text == "train"
        or n.startswith("visual.")
        or (options.train_scale and n == "logit_scale")
    }
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def _decay_groups(
    model: CLIP, weights: dict[str, torch.nn.Parameter], decay: float
) -> list[dict[str, Any]]:
    """Weight decay acts on matrices and kernels, not on gains, biases, scales and embeddings."""
    plain = [p for n, p in weights.items() if p.ndim < 2 or "embedding" in n]
    matrices = [p for n, p in weights.items() if not (p.ndim < 2 or "embedding" in n)]
    return [{"params": matrices, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]


def _original_tower(model: CLIP) -> torch.nn.Module:
    """A frozen copy of the image tower as it is now: FARE's reference."""
    return copy.deepcopy(model.visual).eval().requires_grad_(False)
