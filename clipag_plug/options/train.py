"""Options of the trainer: one dataclass for the recipe files, the command line and the saved run."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option

OBJECTIVES = ("contrastive", "image_to_text", "cosine", "fare", "tecoa")
ATTACK_OBJECTIVES = (*OBJECTIVES, "kl")
NORMS = ("l2", "linf")
EPS_SPACES = ("pixel", "normalized")
KEEP = ("auto", "memory", "disk")
PRECISIONS = ("fp32", "bf16", "fp16")
ATTACKS = ("pgd", "apgd")
TEXT_MODES = ("train", "frozen")
SCHEDULES = ("cosine", "constant")
OPTIMIZERS = ("adamw", "muon")
IMAGE_TEACHER_LOSSES = ("kl", "head", "features")
TEXT_TEACHER_LOSSES = ("linear", "similarity")


@dataclass
class Train(Options):
    """Adversarial (or, with `attack_steps = 0`, plain) image-text training."""

    data: list[str] = option(
        [],
        "training data: WebDataset shards, tables, folders, hf:NAME, pipe:COMMAND or synthetic:COUNT, each with "
        "@SHARE behind it where they are to be mixed by shares",
        short="-d",
    )
    validation: list[str] = option(
        [], "held-out shards for accuracy; none switches the evaluation off"
    )
    captions: str = option(
        "text",
        "caption of a sample: its own text, or words of the bundled vocabulary by its class",
        choices=("text", "vocabulary"),
    )
    group_share: float = option(
        0.2, "share of vocabulary captions that use a group word such as 'dog'", low=0, high=1
    )
    image_column: str = option("", "column of a table that holds images; empty: the usual names")
    caption_column: str = option("", "column of a table that holds captions; likewise")
    label_column: str = option("", "column of a table that holds class numbers; likewise")
    memory: float = option(
        4.0, "GB of decoded images to hold; larger data is decoded when a batch needs it", low=0
    )
    shuffle: int = option(
        2000, "samples that are mixed where data can only be read in order", low=1
    )
    decoders: int = option(
        2, "threads that decode what is not in memory, one batch ahead; 0 does without", low=0
    )
    max_bad_fraction: float = option(
        0.05, "share of the samples that may be unusable before the run stops", low=0, high=1
    )

    init: str = option(
        "", "model to start from: any name that load() takes; empty starts from scratch"
    )
    architecture: str = option(
        "", "JSON model config to build from scratch, a file path or the text itself"
    )
    grow: int = option(
        1,
        "train at this multiple of a mini tower's internal side, starting as the same function",
        low=1,
    )
    text: str = option(
        "frozen", "train the text tower too, or keep it bit-identical", choices=TEXT_MODES
    )
    image: str = option(
        "train", "train the image tower, or lock it while the text tower learns", choices=TEXT_MODES
    )
    lock_image_unlocked_groups: int = option(
        0,
        "with --image frozen: groups of layers that train all the same, counted from the output",
        low=0,
    )
    text_steps: int = option(
        0,
        "steps of the text tower's own training before any image is seen, under --text-teacher or on "
        "--captions vocabulary",
        low=0,
    )
    composing_steps: int = option(
        0,
        "steps that then teach the text tower captions of several parts: two subjects, colours, brightness; likewise",
        low=0,
    )
    train_scale: bool = option(False, "train the logit scale although the text tower is frozen")

    objective: str = option("contrastive", "outer loss", choices=OBJECTIVES)
    attack_objective: str = option(
        "image_to_text",
        "inner loss that the attack raises: the texts of the micro-batch are its negatives. kl is that of the TRADES "
        "paper, the divergence from the clean image's distribution over texts; it needs a random start",
        choices=ATTACK_OBJECTIVES,
    )
    bank: bool = option(
        False,
        "let the image-to-text half also see one caption of every vocabulary class: the negatives of a large batch "
        "at a small one; needs a frozen text tower, whose features are constants",
    )
    attributes: float = option(
        0.0,
        "weight of a loss that tells the colours of an image's subject and background, and its brightness, from "
        "captions of its class; needs a frozen text tower that was taught them, and --captions vocabulary",
        low=0,
    )
    teachers: list[str] = option(
        [],
        "models with the same text tower whose mean view of the clean images is learned beside the captions; any names "
        "that load() takes, or run folders",
    )
    distil: float = option(
        1.0,
        "weight of that: cross-entropy with their distribution over the bank, the class prompts or the captions",
        low=0,
    )
    image_teacher: str = option(
        "",
        "classifier or encoder that sees the clean images: timm:NAME[@FILE], torchvision:NAME[@FILE] or any name that "
        "load() takes",
    )
    image_teacher_loss: str = option(
        "kl",
        "kl: its softmax over classes against the model's over their names; head: against that of a linear map trained "
        "along; features: squared distance of the features",
        choices=IMAGE_TEACHER_LOSSES,
    )
    image_teacher_classes: str = option(
        "", "file of the classes' names, one a line; empty: ImageNet's, of a timm model of 1,000"
    )
    image_teacher_weight: float = option(1.0, "factor on that loss", low=0)
    text_teacher: str = option(
        "",
        "text encoder whose geometry the text tower learns: a folder or name of transformers, or stored vectors "
        "(.npz with texts and vectors, or .safetensors)",
    )
    text_teacher_loss: str = option(
        "linear",
        "linear: cosine through a linear map trained along; similarity: the matrix of cosine similarities",
        choices=TEXT_TEACHER_LOSSES,
    )
    text_teacher_texts: str = option(
        "",
        "file of texts for --text-steps, one a line; empty: those that the stored vectors are of",
    )
    text_teacher_weight: float = option(
        0.0,
        "factor on that loss over the captions of a step, beside the objective; needs --text train",
        low=0,
    )
    clean_weight: float = option(
        0.0, "weight of the same loss on the clean images, added to the adversarial one", low=0
    )
    trades: float = option(
        0.0,
        "weight of KL(clean || attacked) over the texts; the outer loss is then that of the clean images (TRADES)",
        low=0,
    )
    norm: str = option("l2", "ball of the attack", choices=NORMS)
    eps: float = option(1.5, "radius in [0, 1] pixel units at the model's input resolution", low=0)
    eps_space: str = option(
        "pixel",
        "units of eps: [0, 1] pixels, or pixels divided by the normalisation's standard deviations",
        choices=EPS_SPACES,
    )
    eps_ramp: float = option(
        0.0, "share of the run over which eps grows from 0 to its value", low=0, high=1
    )
    attack_steps: int = option(5, "PGD steps; 0 trains without an attack", low=0)
    step_ratio: float = option(0.0, "PGD step as a multiple of eps; 0 means 2.5 / steps", low=0)
    random_start: bool = option(True, "start the attack at a random point of the ball")
    attack: str = option(
        "pgd", "how the inner loss is raised; apgd chooses its own steps", choices=ATTACKS
    )
    momentum: float = option(
        0.0, "decay of the PGD direction's running sum; RobustVLM trains with 0.9", low=0, high=1
    )
    best: bool = option(False, "keep each image's PGD iterate of highest loss, not the last one")

    resolution: int = option(
        0,
        "side of the training images; 0 is the model's input resolution. A smaller one suits "
        "models that reduce internally; an L2 eps shrinks in proportion",
        low=0,
    )
    crop: float = option(
        0.56, "smallest share of the area that a random crop keeps", low=0.01, high=1
    )
    flip: bool = option(True, "mirror half of the images")
    decode_side: int = option(
        0,
        "side of the square that photographs are decoded to, of which crops are taken; 0 is so much that the smallest "
        "crop is not enlarged. Their own side suits photographs that are no larger than the training images",
        low=0,
    )

    samples: int = option(0, "images to train on in all (with repetition); required", low=0)
    batch_size: int = option(128, "images in a micro-batch", low=2)
    accumulation: int = option(
        1, "micro-batches in an optimiser step; they share their negatives", low=1
    )
    keep: str = option(
        "auto",
        "where the adversarial images of a step's micro-batches wait for the second pass: memory, disk (a file in the "
        "run's folder), or disk above 256 MB",
        choices=KEEP,
    )
    optimizer: str = option(
        "adamw",
        "what takes the steps: muon is Muon for the kernels of convolutions without a bias and AdamW for the rest",
        choices=OPTIMIZERS,
    )
    lr: float = option(2e-5, "peak learning rate", low=0)
    muon_lr: float = option(
        0.03, "length of Muon's largest step, as a share of the kernel's norm", low=0
    )
    weight_decay: float = option(1e-4, "decoupled weight decay of matrices and kernels", low=0)
    beta2: float = option(0.98, "second AdamW decay", low=0, high=1)
    warmup: float = option(0.05, "share of the run that warms the learning rate up", low=0, high=1)
    schedule: str = option("cosine", "learning rate after the warm-up", choices=SCHEDULES)
    clip_norm: float = option(0.0, "largest gradient norm; 0 does not clip", low=0)
    ema: float = option(
        0.0,
        "decay of the moving average of the weights that is kept as the result; 0 switches it off",
        low=0,
        high=1,
    )

    precision: str = option(
        "fp32", "number format of the encoder; weights and losses stay in fp32", choices=PRECISIONS
    )
    checkpointing: bool = option(
        False,
        "recompute a transformer's activations on the way back: less memory, a third more time",
    )
    compile: bool = option(False, "compile the image encoder with torch.compile")

    output: str = option("runs/train", "folder of the run", short="-o")
    name: str = option("", "name in the exported model's card; empty is the folder's name")
    resume: str = option(
        "",
        "continue: latest, from the folder's checkpoint, or from the start where it has none yet; or the path of a "
        "checkpoint or of a run's folder",
        bare="latest",
    )
    tensorboard: bool = option(False, "also log to TensorBoard, in the folder; needs tensorboard")
    save_every: float = option(300.0, "seconds between checkpoints", low=0)
    evaluate_every: float = option(600.0, "seconds between evaluations", low=0)
    evaluate_images: int = option(1000, "held-out images in an evaluation during the run", low=1)
    seed: int = option(0, "seed of the weights, the order, the crops and the attack", short="-s")
    threads: int = option(0, "CPU threads; 0 leaves the choice to torch", low=0)
    device: str = option("", "cpu, cuda or mps; empty takes cuda where there is one")
    quiet: bool = option(False, "no progress on stderr", short="-q")

    def __post_init__(self) -> None:
        given: object = self.resume
        if isinstance(given, bool):  # what recipes of earlier versions say
            self.resume = "latest" if given else ""
        super().__post_init__()
