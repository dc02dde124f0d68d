"""Recipes of five published systems: what their authors describe and, where they say nothing, what was chosen here.

Each entry's `about` names the system and separates the two. They are rebuilt as described, without the mistakes of
their code, so that one protocol can measure them beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from leukoscope.models.metrics import FromOne, FromZero, NotNegative, Positive, Share
from leukoscope.models.recipes import RECIPES, UNCHANGED, Recipe


@dataclass(frozen=True)
class Hidden:
    """A hidden layer of a head: linear, then batch normalisation, activation and dropout as given."""

    width: int
    activation: Literal["relu", "leaky_relu"] = "relu"
    batch_norm: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class Head:
    """The layers between the last feature map and the logits.

    Attributes:
        pooling: how the map becomes one number per channel.
        batch_norm: normalise the pooled features; eps and momentum (PyTorch's: the share of the new batch) follow.
        hidden: layers before the last linear one.
    """

    pooling: Literal["avg", "max"] = "avg"
    batch_norm: bool = False
    eps: Positive = 1e-5
    momentum: Share = 0.1
    hidden: tuple[Hidden, ...] = ()


@dataclass(frozen=True)
class Penalty:
    """Regularisation of a head's hidden layers, added to the loss: sums over weights and biases, as in Keras."""

    weight_l2: NotNegative = 0.0
    weight_l1: NotNegative = 0.0
    bias_l2: NotNegative = 0.0
    bias_l1: NotNegative = 0.0


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
    factor: Share = 0.5
    patience: FromOne = 1
    stop_patience: FromOne = 3
    until_train_accuracy: Share | None = None


@dataclass(frozen=True)
class PriorRecipe(Recipe):
    """How a published system is rebuilt and trained.

    Attributes:
        about: what it is, what its description leaves open and what was chosen there.
        head: layers of its own; None keeps the architecture's own head.
        penalty: added to the loss for the head's hidden layers.
        optimizer: AdamW decays weights apart from the gradient and spares biases and norms; the others add
            `weight_decay` times every parameter to its gradient (L2).
        plateau: cuts a constant rate when validation stops improving; its last improvement is the epoch kept.
        batch_norm_cells: training cells from which BatchNorm statistics are taken anew after each epoch; 0 keeps the
            running ones.
    """

    about: str = ""
    head: Head | None = None
    penalty: Penalty = field(default_factory=Penalty)
    optimizer: Literal["adamw", "adam", "adamax", "sgd"] = "adamw"
    plateau: Plateau | None = None
    batch_norm_cells: FromZero = 0


_MIRRORED = replace(UNCHANGED, flips="horizontal")
# Keras's BatchNormalization(momentum=0.99, epsilon=1e-3): its momentum is the share of the old statistics.
_keras_head = partial(Head, batch_norm=True, eps=1e-3, momentum=0.01)
# Keras's EfficientNet drops whole residual branches, up to this share in the last block, unless told otherwise.
_KERAS_DROP_CONNECT = 0.2

# None of them has these, as far as described: Leukoscope's defaults are switched off.
_prior = partial(
    PriorRecipe,
    image_size=224,
    weight_decay=0.0,
    label_smoothing=0.0,
    drop_rate=0.0,
    augmentation=UNCHANGED,
    schedule="constant",
    max_grad_norm=None,
    class_weighted=False,
    selected_by="val_accuracy",
)

_A = _prior(
    name="prior_a_efficientnet_b3",
    # The TensorFlow twin is Keras's network; these weights are those trained with AutoAugment.
    architecture="tf_efficientnet_b3",
    base_model="timm/tf_efficientnet_b3.aa_in1k",
    about=(
        "System A (aryannverse/CNN-Leukemia-Detection-EfficientNetB3, Keras): EfficientNet-B3, global max pooling, "
        "batch normalisation, 256 ReLU units with L1 and L2 on weights and biases, dropout .45; all layers learn with "
        "Adamax; the rate is halved when validation accuracy stalls. Left open: penalties, rate, patience, epochs, "
        "batch, size, augmentation. Chosen: L2 .016 on weights and L1 .006 on biases, rate 1e-3, 40 epochs of batches "
        "of 40 at 224 px, horizontal flips, as in the widely copied Keras template it follows (whose further L1 on the "
        "layer's output the description does not name); patience 1 and 3 cuts, as in the author's system E."
    ),
    num_train_epochs=40,
    train_batch_size=40,
    learning_rate=1e-3,
    head_learning_rate=1e-3,
    drop_path_rate=_KERAS_DROP_CONNECT,
    augmentation=_MIRRORED,
    head=_keras_head(pooling="max", hidden=(Hidden(256, dropout=0.45),)),
    penalty=Penalty(weight_l2=0.016, bias_l1=0.006),
    optimizer="adamax",
    plateau=Plateau(monitor="val_accuracy", factor=0.5, patience=1, stop_patience=3),
)

_B = _prior(
    name="prior_b_densenet201",
    architecture="densenet201",
    base_model="timm/densenet201.tv_in1k",
    about=(
        "System B (sanyuktaadap/leukemia-classification, PyTorch): DenseNet-201, average pooling, batch normalisation, "
        "64 leaky ReLU and 64 ReLU units, each batch-normalised, dropout .2 between them; all layers learn with Adam "
        "1e-4 and L2 1e-5 for 40 epochs of batches of 16; pixels in 0–1; rotation to 20°, both flips, brightness and "
        "contrast .1. Left open: which epoch is kept. Chosen: the best validation accuracy. Dropout is off in "
        "evaluation, where the author's code leaves it on."
    ),
    num_train_epochs=40,
    train_batch_size=16,
    learning_rate=1e-4,
    head_learning_rate=1e-4,
    weight_decay=1e-5,
    augmentation=replace(UNCHANGED, brightness=0.1, contrast=0.1, rotation=20.0, flips="both"),
    cpu_precision="bf16",
    head=Head(batch_norm=True, hidden=(Hidden(64, "leaky_relu", True, dropout=0.2), Hidden(64, "relu", True))),
    optimizer="adam",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)

_ABOUT_C = (
    "System C (a comparison of four networks, TensorFlow): ResNet-50, EfficientNet-B3, AlexNet and VGG16 with "
    "augmentation and dropout. Left open: everything else. Chosen: each network's own head, all layers learn with Adam "
    "1e-4 for 20 epochs of batches of 32 at 224 px, rotation to 20° and both flips; here "
)
_c = partial(
    _prior,
    num_train_epochs=20,
    learning_rate=1e-4,
    head_learning_rate=1e-4,
    augmentation=replace(UNCHANGED, rotation=20.0, flips="both"),
    optimizer="adam",
)

_C = (
    _c(
        name="prior_c_resnet50",
        architecture="resnet50",
        base_model="timm/resnet50.tv_in1k",
        about=_ABOUT_C
        + "dropout .5 before the last layer; BatchNorm statistics are taken anew after each epoch, as in "
        "system D's ResNet.",
        drop_rate=0.5,
        batch_norm_cells=1024,
        cpu_precision="bf16",
    ),
    _c(
        name="prior_c_efficientnet_b3",
        architecture="tf_efficientnet_b3",
        base_model="timm/tf_efficientnet_b3.aa_in1k",
        about=_ABOUT_C + "dropout .3 before the last layer, the network's own.",
        drop_rate=0.3,
        drop_path_rate=_KERAS_DROP_CONNECT,
    ),
    _c(
        name="prior_c_alexnet",
        architecture="alexnet",
        base_model="",
        about=_ABOUT_C + "torchvision's AlexNet with dropout .5, from random weights: Keras has none pretrained.",
        drop_rate=0.5,
    ),
    _c(
        name="prior_c_vgg16",
        architecture="vgg16_bn",
        base_model="timm/vgg16_bn.tv_in1k",
        about=_ABOUT_C
        + "its two layers of 4096 kept with dropout .5, and BatchNorm after each convolution: without it, one "
        "epoch from random weights predicted ALL for every cell.",
        drop_rate=0.5,
        cpu_precision="bf16",
    ),
)

_ABOUT_D = (
    "System D (a comparison of three networks): a baseline CNN of two or three convolutions of 8–16 small filters and "
    "one or two dense layers, trained with SGD; an Inception; a ResNet. Left open: everything else. Chosen: 20 epochs "
    "of batches of 32, SGD with momentum at 1e-2, no augmentation; here "
)
_d = partial(_prior, num_train_epochs=20, learning_rate=1e-2, head_learning_rate=1e-2, optimizer="sgd")

_D = (
    _d(
        name="prior_d_baseline_cnn",
        architecture="baseline_cnn",
        base_model="",
        about=_ABOUT_D
        + "3×3 filters (8, 16, 16), each halved by max pooling, pooled to 7×7, 64 ReLU units; 224 px, random weights.",
    ),
    _d(
        name="prior_d_inception",
        architecture="inception_v3",
        base_model="timm/inception_v3.tv_in1k",
        about=_ABOUT_D + "Inception-v3 at 299 px without its auxiliary head, from ImageNet weights.",
        image_size=299,
        cpu_precision="bf16",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    _d(
        name="prior_d_resnet",
        architecture="resnet50",
        base_model="timm/resnet50.tv_in1k",
        about=_ABOUT_D
        + "ResNet-50 at 224 px, from ImageNet weights. BatchNorm statistics are taken anew after each epoch: with the "
        "running ones, trained from random weights, it called every validation cell ALL after each of three epochs.",
        batch_norm_cells=1024,
        cpu_precision="bf16",
    ),
)

_E = _prior(
    name="prior_e_densenet121_frozen",
    architecture="densenet121",
    base_model="timm/densenet121.tv_in1k",
    about=(
        "System E (aryannverse/Leukemia-Detection-Using-DenseNet121-CNN, Keras): frozen DenseNet121, average pooling, "
        "batch normalisation, 256 ReLU units with L2 1e-4, dropout .4; the head learns with Adam 1e-4 in at most 40 "
        "epochs of batches of 40 at 224 px, horizontal flips; training accuracy is watched below .9, validation loss "
        "above; the rate is halved after 1 epoch without improvement, training stops after 3 cuts without. Left open: "
        "nothing that matters. Pixels are scaled in use as in training, which the author's application is not."
    ),
    num_train_epochs=40,
    train_batch_size=40,
    learning_rate=1e-4,
    head_learning_rate=1e-4,
    augmentation=_MIRRORED,
    frozen=("backbone",),
    cpu_precision="bf16",
    head=_keras_head(hidden=(Hidden(256, dropout=0.4),)),
    penalty=Penalty(weight_l2=1e-4),
    optimizer="adam",
    plateau=Plateau(monitor="val_loss", factor=0.5, patience=1, stop_patience=3, until_train_accuracy=0.9),
    selected_by="val_loss",
)

PRIOR_RECIPES: dict[str, PriorRecipe] = {recipe.name: recipe for recipe in (_A, _B, *_C, *_D, _E)}


def register() -> None:
    """Let `--recipe` of train.py name them, in this process."""
    RECIPES.update(PRIOR_RECIPES)
