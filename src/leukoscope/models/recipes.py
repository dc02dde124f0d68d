"""Recipes: everything that makes a kind of model, as data.

One entry of `RECIPES` says which network is built, how a cell is shown to it and how it learns. The command line can
override single values; a run's `args.yaml` records what was used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from leukoscope import LeukoscopeError
from leukoscope.cells.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation


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
        pooling: how the map becomes one number a channel.
        batch_norm: normalise the pooled features; eps and momentum (PyTorch's: the share of the new batch) follow.
        hidden: layers before the last linear one.
    """

    pooling: Literal["avg", "max"] = "avg"
    batch_norm: bool = False
    eps: float = 1e-5
    momentum: float = 0.1
    hidden: tuple[Hidden, ...] = ()


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
    """

    monitor: Literal["val_accuracy", "val_balanced_accuracy", "val_loss"] = "val_accuracy"
    factor: float = 0.5
    patience: int = 1
    stop_patience: int = 3


@dataclass(frozen=True)
class Recipe:
    """How one kind of classifier is built and trained.

    Attributes:
        architecture: a timm model, or a network of `models/networks.py` (AlexNet, the baseline CNN).
        base_model: Hub repository of its ImageNet weights (safetensors); "" where there are none.
        image_size: side of the input in pixels.
        learning_rate: peak rate of the pretrained layers.
        head_learning_rate: peak rate of the new head.
        frozen: modules that keep their pretrained weights and statistics. Early filters carry over from photographs;
            leaving them alone regularises (few patients, many cells) and saves the costliest part of a step.
            Ignored when starting from scratch.
        cpu_precision: "bf16" or "no": which is faster for this backbone on a CPU (GPUs always use bf16).
        head: layers of its own; None keeps the architecture's global-average-pooled linear head.
        penalty: added to the loss for the head's hidden layers.
        optimizer: AdamW decays weights apart from the gradient; Adam and SGD add `weight_decay` to it (L2).
        plateau: watches validation instead of the cosine schedule with warm-up; None for the latter.
        class_weighted: weigh the loss by inverse class frequency; prior systems did not.
        selected_by: the validation figure whose best epoch is kept.
        mean, std: what pixels in 0–1 are standardised with.
    """

    name: str
    architecture: str
    base_model: str
    image_size: int = 160
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
    plateau: Plateau | None = None
    class_weighted: bool = True
    selected_by: Literal["val_balanced_accuracy", "val_accuracy", "val_loss"] = "val_balanced_accuracy"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


_DENSENET_EARLY = (
    "features.conv0",
    "features.norm0",
    "features.denseblock1",
    "features.transition1",
    "features.denseblock2",
    "features.transition2",
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # The TensorFlow twin (SAME padding, BN eps 1e-3): the plain `efficientnet_b3` takes the same tensors and
        # gives other answers. bf16 slows its depthwise convolutions on a CPU.
        Recipe(
            name="efficientnet_b3",
            architecture="tf_efficientnet_b3",
            base_model="timm/tf_efficientnet_b3.ns_jft_in1k",
            # Depthwise filters move slowly: at a DenseNet's rate and two epochs it stays under-trained.
            num_train_epochs=3,
            learning_rate=1e-3,
            drop_rate=0.3,
            drop_path_rate=0.1,
            frozen=("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"),
        ),
        Recipe(
            name="densenet121",
            architecture="densenet121",
            base_model="timm/densenet121.ra_in1k",
            frozen=_DENSENET_EARLY,
            cpu_precision="bf16",
        ),
        Recipe(
            name="densenet169",
            architecture="densenet169",
            base_model="timm/densenet169.tv_in1k",
            frozen=_DENSENET_EARLY,
            cpu_precision="bf16",
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; raises `LeukoscopeError` naming the known ones."""
    if name not in RECIPES:
        raise LeukoscopeError(f"--recipe {name}: unknown; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
