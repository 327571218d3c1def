"""From options to a trainer: model, data, evaluation and progress line."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..mini import grown
from ..model import CLIP, build
from ..options.train import Train
from ..vocabulary import Vocabulary, bundled_vocabulary, sentence
from .composing import teach_compositions
from .data import Batches, Columns, open_data, read_shards
from .distributed import Workers, connect
from .evaluate import ZeroShot, class_prompts
from .loop import Trainer
from .running import Step
from .state import find_state, load_state, read_model
from .teachers import Ensemble, ImageTeacher, TextTeacher, open_image_teacher
from .text import TextFeatures
from .textual import learn_geometry, train_text


def prepare(
    options: Train, workers: Workers | None = None
) -> tuple[Trainer, dict[str, Any], dict[str, Any]]:
    """The trainer, the model's config and the start of its card. workers: None for a process of its own."""
    workers = workers or connect(options.device)
    if not options.data:
        raise ValueError(
            "no training data; give --data with shards, tables, folders, hf:NAME, pipe:COMMAND or synthetic:COUNT"
        )
    torch.manual_seed(options.seed)  # initial weights of a model from scratch
    vocabulary = bundled_vocabulary() if options.captions == "vocabulary" else None
    model, config = initial_model(options, vocabulary, workers.device)
    text_teacher = (
        TextTeacher(options.text_teacher, workers.device) if options.text_teacher else None
    )
    if (state := _resumed(options)) is not None:
        model.load_state_dict(_without_visual(load_state(state)["weights"]), strict=False)
    else:
        teach(options, model, vocabulary, text_teacher)
    size = options.resolution or int(model.visual.input_resolution)
    # So much that the smallest crop is not enlarged; 64 at least, the side of the bundled models' photographs.
    stored = options.decode_side or max(64, math.ceil(size / math.sqrt(options.crop)))
    objectives = {options.objective, options.attack_objective}
    data = open_data(
        options.data,
        stored,
        need_text=vocabulary is None and not objectives <= {"fare", "tecoa"},
        classes=len(vocabulary.names) if vocabulary is not None else 0,
        columns=Columns(options.image_column, options.caption_column, options.label_column),
        memory=options.memory,
        shuffle=options.shuffle,
        seed=options.seed,
    )
    batches = Batches(
        data,
        options.batch_size,
        size,
        crop=options.crop,
        flip=options.flip,
        seed=options.seed,
        vocabulary=vocabulary,
        group_share=options.group_share,
        attributes=bool(options.attributes),
        max_bad_fraction=options.max_bad_fraction,
        decoders=options.decoders,
        worker=(workers.rank, workers.size),
    )
    # Evaluate against the ball that the run ends with, also where the run trains without an attack.
    evaluate = None
    if options.validation and vocabulary is not None:
        shrink = size / int(model.visual.input_resolution) if options.norm == "l2" else 1.0
        evaluate = ZeroShot(
            read_shards(options.validation, stored),
            vocabulary,
            size,
            options.eps * shrink,
            options.norm,
            options.evaluate_images,
        )
    needs_prompts = "tecoa" in objectives
    prompts = class_prompts(model, vocabulary) if needs_prompts and vocabulary is not None else None
    teachers = _teachers(options, model, workers.device) if options.teachers else None
    image_teacher, classes = _image_teacher(options, model, workers.device)
    trainer = Trainer(
        model,
        options,
        batches,
        evaluate,
        prompts,
        workers,
        teachers,
        image_teacher,
        text_teacher,
        classes,
    )
    pixels = {"mean": list(model.mean), "std": list(model.std)}
    card = {
        "name": options.name or Path(options.output).name,
        "recipe": options.to_dict(),
        **pixels,
    }
    return trainer, config, card


