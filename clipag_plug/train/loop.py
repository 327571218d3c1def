"""A training step: attack the images, lower the outer loss; with what a checkpoint needs to go on from it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..model import CLIP
from ..options.train import Train
from .aims import Aims
from .data import Batch, Batches
from .distributed import Workers
from .evaluate import Evaluation
from .finite import diagnose
from .kept import Kept
from .objective import attack_images
from .optimizer import make_optimizer
from .passes import frozen, frozen_statistics, recompute_activations, return_memory
from .precision import Precision
from .schedule import learning_rate, radius
from .state import load_state, save_state
from .tally import Tally
from .teachers import Ensemble, ImageTeacher, TextTeacher
from .text import TextFeatures
from .weights import original_tower, trained_weights, update_average
from .whole import Part, Room, whole_loss

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
        teachers: Ensemble | None = None,
        image_teacher: ImageTeacher | None = None,
        text_teacher: TextTeacher | None = None,
        class_features: Tensor | None = None,
    ) -> None:
        self.batch = options.batch_size * options.accumulation * workers.size
        if options.samples < options.batch_size * workers.size:
            raise ValueError(
                f"--samples is {options.samples}; it must be at least one batch of "
                f"{options.batch_size * workers.size}"
            )
        self.model, self.options, self.batches, self.evaluate = model, options, batches, evaluate
        self.workers, self.teachers, self.image_teacher = workers, teachers, image_teacher
        self.device = next(model.parameters()).device
        self.steps = max(1, options.samples // self.batch)
        self.text = TextFeatures(model, trained=options.text == "train")
        self.aims = Aims(self.text, batches, options, prompts)
        if options.attack_objective == "kl" and not options.random_start:
            raise ValueError(
                "--attack-objective kl needs --random-start: at the clean image its gradient is zero"
            )
        self.weights = trained_weights(model, options)
        self.heads = self._make_heads(text_teacher if options.text_teacher_weight else None)
        heads = dict(self.heads.items())
        self.aims.image_heads = heads.get("image", class_features)
        self.aims.text_teacher, self.aims.text_head = text_teacher, heads.get("text")
        self.weights |= {f"heads.{n}": p for n, p in self.heads.named_parameters()}
        # Modules of which nothing trains keep their statistics, and drop nothing out.
        self._still = [
            m for m in model.modules() if not any(p.requires_grad for p in m.parameters())
        ]
        self.optimizer = make_optimizer(model, self.weights, options)
        self.average = (
            {n: p.detach().clone() for n, p in self.weights.items()} if options.ema else None
        )
        self.original = (
            original_tower(model)
            if "fare" in (options.objective, options.attack_objective)
            else None
        )
        if self.original is not None and teachers is not None:
            raise ValueError(
                "the objective fare has a teacher of its own, the initial model; leave --teachers out"
            )
        self.adversarial = options.attack_steps > 0 and options.eps > 0
        self.precision = Precision(options.precision, str(self.device))
        if options.checkpointing:
            recompute_activations(model.visual)
        self._tower = torch.compile(model.encode_image) if options.compile else model.encode_image
        self.index = 0

    def _make_heads(self, text_teacher: TextTeacher | None) -> torch.nn.ModuleDict:
        """Linear maps from the model's features to the teachers' spaces, which train along and are then left out."""
        heads, options = torch.nn.ModuleDict(), self.options
        size = int(self.model.visual.output_dim)
        if self.image_teacher is not None:
            side = self.resolution()
            said = self.image_teacher(torch.zeros(1, 3, side, side, device=self.device)).shape[1]
            if options.image_teacher_loss == "head" or (
                options.image_teacher_loss == "features" and said != size
            ):
                heads["image"] = torch.nn.Linear(size, said)
        if text_teacher is not None and options.text_teacher_loss == "linear":
            heads["text"] = torch.nn.Linear(size, text_teacher.width, bias=False)
        return heads.to(self.device)

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
        one micro-batch; the adversarial images of the first pass are kept for the second, see `Kept`.
        """
        count, eps = self.options.accumulation, self.eps_at(self.index)
        lr = learning_rate(self.options, self.index, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        numbers = range(self.index * count, (self.index + 1) * count)
        with Kept(self.options.keep, count, Path(self.options.output)) as kept:
            room = Room(count)
            parts = [room.put(self._first_pass(number, eps, kept)) for number in numbers]
            scale = self.model.logit_scale.exp()
            self.optimizer.zero_grad(set_to_none=True)
            found = whole_loss(
                parts,
                scale,
                partial(self.aims, self.index),
                self.batches.matches,
                self.options,
                self.workers,
                1 + self._needs_clean,
            )
            if count > 1 and self.device.type == "cpu":
                return_memory()
            if not math.isfinite(found.loss):
                raise self._not_finite(f"the loss is {found.loss}", kept)
            self.precision.enlarge(self.heads.parameters())  # the others' gradients come enlarged
            for place, part in enumerate(parts):
                images, text = part.images, part.text
                if count > 1:
                    images, text = self._features(kept[place], part.texts, part.number)
                self._backward((images, found.images[place]), (text, found.text[place]))
            self._backward((scale, found.scale))
            self._update(kept)
        self.index += 1
        return found.loss, lr, eps

    def _first_pass(self, number: int, eps: float, kept: Kept) -> Part:
        """Attacks a micro-batch, keeps its images and encodes them, with a graph where there is no second pass."""
        batch, single = self.batches[number], self.options.accumulation == 1
        original = self._original(batch.images.to(self.device))
        images = self._attack(batch, eps, number, original)
        kept.append(images)
        quiet = contextlib.nullcontext() if single else frozen_statistics(self.model.visual)
        with torch.set_grad_enabled(single), quiet:
            features, text = self._features(images, batch.texts, number)
        told = None if batch.attributes is None else batch.attributes.to(self.device)
        rest = original, features, text, told, self._said(batch.images.to(self.device))
        return Part(number, batch.texts, batch.words, batch.labels, *rest)

    def _said(self, clean: Tensor) -> Tensor | None:
        """What the image teacher says of clean images."""
        if self.image_teacher is None:
            return None
        with self.precision.autocast():
            return self.image_teacher(clean).float()

    def _backward(self, *pairs: tuple[Tensor, Tensor | None]) -> None:
        """Hands features their gradients, where they have a graph and get any."""
        needed = [(f, g) for f, g in pairs if f.requires_grad and g is not None]
        if needed:
            self.precision.backward([f for f, _ in needed], [g for _, g in needed])

    def _update(self, kept: Kept) -> None:
        """The workers' gradients together, checked and clipped; then the optimiser's step and what follows it."""
        self.workers.sum_gradients(self.weights.values())
        self.precision.unscale(self.optimizer)
        norm = torch.nn.utils.get_total_norm(
            [w.grad for w in self.weights.values() if w.grad is not None]
        )
        if not bool(norm.isfinite()) and not self.precision.scaler.is_enabled():
            raise self._not_finite("a gradient is not finite", kept)
        if self.options.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self.weights.values(), self.options.clip_norm, norm
            )
        self.precision.step(self.optimizer)
        self.workers.average_buffers(self.model.visual)
        if "logit_scale" in self.weights:
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(100))
        if self.average is not None:
            update_average(self.average, self.weights, self.options.ema, self.index)

    def _not_finite(self, what: str, kept: Kept) -> FloatingPointError:
        # Eager: hooks on layers do not run in a compiled tower.
        where = diagnose(
            self.model.visual,
            lambda images: self._encode(images, self.model.encode_image),
            kept,
            self.weights,
        )
        return FloatingPointError(
            f"{what} in batch {self.index} with objective {self.options.objective!r}; {where}; the last checkpoint "
            "is kept. Lower --lr, set --clip-norm, or use --precision fp32"
        )

    def _attack(
        self, batch: Batch, eps: float, number: int, original: Tensor | None = None
    ) -> Tensor:
        """The micro-batch's adversarial images, stacked on its clean ones where the outer loss needs both."""
        images = batch.images.to(self.device)
        if not self.adversarial:
            return images
        self.model.eval()
        with torch.no_grad():
            text = self.text(batch.texts)
            scale = self.model.logit_scale.exp().detach()
            matches = self.batches.matches(batch.words, batch.labels).to(self.device)
            labels = batch.labels.to(self.device)
            told, said = batch.attributes, self._said(images)
            targets = self.aims(self.index, text, matches, labels, original, scale, told, said)
            if self.options.attack_objective == "kl":
                targets.clean = self._encode(images)
        # Workers draw other starts for their images, as the micro-batches of one process do.
        generator = torch.Generator(device=self.device).manual_seed(self._seed(number))
        normalized = self.options.eps_space == "normalized"
        with frozen(self.weights.values()):
            attacked = attack_images(
                self._encode,
                images,
                targets,
                self.options,
                eps,
                generator,
                self.precision.attack_scale,
                images.new_tensor(self.model.std).view(3, 1, 1) if normalized else None,
            )
        return torch.cat([attacked, images]) if self._needs_clean else attacked

    def _seed(self, number: int) -> int:
        """Of what a worker draws for its micro-batch `number`."""
        return self.options.seed * 1_000_003 + number * self.workers.size + self.workers.rank

    @property
    def _needs_clean(self) -> bool:
        return self.adversarial and bool(self.options.clean_weight or self.options.trades)

    def _features(self, images: Tensor, texts: list[str], number: int) -> tuple[Tensor, Tensor]:
        """Features of images and texts in training mode; a tower's own random choices are the same in both passes."""
        self.model.train()
        for module in self._still:
            module.eval()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed(number))
            return self._encode(images), self.text(texts)

    def _encode(self, images: Tensor, tower: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        with self.precision.autocast():
            features = (tower or self._tower)(self.model.normalize(images))
        return features.float()

    def _original(self, clean: Tensor) -> Tensor | None:
        """The teachers' or the initial tower's features of clean images, where there are teachers or an objective
        asks for them."""
        if self.teachers is not None:
            with self.precision.autocast():
                return self.teachers(clean)
        if self.original is None:
            return None
        with torch.no_grad(), self.precision.autocast():
            features: Tensor = self.original(self.model.normalize(clean)).float()
        return features

    def result(self) -> dict[str, Tensor]:
        """The trained model's state dict: with the moving average in place where one is kept."""
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        average = {n: v for n, v in (self.average or {}).items() if not n.startswith("heads.")}
        return {**state, **average}

    def save(self, folder: Path) -> None:
        """Checkpoints the run; see `restore`. All workers call it and the first one writes."""
        tally = Tally()
        tally.merge(self.workers.objects(self.batches.tally.state()))
        if not self.workers.first:
            return
        rest = {
            "index": self.index,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average or {},
            "scaler": self.precision.scaler.state_dict(),
            "tally": tally.state(),
            "batch": self.batch,
            "heads": self.heads.state_dict(),
        }
        save_state(folder, self.model.state_dict(), rest)

    def restore(self, where: Path) -> None:
        """Continues from a checkpoint, or from that of a run's folder, as if never stopped."""
        state = load_state(where)
        if state.get("batch", self.batch) != self.batch:
            raise ValueError(
                f"the checkpoint was made with {state['batch']} images a step and this run takes {self.batch}; "
                "set --batch-size and --accumulation so that their product times the workers is the same"
            )
        self.model.load_state_dict(state["weights"])
        self.heads.load_state_dict(state.get("heads") or {})
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.precision.scaler.load_state_dict(state["scaler"])
        if "tally" in state:
            self.batches.tally.resume(state["tally"], self.workers.size)
        self.index = state["index"]
        if self.average is not None:
            self.average = state["average"]
