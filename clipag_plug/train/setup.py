"""From options to a trainer: data, model, lessons, teachers, evaluation."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import read_lines
from ..model import CLIP
from ..options.train import Train
from ..vocabulary import Vocabulary, sentence
from .classes import class_vocabulary
from .data import Batches, Columns, open_data, read_shards
from .distributed import Workers, connect
from .evaluate import Validation, class_prompts
from .lessons import learn_geometry, silence_unknown_tokens, spread_classes
from .sources import check_paths
from .start import initial_model, opened
from .teachers import Ensemble, ImageTeacher, TextTeacher, open_image_teacher
from .trainer import Trainer

CLASS_PROMPT = "a photo of a {}"  # around the names of the classes of an image teacher


class Prepared(NamedTuple):
    """A trainer, its model's config and the start of its card, and how it is evaluated, if it is."""

    trainer: Trainer
    config: dict[str, Any]
    card: dict[str, Any]
    evaluate: Validation | None


def prepare(
    options: Train, workers: Workers | None = None, resumed: dict[str, Any] | None = None
) -> Prepared:
    """What a run needs, the data first. workers: None for a process of its own. resumed: the state it goes on from."""
    workers = workers or connect(options.device)
    check_paths(options.data, "--data")
    if options.validation:
        check_paths(options.validation, "--validation")
    torch.manual_seed(options.seed)  # initial weights of a model from scratch
    model, config, card = initial_model(options, workers.device)
    size = options.resolution or int(model.visual.input_resolution)
    # So much that the smallest crop is not enlarged; 64 at least, the side of the bundled models' photographs.
    stored = options.decode_side or max(64, math.ceil(size / math.sqrt(options.crop)))
    objectives, named = {options.objective, options.attack_objective}, options.captions != "text"
    vocabulary: list[Vocabulary | None] = [None]

    def classes(names: Sequence[str]) -> int:
        vocabulary[0] = class_vocabulary(options, names)
        need = named or "tecoa" in objectives
        return len(vocabulary[0].names) if vocabulary[0] is not None and need else 0

    data = open_data(
        options.data,
        stored,
        need_text=not named and not objectives <= {"fare", "tecoa"},
        classes=classes,
        columns=_columns(options),
        memory=options.memory,
        shuffle=options.shuffle,
        seed=options.seed,
    )
    known = vocabulary[0]
    batches = Batches(
        data,
        options.batch_size,
        size,
        crop=options.crop,
        flip=options.flip,
        seed=options.seed,
        vocabulary=known if named else None,
        group_share=options.group_share,
        max_bad_fraction=options.max_bad_fraction,
        decoders=options.decoders,
        worker=(workers.rank, workers.size),
        duplicates=options.duplicates == "positive",
    )
    evaluate = None
    if options.validation:
        # Against the ball that the run ends with, also where the run trains without an attack.
        shrink = size / int(model.visual.input_resolution) if options.norm == "l2" else 1.0
        evaluate = _validation(options, size, options.eps * shrink, card, data.names, workers)
    if options.architecture and not options.init and named and known is not None:
        silence_unknown_tokens(model, known)
    text_teacher = (
        TextTeacher(options.text_teacher, workers.device) if options.text_teacher else None
    )
    if (
        resumed is not None
    ):  # its text tower has had its lessons; references are of the initial image tower
        weights = {n: v for n, v in resumed["weights"].items() if not n.startswith("visual.")}
        model.load_state_dict(weights, strict=False)
    else:
        teach(options, model, known if named else None, text_teacher)
    features = options.text_features
    captions = TextTeacher(features, workers.device, "--text-features") if features else None
    if captions is not None and captions.width != model.visual.output_dim:
        raise ValueError(
            f"--text-features {features!r} has vectors of {captions.width} numbers, the model's features have "
            f"{model.visual.output_dim}"
        )
    prompts = None
    if "tecoa" in objectives and known is not None:
        prompts = class_prompts(
            model, known.class_names, options.prompts, options.articles, captions
        )
    references: dict[str, Any] = {}
    if options.teachers:
        if options.text == "train":
            raise ValueError("--teachers needs --text frozen: they tell of the texts of now")
        several = [opened(name)[0].to(workers.device) for name in options.teachers]
        references["taught"] = Ensemble(several, model)
    taught_classes, class_texts = None, list[str]()
    if options.image_teacher:
        references["said"], told = _image_teacher(options, model, workers.device)
        class_texts = [sentence(name, CLASS_PROMPT) for name in told]
        if told:
            taught_classes = class_prompts(model, told, [CLASS_PROMPT], stored=captions)
    trainer = Trainer(
        model,
        options,
        batches,
        workers,
        prompts=prompts,
        classes=taught_classes,
        class_texts=class_texts,
        references=references,
        text_teacher=text_teacher,
        text_features=captions,
    )
    name = options.name or Path(options.output).name
    return Prepared(trainer, config, {**card, "name": name, "recipe": options.to_dict()}, evaluate)