def _image_teacher(
    options: Train, model: CLIP, device: str
) -> tuple[ImageTeacher | None, Tensor | None]:
    """The teacher of --image-teacher and, for its kl, the text features of its classes' names."""
    if not options.image_teacher:
        return None, None
    kind = options.image_teacher_loss
    teacher = open_image_teacher(
        options.image_teacher,
        kind == "features",
        lambda name: _model_of(name)[0],
        device,
    )
    if kind != "kl":
        return teacher, None
    names = teacher.names
    if options.image_teacher_classes:
        names = Path(options.image_teacher_classes).read_text(encoding="utf-8").splitlines()
    side = teacher.side
    count = teacher(torch.zeros(1, 3, side, side, device=device)).shape[1]
    if len(names) != count or options.text == "train":
        raise ValueError(
            f"--image-teacher has {count} classes and {len(names)} names; give --image-teacher-classes FILE with one "
            "name a line and --text frozen, or --image-teacher-loss head"
        )
    encode = TextFeatures(model, trained=False)
    return teacher, encode([sentence(name, "a photo of a {}") for name in names])


def initial_model(
    options: Train, vocabulary: Vocabulary | None, device: str
) -> tuple[CLIP, dict[str, Any]]:
    """The model to train and its config: a run folder, any name of load(), or a fresh one from a config."""
    if options.init:
        config, card, weights = _starting_point(options.init)
        if options.grow > 1:
            config, weights = grown(config, weights, options.grow)
        mean, std = card.get("mean"), card.get("std")
        model = build(config, weights, name=card["name"], card=card, mean=mean, std=std)
        return model.to(device), config
    if not options.architecture:
        raise ValueError(
            "no model; give --init NAME to fine-tune one, or --architecture CONFIG to start from scratch"
        )
    config = read_config(options.architecture)
    pixels = config.pop("preprocess_cfg", {})  # as in an open_clip_config.json
    config = config.pop("model_cfg", config)
    mean, std = pixels.get("mean"), pixels.get("std")
    model = build(config, None, name=options.name, mean=mean, std=std).to(device)
    if vocabulary is not None:
        silence_unknown_tokens(model, vocabulary)
    return model, config


def teach(
    options: Train, model: CLIP, vocabulary: Vocabulary | None, teacher: TextTeacher | None = None
) -> None:
    """The text tower's lessons before any image is seen, as the options ask for them."""
    if teacher is not None and options.text_steps:
        texts = teacher.texts
        if options.text_teacher_texts:
            texts = Path(options.text_teacher_texts).read_text(encoding="utf-8").splitlines()
        learn_geometry(
            model,
            teacher,
            [text for text in texts if text.strip()],
            options.text_steps,
            linear=options.text_teacher_loss == "linear",
            seed=options.seed,
            report=_Lesson(options.text_steps, options.quiet),
        )
    lessons = {
        "text_steps": train_text if not (options.init or options.text_teacher) else None,
        "composing_steps": teach_compositions,
    }
    for name, lesson in lessons.items():
        steps = getattr(options, name)
        if not steps or lesson is None:
            continue
        if vocabulary is None:
            raise ValueError(f"--{name.replace('_', '-')} needs --captions vocabulary")
        lesson(model, vocabulary, steps, seed=options.seed, report=_Lesson(steps, options.quiet))


def _resumed(options: Train) -> Path | None:
    """The checkpoint that the run goes on from: its text tower has had its lessons."""
    if not options.resume:
        return None
    return find_state(Path(options.output if options.resume == "latest" else options.resume))


