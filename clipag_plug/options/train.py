"""Options of the trainer: one dataclass for the recipe files, the command line and the saved run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..vocabulary import check_sentence
from .base import PRECISION, PRECISIONS, Options, flag, number, option

OBJECTIVES = ("contrastive", "image_to_text", "sigmoid", "cosine", "fare", "tecoa")
ATTACK_OBJECTIVES = (*OBJECTIVES, "kl")
MODES = ("train", "frozen")
DECAYS = ("matrices", "open_clip", "all")
EVERY = r"(\d+\.?\d*|\.\d+)(s|min|ep|)"  # seconds, minutes, passes over the data, or images


@dataclass
class Train(Options):
    """Adversarial (or, with `attack_steps = 0`, plain) image-text training."""

    data: list[str] = option(
        [],
        "WebDataset shards, tables, folders, hf:NAME, pipe:COMMAND or synthetic:COUNT; each may end in @SHARE, and in "
        "::caption=COLUMN or ::template=TEXT before that",
        short="-d",
    )
    validation: list[str] = option([], "held-out data of the same kinds; none: no evaluation")
    captions: str = option(
        "text",
        "a sample's own text, or words for its class from the class names",
        choices=("text", "vocabulary"),
    )
    class_names: str = option(
        "",
        "names of the classes: a file with one class a line (synonyms parted by commas), imagenet, or bundled; empty: "
        "the data's own (folders, WordNet numbers, data sets), and bundled for --captions vocabulary without any",
    )
    prompts: list[str] = option(
        ["a photo of a {}", "a picture of a {}", "an image of a {}", "{}"],
        "sentences whose mean text feature stands for a class in tecoa and in evaluations",
    )
    articles: bool = option(True, "fit the article before a class name: 'an orange'")
    group_share: float = option(0.2, "share of captions with a group word, as 'dog'", low=0, high=1)
    duplicates: str = option(
        "positive",
        "what an equal caption of another image is to an image; open_clip: negative",
        choices=("positive", "negative"),
    )
    image_column: str = option("", "column of images in a table; empty: the usual names")
    caption_column: str = option("", "column of captions in a table; empty: the usual names")
    label_column: str = option("", "column of class numbers in a table; empty: the usual names")
    memory: float = option(4.0, "GB of decoded images to hold; the rest is decoded on use", low=0)
    shuffle: int = option(2000, "samples that are mixed where data is read in order", low=1)
    decoders: int = option(
        2, "processes that read, decode and crop ahead; 0: in the foreground", low=0
    )
    max_bad_fraction: float = option(0.05, "share of bad samples that stops a run", low=0, high=1)

    init: str = option("", "model to start from, by any name that load() takes; or a run's folder")
    architecture: str = option(
        "", "model config (JSON text, a file, or a name of open_clip) for a start from scratch"
    )
    grow: float = option(1.0, "multiple of a mini or lite tower's internal side to train at", low=1)
    text: str = option("frozen", "train the text tower, or keep it bit-identical", choices=MODES)
    text_features: str = option(
        "",
        "features of all captions in place of the frozen tower's: .npz or .safetensors, as for --text-teacher",
    )
    train_text_features: bool = option(
        False,
        "train the stored features of --bank-texts along, from where they are; they are written beside the model as "
        "captions.npz, for a text tower to learn",
    )
    text_rank: int = option(
        0,
        "dimensions in which trained features may lie, their main ones; a text tower reaches as many as it is wide; 0: "
        "all",
        low=0,
    )
    image: str = option("train", "train the image tower, or lock it (LiT)", choices=MODES)
    lock_image_unlocked_groups: int = option(
        0, "with --image frozen: last groups of layers that train nevertheless", low=0
    )
    patch_dropout: float = option(0.0, "share of patches that a ViT drops", low=0, high=0.99)
    train_scale: bool = option(False, "train the logit scale although the text tower is frozen")
    text_steps: int = option(
        0,
        "steps of the text tower alone beforehand: under --text-teacher, or on class names",
        low=0,
    )

    objective: str = option("contrastive", "outer loss", choices=OBJECTIVES)
    attack_objective: str = option(
        "image_to_text",
        "inner loss, over the texts of the micro-batch; kl is that of TRADES and needs a random start",
        choices=ATTACK_OBJECTIVES,
    )
    bank: bool = option(
        False, "more negatives of the image-to-text half: a caption of every class (frozen text)"
    )
    bank_texts: str = option(
        "", "file of such negatives for --captions text, one a line (frozen text)"
    )
    teachers: list[str] = option(
        [], "models with the same text tower whose view of the clean images is learned"
    )
    distil: float = option(1.0, "weight of cross-entropy with their mean distribution", low=0)
    image_teacher: str = option(
        "", "teacher of clean images: timm:NAME[@FILE], torchvision:NAME[@FILE] or a name of load()"
    )
    image_teacher_loss: str = option(
        "kl",
        "kl: its classes against their names' texts; head: against a linear map trained along; features: distance",
        choices=("kl", "head", "features"),
    )
    image_teacher_classes: str = option(
        "", "file of its class names, one a line; empty: ImageNet's"
    )
    image_teacher_side: int = option(0, "pixels that it sees; 0: its own input's", low=0)
    image_teacher_weight: float = option(1.0, "factor on that loss", low=0)
    text_teacher: str = option(
        "", "teacher of texts: a folder or name of transformers, or .npz or .safetensors of vectors"
    )
    text_teacher_loss: str = option(
        "linear",
        "linear: cosine through a linear map trained along; cosine: without one, its vectors are the features' own; "
        "similarity: the matrix of cosines",
        choices=("linear", "cosine", "similarity"),
    )
    text_teacher_texts: str = option("", "file of texts for --text-steps, one a line")
    text_teacher_weight: float = option(
        0.0, "factor on that loss over the captions of every step; needs --text train", low=0
    )
    clean_weight: float = option(0.0, "weight of the loss on the clean images beside it", low=0)
    trades: float = option(
        0.0,
        "weight of KL(clean || attacked); the outer loss is then that of the clean images",
        low=0,
    )

    norm: str = option("l2", "ball of the attack", choices=("l2", "linf"))
    eps: float = option(
        1.5,
        "radius in [0, 1] pixel units at the model's input resolution; 4/255 is understood",
        low=0,
    )
    eps_space: str = option(
        "pixel",
        "units of eps: pixels in [0, 1], or divided by the normalisation's std",
        choices=("pixel", "normalized"),
    )
    eps_low: float = option(
        1.0, "smallest radius over eps: each image draws one between the two", low=0, high=1
    )
    eps_ramp: float = option(0.0, "share of the run over which eps grows from 0", low=0, high=1)
    attack_steps: int = option(5, "PGD steps; 0 trains without an attack", low=0)
    step_ratio: float = option(0.0, "PGD step as a multiple of eps; 0 means 2.5 / steps", low=0)
    random_start: bool = option(True, "start the attack at a random point of the ball")
    attack: str = option("pgd", "apgd chooses its own steps", choices=("pgd", "apgd"))
    momentum: float = option(0.0, "decay of the PGD direction's running sum", low=0, high=1)
    momentum_form: str = option(
        "sum",
        "the sum itself runs on, or (RobustVLM) its direction",
        choices=("sum", "normalized"),
    )
    best: bool = option(False, "keep each image's PGD iterate of highest loss, not the last one")

    resolution: int = option(0, "side of the training images; 0: the model's input", low=0)
    crop: float = option(0.56, "smallest share of the area that a crop keeps", low=0.01, high=1)
    flip: bool = option(False, "mirror half of the images")
    decode_side: int = option(
        0,
        "side of the square photographs are decoded to; 0: the smallest crop is not enlarged",
        low=0,
    )

    samples: int = option(0, "images to train on in all, with repetition; or give --epochs", low=0)
    epochs: float = option(0.0, "passes over the data instead of --samples", low=0)
    batch_size: int = option(128, "images in a micro-batch", low=2)
    accumulation: int = option(1, "micro-batches in a step; they share their negatives", low=1)
    keep: str = option(
        "auto",
        "where adversarial images wait for the second pass: auto is on disk above 256 MB",
        choices=("auto", "memory", "disk"),
    )
    optimizer: str = option(
        "adamw", "muon: Muon for kernels of convolutions, AdamW besides", choices=("adamw", "muon")
    )
    lr: float = option(2e-5, "peak learning rate", low=0)
    muon_lr: float = option(0.03, "Muon's largest step, as a share of the kernel's norm", low=0)
    weight_decay: float = option(1e-4, "decoupled weight decay", low=0)
    decay: str = option(
        "matrices",
        "what decays: matrices without embeddings, what open_clip decays, or all",
        choices=DECAYS,
    )
    beta1: float = option(0.9, "first AdamW decay", low=0, high=0.99999)
    beta2: float = option(0.98, "second AdamW decay", low=0, high=0.99999)
    adam_eps: float = option(1e-6, "AdamW's epsilon", low=0)
    warmup: float = option(0.05, "share of the run that warms the learning rate up", low=0, high=1)
    schedule: str = option(
        "cosine", "after the warm-up", choices=("cosine", "constant", "const-cooldown")
    )
    cooldown: float = option(0.1, "share of the run in which const-cooldown ends", low=0, high=1)
    clip_norm: float = option(0.0, "largest gradient norm; 0 does not clip", low=0)
    ema: float = option(
        0.0, "decay of the average of the weights that is the result", low=0, high=0.99999
    )
    precision: str = option("auto", PRECISION, choices=PRECISIONS)
    checkpointing: bool = option(False, "recompute activations: less memory, a third more time")
    compile: bool = option(False, "compile the image encoder with torch.compile")

    output: str = option("runs/train", "folder of the run", short="-o")
    name: str = option("", "name in the exported model's card; empty is the folder's name")
    resume: str = option(
        "",
        "continue: latest (a start where there is none), a checkpoint or a folder",
        bare="latest",
    )
    save_every: str = option("300s", "between checkpoints: 300s, 5min, 1ep, or 50000 images")
    keep_last: int = option(1, "checkpoints to keep, the newest", low=1)
    remote: str = option("", "fsspec address that checkpoints and results are copied to")
    evaluate_every: str = option("600s", "between evaluations, likewise")
    evaluate_images: int = option(1000, "held-out images of an evaluation, drawn at random", low=1)
    tensorboard: bool = option(False, "also log to TensorBoard, in the folder")
    wandb: str = option("", "also log to this project of Weights & Biases")
    seed: int = option(
        0,
        "seed of the weights, the order, the crops and the attack",
        low=0,
        high=2**63 - 1,
        short="-s",
    )
    threads: int = option(0, "CPU threads; 0 leaves the choice to torch", low=0)
    device: str = option("", "cpu, cuda or mps; empty takes cuda where there is one")
    quiet: bool = option(False, "no progress on stderr", short="-q")

    def __post_init__(self) -> None:
        eps: Any = self.eps
        self.eps = number(eps) if isinstance(eps, str) else eps  # as a recipe may say
        super().__post_init__()
        for name in ("save_every", "evaluate_every"):
            if not re.fullmatch(EVERY, getattr(self, name)):
                raise ValueError(
                    f"{flag(name)} is {getattr(self, name)!r}; give seconds (300s), minutes (5min), passes over the "
                    "data (1ep) or images (50000)"
                )
        if self.norm == "linf" and self.eps_space == "pixel" and self.eps > 1:
            raise ValueError(
                f"--eps is {self.eps:g} with --norm linf; it is in [0, 1] pixel units: give --eps {self.eps:g}/255"
            )
        if not self.prompts:
            raise ValueError("--prompts is empty; give sentences with {} where the class goes")
        for prompt in self.prompts:
            check_sentence("--prompts", prompt)
        if self.samples and self.epochs:
            raise ValueError("--samples and --epochs are both given; give one of them")