def _columns(options: Train) -> Columns:
    return Columns(options.image_column, options.caption_column, options.label_column)


def _validation(
    options: Train,
    size: int,
    eps: float,
    card: dict[str, Any],
    names: Sequence[str],
    workers: Workers,
) -> Validation:
    """The held-out images at the side of the training images. names: of the classes, by the training data."""
    shown = card.get("interpolation", "bicubic"), card.get("resize_mode", "shortest")
    try:
        held = read_shards(
            options.validation,
            size,
            count=options.evaluate_images,
            seed=options.seed,
            columns=_columns(options),
            shown=shown,
        )
        known = class_vocabulary(options, held.names or names, bool(held.names))
    except ValueError as error:
        raise ValueError(f"--validation: {error}") from error
    bad = sum(held.skipped.values())
    if bad > options.max_bad_fraction * (bad + len(held)):
        raise ValueError(
            f"{bad} of {bad + len(held)} samples of --validation are bad, more than --max-bad-fraction "
            f"{options.max_bad_fraction:g}: {held.skipped}"
        )
    return Validation(
        held,
        known.class_names if known is not None and int(held.labels.max()) >= 0 else [],
        size,
        eps,
        options.norm,
        len(held),
        prompts=options.prompts,
        seed=options.seed,
        workers=workers,
    )


def teach(
    options: Train, model: CLIP, vocabulary: Vocabulary | None, teacher: TextTeacher | None
) -> None:
    """The text tower's lesson before any image is seen, as the options ask for it."""
    steps = options.text_steps
    if not steps or (options.init and teacher is None):
        return
    keywords: dict[str, Any] = {"seed": options.seed, "report": _Lesson(steps, options.quiet)}
    if teacher is not None:
        texts = teacher.texts
        if options.text_teacher_texts:
            texts = read_lines(options.text_teacher_texts, "--text-teacher-texts")
        texts, kind = [text for text in texts if text.strip()], options.text_teacher_loss
        learn_geometry(model, teacher, texts, steps, kind=kind, **keywords)
    elif vocabulary is None:
        raise ValueError("--text-steps needs --captions vocabulary or --text-teacher")
    else:
        spread_classes(model, vocabulary, steps, **keywords)


class _Lesson:
    """Says every half minute how far a lesson of the text tower is."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self.steps, self.quiet, self.shown = steps, quiet, time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        if not self.quiet and time.monotonic() - self.shown > 30:
            self.shown = time.monotonic()
            print(f"text tower: step {step + 1}/{self.steps}  loss {loss:.3f}", file=sys.stderr)


def _image_teacher(options: Train, model: CLIP, device: str) -> tuple[ImageTeacher, Sequence[str]]:
    """The teacher of --image-teacher and, for its kl, its classes' names."""
    kind = options.image_teacher_loss
    teacher = open_image_teacher(
        options.image_teacher,
        kind == "features",
        lambda name: opened(name)[0],
        device,
        options.image_teacher_side,
    )
    if kind != "kl":
        return teacher, []
    names: Sequence[str] = teacher.names
    if options.image_teacher_classes:
        names = read_lines(options.image_teacher_classes, "--image-teacher-classes")
    count = teacher(torch.zeros(1, 3, teacher.side, teacher.side, device=device)).shape[1]
    if len(names) != count or options.text == "train":
        raise ValueError(
            f"--image-teacher has {count} classes and {len(names)} names; give --image-teacher-classes FILE with one "
            "name a line and --text frozen, or --image-teacher-loss head"
        )
    return teacher, names