def _without_visual(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """All but the image tower's: what an objective asks of the initial one must be of the initial one."""
    return {name: value for name, value in weights.items() if not name.startswith("visual.")}


class _Lesson:
    """Says every half minute how far a lesson of the text tower is."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self.steps, self.quiet, self.shown = steps, quiet, time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        if not self.quiet and time.monotonic() - self.shown > 30:
            self.shown = time.monotonic()
            print(f"text tower: step {step + 1}/{self.steps}  loss {loss:.3f}", file=sys.stderr)


def _teachers(options: Train, student: CLIP, device: str) -> Ensemble:
    """ValueError where the texts that teachers and student share would not stay the same."""
    if options.text == "train":
        raise ValueError("--teachers needs --text frozen: what they say is about the texts of now")
    return Ensemble([_model_of(name)[0].to(device) for name in options.teachers], student)


def _model_of(name: str) -> tuple[CLIP, dict[str, Any]]:
    config, card, weights = _starting_point(name)
    model = build(config, weights, name=name, card=card, mean=card.get("mean"), std=card.get("std"))
    return model, config


def _starting_point(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Config, card and weights of a run folder or of any name that load() takes."""
    if (Path(name) / "model.json").is_file():
        return read_model(Path(name))
    from ..weights import open_checkpoint

    opened = open_checkpoint(name)
    record = opened.record
    card = {**opened.card, "name": name, "mean": list(record.mean), "std": list(record.std)}
    return opened.config, card, opened.state_dict


def read_config(text: str) -> dict[str, Any]:
    """A model config from JSON text or from a JSON file."""
    try:
        config = json.loads(
            text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        )
    except ValueError as error:
        raise ValueError(f"--architecture is not valid JSON: {error}") from error
    return dict(config)


@torch.no_grad()
def silence_unknown_tokens(model: CLIP, vocabulary: Vocabulary) -> None:
    """Zeroes the embedding of every token that no caption of the vocabulary uses.

    Such rows never receive a gradient, so they stay zero: a word that the model was not taught adds nothing to a
    prompt, where a random row would add noise. The zero rows cost no space in the packed file either.
    """
    from ..vocabulary import TEMPLATES

    # The tokeniser works word by word, so words and templates need not be crossed.
    texts = [sentence(word, template) for word in ("orange", "lemon") for template in TEMPLATES]
    used = torch.unique(model.tokenize([*texts, *vocabulary.words], truncate=True).long())
    keep = torch.zeros(model.token_embedding.weight.shape[0], 1)
    keep[used] = 1
    keep[0] = 0  # padding behind the end-of-text token, which a causal tower never reads
    model.token_embedding.weight.mul_(keep.to(model.token_embedding.weight.device))


class Reporter:
    """Draws one progress line on stderr: speed, loss, accuracies, time left."""

    def __init__(self, trainer: Trainer, quiet: bool) -> None:
        self.trainer, self.quiet = trainer, quiet
        self.started, self.first = time.monotonic(), trainer.index
        self.last: Step | None = None
        self.evaluated: Step | None = None
        self._shown = 0.0

    def __call__(self, step: Step) -> None:
        self.last = step
        if step.evaluation:
            self.evaluated = step
        now = time.monotonic()
        interactive = sys.stderr.isatty()
        if self.quiet or (now - self._shown < (0.5 if interactive else 30) and not step.evaluation):
            return
        self._shown = now
        done = step.index - self.first
        left = (now - self.started) / done * (self.trainer.steps - step.index)
        line = (
            f"step {step.index}/{self.trainer.steps}  loss {step.loss:.3f}  lr {step.lr:.1e}  "
            f"{step.images_per_second:.0f} images/s  {left / 60:.0f} min left"
        )
        line += f"  {_memory() / 2**30:.1f} GiB"
        if self.evaluated and self.evaluated.evaluation:
            held = self.evaluated.evaluation
            line += f"  held-out clean {held.clean:.1%} robust {held.robust:.1%} (step {self.evaluated.index})"
        print(
            ("\r\x1b[2K" if interactive else "") + line,
            end="" if interactive else "\n",
            file=sys.stderr,
            flush=True,
        )


def _memory() -> int:
    """Largest memory so far in bytes: of the GPU where one is used, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def outcome(trainer: Trainer, last: Step | None) -> dict[str, Any]:
    """What the card says of the finished run."""
    held = last.evaluation if last else None
    return {
        "images_seen": trainer.index * trainer.batch,
        "held_out": None
        if held is None
        else {"clean": held.clean, "robust": held.robust, "images": held.images},
        "skipped": trainer.batches.tally.counts(),
        "torch": torch.__version__,
    }
