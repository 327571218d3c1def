"""A training step from top to bottom: attack the images, lower the outer loss, step; and what a checkpoint needs."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attacks.pgd import NOT_FINITE
from ..files import read_lines
from ..model import CLIP
from ..options.train import Train
from ..precision import resolve
from . import accumulate
from .accumulate import Kept, Stack
from .data import Batch, Batches
from .distributed import Workers
from .lessons import TextFeatures
from .optim import Average, Precision, learning_rate, make_optimizer, radius, trained_weights
from .tally import Tally
from .teachers import TextTeacher
from .terms import Targets, attack_images, inner_loss, outer_loss

MEASURED = 50  # every so many steps two more forward passes tell what the attack did
Pair = tuple[Tensor, Tensor | None]


@dataclass
class Step:
    """What one optimiser step did. loss is the outer one; gradient_norm is before clipping; waited: seconds for data.

    Every MEASURED steps, of the first micro-batch: the inner loss before and after the attack, and the share of the
    images told right before that are not any more.
    """

    index: int
    samples: int
    loss: float
    lr: float
    eps: float
    gradient_norm: float
    logit_scale: float
    images_per_second: float
    waited: float
    inner_clean: float | None = None
    inner_attacked: float | None = None
    attack_success: float | None = None


@dataclass
class Part:
    """A micro-batch between its two passes: everything but its images. rows: see `terms.ROWS`; images: features of the
    attacked images (N, D), or (2 N, D) with those of the clean ones behind; text (N, D)."""

    number: int
    texts: list[str]
    words: list[str]
    rows: dict[str, Tensor]
    images: Tensor
    text: Tensor


class Trainer:
    """Adversarial image-text training (Ganz & Elad 2024, supplement section 1.1).

    Every random choice of step i is a pure function of (seed, i), so a resumed run repeats the original exactly.
    prompts: unit features of the classes (C, D), for tecoa; classes: those of the image teacher's, and class_texts, of
    which those of the bank take the bank's features, that train along. references: what
    frozen networks say of clean images, by the name that it has among `terms.ROWS`.
    Raises ValueError where the options ask for what model or data cannot give.
    """

    def __init__(
        self,
        model: CLIP,
        options: Train,
        batches: Batches,
        workers: Workers | None = None,
        *,
        prompts: Tensor | None = None,
        classes: Tensor | None = None,
        class_texts: Sequence[str] = (),
        references: dict[str, Callable[[Tensor], Tensor]] | None = None,
        text_teacher: TextTeacher | None = None,
        text_features: TextTeacher | None = None,
    ) -> None:
        self.workers, self.prompts, self.classes = workers or Workers(), prompts, classes
        device = next(model.parameters()).device
        format = resolve(options.precision, model.visual, device, "train")
        options = replace(options, precision=self.workers.objects(format)[0])  # one for all workers
        self.model, self.options, self.batches = model, options, batches
        self.text_teacher = text_teacher if options.text_teacher_weight else None
        self.device = next(model.parameters()).device
        self.resolution = options.resolution or int(model.visual.input_resolution)
        self.text = TextFeatures(model, options.text == "train", text_features)
        self.batch = options.batch_size * options.accumulation * self.workers.size
        samples = options.samples or round(options.epochs * (batches.mixture.length or 0))
        self.steps, self.index = samples // self.batch, 0
        _check(options, model, samples, self.batch, batches.vocabulary is not None, prompts)
        self.bank_texts: dict[str, int] = {}  # their rows
        if options.bank_texts:
            lines = read_lines(options.bank_texts, "--bank-texts")
            distinct = dict.fromkeys(line.strip() for line in lines if line.strip())
            self.bank_texts = {text: row for row, text in enumerate(distinct)}
            if not distinct:
                raise ValueError(f"--bank-texts {options.bank_texts!r} holds no text")
        rows = [self.bank_texts.get(text) for text in class_texts]
        # Of the image teacher's classes, by their place: the row of the bank.
        self.class_rows = {n: row for n, row in enumerate(rows) if row is not None}
        self.references = dict(references or {})
        if "fare" in (options.objective, options.attack_objective):
            original = copy.deepcopy(model.visual).eval().requires_grad_(False)
            self.references["original"] = lambda images: original(model.normalize(images))
        self.weights = trained_weights(model, options)
        self.average = Average(model, self.weights, options.ema) if options.ema else None
        self.heads = self._make_heads()
        self.weights |= {f"heads.{n}": p for n, p in self.heads.named_parameters()}
        self.optimizer = make_optimizer(model, self.weights, options)
        # Modules of which nothing trains keep their statistics, and drop nothing out.
        self.still = [
            m for m in model.modules() if not any(p.requires_grad for p in m.parameters())
        ]
        self.adversarial = options.attack_steps > 0 and options.eps > 0
        self.needs_clean = self.adversarial and bool(options.clean_weight or options.trades)
        self.precision = Precision(options.precision, str(self.device))
        if options.checkpointing:
            accumulate.recompute_activations(model.visual)
        self.tower = torch.compile(model.encode_image) if options.compile else model.encode_image
        self.waited, self.measured = 0.0, list[float]()

    def _make_heads(self) -> nn.ModuleDict:
        """Linear maps from the model's features to the teachers' spaces, which train along and are then left out."""
        heads, options, size = nn.ModuleDict(), self.options, int(self.model.visual.output_dim)
        if "said" in self.references:
            grey = torch.zeros(1, 3, self.resolution, self.resolution, device=self.device)
            kind, width = options.image_teacher_loss, self.references["said"](grey).shape[1]
            if kind == "head" or (kind == "features" and width != size):
                heads["image"] = nn.Linear(size, width)
        if self.text_teacher is not None and options.text_teacher_loss == "linear":
            heads["text"] = nn.Linear(size, self.text_teacher.width, bias=False)
        if options.train_text_features:
            stored = self.text(list(self.bank_texts))
            self.bank_basis = torch.eye(size, device=self.device)
            if options.text_rank:
                main = torch.linalg.svd(stored, full_matrices=False)[2][: options.text_rank]
                self.bank_basis = F.normalize(main, dim=1)
            heads["bank"] = nn.Embedding.from_pretrained(stored @ self.bank_basis.T, freeze=False)
        return heads.to(self.device)

    def learned_captions(self) -> tuple[list[str], Tensor]:
        """The texts of the bank and their unit features (B, D), trained along or not."""
        return list(self.bank_texts), F.normalize(self._bank().detach(), dim=-1)

    def eps_at(self, index: int) -> float:
        """Radius of the attack at a step, in the units of the training images; see `optim.radius`."""
        shrink = self.resolution / int(self.model.visual.input_resolution)
        return radius(self.options, index, self.steps, shrink)

    def step(self) -> Step:
        """One optimiser step over all its micro-batches.

        With accumulation, or several workers, the loss is that of the whole batch, every image against every text:
        the features are computed without a graph, the loss gives each feature its gradient, and a second forward of
        each micro-batch passes that on to the weights (gradient caching, Gao et al. 2021). Exact, in the memory of
        one micro-batch; the adversarial images of the first pass are kept for the second, see `Kept`.
        """
        started, self.waited, self.measured = time.perf_counter(), 0.0, []
        count, eps = self.options.accumulation, self.eps_at(self.index)
        lr = learning_rate(self.options, self.index, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        with Kept(self.options.keep, count, Path(self.options.output)) as kept:
            stacks, parts = (Stack(count), Stack(count)), []
            for number in range(self.index * count, (self.index + 1) * count):
                part = self._first_pass(number, eps, kept)
                part.images, part.text = stacks[0].put(part.images), stacks[1].put(part.text)
                parts.append(part)
            self.optimizer.zero_grad(set_to_none=True)
            loss, gradients, logit = self._whole_loss(parts)
            if count > 1 and self.device.type == "cpu":
                accumulate.return_memory()
            if not math.isfinite(loss):
                raise self._not_finite(f"the loss is {loss}", kept)
            self.precision.backward([], through=self.heads.parameters())
            for place, part in enumerate(parts):
                features = part.images, part.text
                if count > 1:
                    features = self._features(kept[place], part.texts, part.number)
                self.precision.backward(zip(features, gradients[place], strict=True))
            self.precision.backward(logit)
            norm = self._update(kept)
        self.index += 1
        rate = self.batch / (time.perf_counter() - started)
        scale = float(self.model.logit_scale.detach().exp())
        done = self.index, self.index * self.batch, loss, lr, eps, norm, scale, rate, self.waited
        return Step(*done, *self.measured)

    def _first_pass(self, number: int, eps: float, kept: Kept) -> Part:
        """Attacks a micro-batch, keeps its images and encodes them, with a graph where there is no second pass."""
        started, single = time.perf_counter(), self.options.accumulation == 1
        batch = self.batches[number]
        self.waited += time.perf_counter() - started
        rows = self.rows(batch)
        images = self.attack(batch, rows, eps, number)
        kept.append(images)
        quiet = accumulate.frozen_statistics(self.model.visual)
        with torch.set_grad_enabled(single), contextlib.nullcontext() if single else quiet:
            features, text = self._features(images, batch.texts, number)
        return Part(number, batch.texts, batch.words, rows, features, text)

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """What is known of each image of a micro-batch: its class, and what the frozen networks say of it."""
        rows, clean = {"labels": batch.labels.to(self.device)}, batch.images.to(self.device)
        with torch.no_grad(), self.precision.autocast():
            return rows | {name: say(clean).float() for name, say in self.references.items()}

    def attack(self, batch: Batch, rows: dict[str, Tensor], eps: float, number: int) -> Tensor:
        """The micro-batch's adversarial images, stacked on its clean ones where the outer loss needs both."""
        images = batch.images.to(self.device)
        if not self.adversarial:
            return images
        self.model.eval()
        with torch.no_grad():
            logit = [value.detach() for value in self._logit()]
            targets = self.targets(self._captions(batch.texts), batch.words, rows, logit)
            if self.options.attack_objective == "kl":
                targets.clean = self.encode(images)
        # Workers draw other starts for their images, as the micro-batches of one process do.
        generator = torch.Generator(device=self.device).manual_seed(self._seed(number))
        normalized = self.options.eps_space == "normalized"
        std = images.new_tensor(self.model.std).view(3, 1, 1) if normalized else None
        scale = self.precision.attack_scale
        with accumulate.frozen(self.weights.values()):
            try:
                attacked = attack_images(self.encode, images, targets, eps, generator, scale, std)
            except ValueError as error:
                if str(error) != NOT_FINITE:
                    raise
                return (
                    torch.cat([images, images]) if self.needs_clean else images
                )  # diagnosed behind it
        if not self.measured and self.index % MEASURED == 0:
            self.measured = self._measure(images, attacked, targets)
        return torch.cat([attacked, images]) if self.needs_clean else attacked

    @torch.no_grad()
    def _measure(self, clean: Tensor, attacked: Tensor, targets: Targets) -> list[float]:
        """What the attack did: the last three fields of a `Step`."""
        features = self.encode(clean), self.encode(attacked)
        before, after = (float(inner_loss(f, targets).sum()) / len(clean) for f in features)
        right, still = (targets.right(f) for f in features)
        return [before, after, float((right & ~still).sum()) / max(1, int(right.sum()))]

    def targets(
        self,
        text: Tensor,
        words: list[str],
        rows: dict[str, Any],
        logit: list[Tensor],
        texts: list[str] | None = None,
    ) -> Targets:
        """What images are compared with. logit: scale and, where the model has one, bias. texts: the captions, where a
        text teacher shall tell of them."""
        labels, heads = rows["labels"].cpu(), dict(self.heads.items())
        matches = self.batches.matches(words, labels).to(text.device)
        found = Targets(text, matches, logit[0], self.options, **rows)
        found.bias = logit[1] if len(logit) > 1 else 0.0
        found.prompts, found.classes, found.head = self.prompts, self.classes, heads.get("image")
        if found.classes is not None and "bank" in heads and self.class_rows:
            learned = F.normalize(self._bank()[list(self.class_rows.values())], dim=-1)
            found.classes = found.classes.index_put(
                (torch.tensor(list(self.class_rows), device=learned.device),), learned
            )
        if self.options.bank:
            captions, names = self.batches.bank(self.index)
            found.bank = self.text(captions)
            found.bank_positives = self.batches.positives(names, labels).to(text.device)
        elif self.bank_texts:
            found.bank = self._bank()
            if "bank" in heads:
                found.taught_texts = self.text(list(self.bank_texts))
            found.bank_positives = torch.zeros(len(words), len(found.bank), dtype=torch.bool)
            for row, word in enumerate(words):
                if word in self.bank_texts:
                    found.bank_positives[row, self.bank_texts[word]] = True
            found.bank_positives = found.bank_positives.to(text.device)
        if texts is not None and self.text_teacher is not None:
            found.text_said, found.text_head = self.text_teacher(texts), heads.get("text")
        return found

    def _bank(self) -> Tensor:
        """Features of the texts of the bank (B, D)."""
        if "bank" not in self.heads:
            return self.text(list(self.bank_texts))
        return torch.as_tensor(self.heads["bank"].weight) @ self.bank_basis

    def _captions(self, texts: list[str]) -> Tensor:
        """Features of captions (N, D); of those that train in the bank as constants: the bank's rows learn for them."""
        found = self.text(texts)
        if "bank" in self.heads:
            known = [n for n, text in enumerate(texts) if text in self.bank_texts]
            rows = [self.bank_texts[texts[n]] for n in known]
            found = found.clone()
            found[known] = self._bank().detach()[rows]
        return found

    def _whole_loss(self, parts: list[Part]) -> tuple[float, list[tuple[Any, Any]], list[Pair]]:
        """Every image against every text of all parts of all workers: the loss, its gradients for the features of each
        part (images, texts), and pairs of what scales the logits and this worker's share of its gradient.

        A worker computes the rows of its own images and texts, and the gradients for a feature are added up over the
        workers: each does 1 / size of the work.
        """
        workers, sizes = self.workers, [len(part.texts) for part in parts]
        own = slice(workers.rank * sum(sizes), (workers.rank + 1) * sum(sizes))
        sides = (part.images.detach().chunk(1 + self.needs_clean) for part in parts)
        images = [workers.all(torch.cat(s)).requires_grad_() for s in zip(*sides, strict=True)]
        text = workers.all(torch.cat([part.text.detach() for part in parts]))
        text.requires_grad_(self.text.trained)
        logit = self._logit()
        leaves = [value.detach().requires_grad_(value.requires_grad) for value in logit]
        rows = {n: workers.all(torch.cat([p.rows[n] for p in parts])) for n in parts[0].rows}
        words = workers.lists([word for part in parts for word in part.words])
        texts = None
        if self.text_teacher is not None:
            texts = workers.lists([text for part in parts for text in part.texts])
        loss = outer_loss(images, self.targets(text, words, rows, leaves, texts), own)
        loss.backward()

        def mine(leaf: Tensor) -> tuple[Tensor, ...]:
            # Zero where the loss does not look at them.
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            return workers.sum(gradient)[own].split(sizes)

        by_part = [torch.cat(pieces) for pieces in zip(*map(mine, images), strict=True)]
        of_text = mine(text) if text.requires_grad else [None] * len(parts)
        of_logit = [(value, leaf.grad) for value, leaf in zip(logit, leaves, strict=True)]
        return workers.sum(loss.detach()).item(), list(zip(by_part, of_text, strict=True)), of_logit

    def _logit(self) -> list[Tensor]:
        bias = self.model.logit_bias
        return [self.model.logit_scale.exp(), *([] if bias is None else [bias])]

    def _update(self, kept: Kept) -> float:
        """The workers' gradients together, checked and clipped; then the optimiser's step and what follows it."""
        weights = self.weights.values()
        self.workers.sum_all([w.grad for w in weights if w.grad is not None])
        self.precision.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        if not bool(norm.isfinite()) and not self.precision.scaler.is_enabled():
            raise self._not_finite("a gradient is not finite", kept)
        if self.options.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(weights, self.options.clip_norm, norm)
        self.precision.step(self.optimizer)
        self.workers.average_buffers(self.model.visual)
        if "logit_scale" in self.weights:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(100))
        if self.average is not None:
            self.average.update(self.index)
        return float(norm)

    def _not_finite(self, what: str, kept: Kept) -> FloatingPointError:
        where = accumulate.diagnose(
            # Eager: hooks on layers do not run in a compiled tower.
            self.model.visual,
            lambda images: self.encode(images, self.model.encode_image),
            kept,
            self.weights,
        )
        return FloatingPointError(
            f"{what} in batch {self.index} with objective {self.options.objective!r}; {where}; the last checkpoint "
            "is kept. Lower --lr, set --clip-norm, or use --precision fp32"
        )

    def _seed(self, number: int) -> int:
        """Of what a worker draws for its micro-batch `number`."""
        return self.options.seed * 1_000_003 + number * self.workers.size + self.workers.rank

    def _features(self, images: Tensor, texts: list[str], number: int) -> tuple[Tensor, Tensor]:
        """Features of images and texts in training mode; a tower's own random choices are the same in both passes."""
        self.model.train()
        for module in self.still:
            module.training = False
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self._seed(number))
            return self.encode(images), self._captions(texts)

    def encode(self, images: Tensor, tower: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> features (N, D) in fp32."""
        with self.precision.autocast():
            features = (tower or self.tower)(self.model.normalize(images))
        return features.float()

    def averaged(self) -> contextlib.AbstractContextManager[Any]:
        """The model is what `result` gives inside."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def result(self) -> dict[str, Tensor]:
        """The trained model's state dict: with the moving average in place where one is kept."""
        with self.averaged():
            return {n: value.detach().clone() for n, value in self.model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """What `restore` needs. All workers call it, and any may keep it."""
        tally = Tally()
        tally.merge(self.workers.objects(self.batches.tally.state()))
        return {
            "index": self.index,
            "batch": self.batch,
            "options": self.options.to_dict(),
            "weights": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": {} if self.average is None else self.average.held,
            "scaler": self.precision.scaler.state_dict(),
            "tally": tally.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a state as if never stopped; the optimiser's settings are this run's. ValueError for a state
        of another batch."""
        if state["batch"] != self.batch:
            raise ValueError(
                f"the checkpoint was made with {state['batch']} images a step and this run takes {self.batch}; "
                "set --batch-size and --accumulation so that their product times the workers is the same"
            )
        self.model.load_state_dict(state["weights"])
        self.heads.load_state_dict(state["heads"])
        groups = [
            {k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(settings)
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        self.batches.tally.resume(state["tally"], self.workers.size)
        self.index = state["index"]
        if self.average is not None:  # one that is new starts from the weights of now
            for name, value in self.average.held.items():
                value.copy_(state["average"].get(name, self.average.live[name].detach()))


def _check(
    options: Train, model: CLIP, samples: int, step: int, vocabulary: bool, prompts: Tensor | None
) -> None:
    objectives = {options.objective, options.attack_objective}
    single = options.best or options.attack == "apgd"
    frozen = options.text == "frozen"
    for wrong, message in (
        (
            options.epochs and not samples,
            "--epochs needs data of known length; give --samples",
        ),
        (
            samples < step,
            f"the run has {samples} images and a step takes {step} (batch size, accumulation and workers); give more "
            "--samples or --epochs, or a smaller step",
        ),
        (
            options.bank and not (vocabulary and frozen),
            "--bank needs --text frozen and --captions vocabulary",
        ),
        (
            options.bank_texts and (vocabulary or not frozen),
            "--bank-texts needs --text frozen and --captions text",
        ),
        (options.text_features and not frozen, "--text-features needs --text frozen"),
        (
            options.lock_image_unlocked_groups and options.image == "train",
            "--lock-image-unlocked-groups needs --image frozen: without it all groups train",
        ),
        (
            options.train_text_features and not (options.text_features and options.bank_texts),
            "--train-text-features needs --text-features and --bank-texts",
        ),
        (
            options.attack_objective == "kl" and not options.random_start,
            "--attack-objective kl needs --random-start: at the clean image its gradient is zero",
        ),
        (
            options.attack_objective == "contrastive" and single,
            "--attack-objective contrastive is of no single image, as --best and --attack apgd need it; take "
            "image_to_text",
        ),
        (
            "sigmoid" in objectives and model.logit_bias is None,
            "the objective sigmoid needs a model with a logit bias",
        ),
        ("tecoa" in objectives and prompts is None, "the objective tecoa needs --class-names"),
        (
            "tecoa" in objectives and prompts is not None and len(prompts) < 2,
            "the objective tecoa needs two classes at least, and the data has one: give --data the folder in which the "
            "classes' folders are, or --class-names",
        ),
    ):
        if wrong:
            raise ValueError(message)
