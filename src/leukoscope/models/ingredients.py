"""What a recipe is made of: plain data that says how a classifier is built and trained, and does nothing itself.

`recipes.py` fills these in for the house's own recipes, `prior_systems.py` for systems of others that are rebuilt here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from leukoscope.cells.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from leukoscope.cells.transforms import Augmentation


@dataclass(frozen=True)
class Hidden:
    """A hidden layer of a head: linear, then batch normalisation, activation and dropout as given."""

    width: int
    activation: Literal["relu", "leaky_relu"] = "relu"
    batch_norm: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class Head:
    """What stands between the last feature map and the answer, where it is not the architecture's own.

    Attributes:
        pooling: how the map becomes one number a channel; "avg_std" gives two, mean and standard deviation.
        levels: numbers of the feature maps that are read (timm's `feature_info`, 0 is the first); () reads the last.
        batch_norm: normalise the pooled features; eps and momentum (PyTorch's: the share of the new batch) follow.
        hidden: layers before the last linear one.
    """

    pooling: Literal["avg", "max", "avg_std"] = "avg"
    batch_norm: bool = False
    eps: float = 1e-5
    momentum: float = 0.1
    hidden: tuple[Hidden, ...] = ()
    levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Penalty:
    """Added to the loss for a head's hidden layers: sums over weights and biases, as Keras's regularisers."""

    weight_l2: float = 0.0
    weight_l1: float = 0.0
    bias_l2: float = 0.0
    bias_l1: float = 0.0


@dataclass(frozen=True)
class Plateau:
    """The rate falls when a watched quantity stops improving, and training stops after several such cuts.

    Attributes:
        monitor: what is watched, a column of summary.csv.
        factor: the rate is multiplied by it at each cut.
        patience: epochs without improvement before a cut.
        stop_patience: cuts in a row without improvement before training stops; the best epoch is restored.
        until_train_accuracy: while an epoch's training accuracy (0–1) is below it, that accuracy is watched instead of
            `monitor`; None watches `monitor` from the start.
    """

    monitor: Literal["val_accuracy", "val_balanced_accuracy", "val_loss"] = "val_accuracy"
    factor: float = 0.5
    patience: int = 1
    stop_patience: int = 3
    until_train_accuracy: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How one kind of classifier is built and trained.

    Attributes:
        architecture: a timm model, or a network of `models/remote/networks.py` (AlexNet, the baseline CNN).
        base_model: Hub repository of its ImageNet weights (safetensors); "" where there are none, and it starts from
            random ones.
        about: for a system of others, what it is, what its description leaves open and what was chosen there.
        image_size: side of the input in pixels.
        framing: "picture" shows the central part of the picture, "cell" every cut-out cell at one size; see
            `Preprocessing`.
        least_image_size: the smallest side that leaves something of a picture at the last feature map.
        learning_rate: peak rate of the pretrained layers.
        head_learning_rate: peak rate of the new head.
        drop_rate: dropout of the architecture's own head; a `head` brings its own.
        frozen: modules that keep their pretrained weights and statistics. Early filters carry over from photographs;
            leaving them alone regularises (few patients, many cells) and saves the costliest part of a step.
            Ignored when starting from scratch.
        cpu_precision: "bf16" or "no": which is faster for this backbone on a CPU (GPUs always use bf16).
        head: layers of its own; None keeps the architecture's own head.
        penalty: added to the loss for the head's hidden layers.
        optimizer: AdamW decays weights apart from the gradient and spares biases and norms; the others add
            `weight_decay` times every parameter to its gradient (L2).
        layer_decay: each step from the head towards the input learns this much slower than the one above it (Clark et
            al. 2020, arXiv:2003.10555); 1 lets the whole backbone learn at one rate.
        schedule: cosine with warm-up, or one rate throughout.
        plateau: cuts a constant rate when validation stops improving; its last improvement is the epoch kept.
        max_grad_norm: gradients are clipped to this norm; None leaves them alone.
        class_weighted: weigh the loss by inverse class frequency; prior systems did not.
        sampling: an epoch shows every cell once ("cells"), or every class equally and in it every subject equally
            ("subjects") or by the square root of its cells ("subjects_sqrt"): few patients with many cells each
            otherwise decide what a class looks like.
        epoch_cells: cells that an epoch shows, at most as many as there are; 0 shows that many.
        mixup: cells are blended in pairs, labels too, by a share drawn from Beta(mixup, mixup) (Zhang et al. 2018,
            arXiv:1710.09412); 0 blends none.
        subject_robustness: step size by which training turns to the subjects that do worst (group DRO, Sagawa et al.
            2020, arXiv:1911.08731); 0 treats all cells alike.
        ema_decay: the weights kept are a running mean over the steps with this decay (Izmailov et al. 2018,
            arXiv:1803.05407); 0 keeps the last step's.
        head_first: share of the steps at the start in which the head alone learns, so that random numbers in it do not
            disturb the backbone (Kumar et al. 2022, arXiv:2202.10054).
        batch_norm_frozen: every BatchNorm keeps its pretrained statistics.
        batch_norm_cells: training cells from which BatchNorm statistics are taken anew after each epoch; 0 keeps the
            running ones.
        selected_by: without a plateau, the validation metric whose best epoch is kept; one by subject gives way to its
            pooled form where subjects are not known or a class is missing.
        mean, std: what pixels in 0–1 are standardised with.
    """

    name: str
    architecture: str
    base_model: str
    about: str = ""
    image_size: int = 160
    framing: Literal["picture", "cell"] = "picture"
    least_image_size: int = 32
    num_train_epochs: int = 2
    train_batch_size: int = 32
    learning_rate: float = 3e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    label_smoothing: float = 0.1
    drop_rate: float = 0.2
    drop_path_rate: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    frozen: tuple[str, ...] = ()
    cpu_precision: str = "no"
    head: Head | None = None
    penalty: Penalty = field(default_factory=Penalty)
    optimizer: Literal["adamw", "adam", "adamax", "sgd"] = "adamw"
    layer_decay: float = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"
    plateau: Plateau | None = None
    max_grad_norm: float | None = 5.0
    class_weighted: bool = True
    sampling: Literal["cells", "subjects_sqrt", "subjects"] = "cells"
    epoch_cells: int = 0
    mixup: float = 0.0
    subject_robustness: float = 0.0
    ema_decay: float = 0.0
    head_first: float = 0.0
    batch_norm_frozen: bool = False
    batch_norm_cells: int = 0
    selected_by: Literal["val_balanced_accuracy_by_subject", "val_balanced_accuracy", "val_accuracy", "val_loss"] = (
        "val_balanced_accuracy_by_subject"
    )
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
