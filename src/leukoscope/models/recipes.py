"""Recipes: which network is built, how a cell is preprocessed, and how the network is trained.

First the dataclasses of a recipe, then Leukoscope's own recipes, then published systems that are rebuilt here; all are
entries of `RECIPES`. Any other model of timm has a recipe that follows from its `pretrained_cfg`. `--override` changes
single fields; a run's `args.yaml` records what was used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from operator import attrgetter
from typing import Any, Literal, get_args, get_origin, get_type_hints

from leukoscope import LeukoscopeError
from leukoscope.data.augmentation import Augmentation
from leukoscope.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD

Schedule = Literal["cosine", "constant", "linear", "cosine_with_restarts", "polynomial", "constant_with_warmup"]
"""How the learning rate goes: cosine and constant are Leukoscope's own, the others are transformers'."""


@dataclass(frozen=True)
class Hidden:
    """A hidden layer of a head: linear, then batch normalisation, activation and dropout as given."""

    width: int
    activation: Literal["relu", "leaky_relu"] = "relu"
    batch_norm: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class Head:
    """The layers between the last feature map and the logits, where they are not the architecture's own.

    Attributes:
        pooling: how the map becomes one number per channel; "avg_std" gives two, mean and standard deviation.
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
    """Regularisation of a head's hidden layers, added to the loss: sums over weights and biases, as in Keras."""

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
        block_config: layers of each dense block, for a DenseNet that ends after fewer blocks than its architecture;
            () keeps all.
        finetuned_by: the recipe by which `--init_from` fine-tunes its releases, where they are built otherwise.
        about: for a system of others, what it is, what its description leaves open and what was chosen there.
        image_size: side of the input in pixels.
        framing: "picture" shows the central part of the picture, "cell" every cut-out cell at one size; see
            `Preprocessing`.
        least_image_size: the smallest side that leaves something of a picture at the last feature map.
        learning_rate: peak rate of the pretrained layers.
        head_learning_rate: peak rate of the new head.
        drop_rate: dropout of the architecture's own head; a `head` has its own.
        frozen: modules that keep their pretrained weights and statistics; "backbone" is all but the head. Early
            filters carry over from photographs; leaving them alone regularises (few subjects, many cells) and saves the
            costliest part of a step. Ignored when starting from scratch.
        cpu_precision: "bf16" or "no": which is faster for this backbone on a CPU (GPUs always use bf16).
        head: layers of its own; None keeps the architecture's own head.
        penalty: added to the loss for the head's hidden layers.
        optimizer: AdamW decays weights apart from the gradient and spares biases and norms; the others add
            `weight_decay` times every parameter to its gradient (L2).
        schedule: how the learning rate goes: constant has no warm-up, all others but constant_with_warmup fall to zero.
        warmup_share: share of all steps over which the rate rises to its peak; `warmup_steps`, unless None, is their
            number.
        plateau: cuts a constant rate when validation stops improving; its last improvement is the epoch kept.
        max_grad_norm: gradients are clipped to this norm; None leaves them alone.
        class_weighted: weigh the loss by inverse class frequency; prior systems did not.
        sampling: an epoch shows every cell once ("cells"), or every class equally and in it every subject equally
            ("subjects"): few subjects with many cells each otherwise decide what a class looks like.
        epoch_cells: cells that an epoch shows, at most as many as there are; 0 shows that many.
        ema_decay: the weights kept are a running mean over the steps with this decay (Izmailov et al. 2018,
            arXiv:1803.05407); 0 keeps the last step's.
        batch_norm_frozen: every BatchNorm keeps its pretrained statistics.
        batch_norm_cells: training cells from which BatchNorm statistics are taken anew after each epoch; 0 keeps the
            running ones.
        selected_by: without a plateau, the validation metric whose best epoch is kept; one by subject gives way to its
            pooled form where subjects are not known or a class is missing.
        mean, std: what pixels in 0–1 are standardised with.
        interpolation: how pictures are resized: a filter of Pillow's by timm's name.
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
    cpu_precision: Literal["bf16", "no"] = "no"
    head: Head | None = None
    penalty: Penalty = field(default_factory=Penalty)
    optimizer: Literal["adamw", "adam", "adamax", "sgd"] = "adamw"
    schedule: Schedule = "cosine"
    warmup_steps: int | None = None
    plateau: Plateau | None = None
    max_grad_norm: float | None = 5.0
    class_weighted: bool = True
    sampling: Literal["cells", "subjects"] = "cells"
    epoch_cells: int = 0
    ema_decay: float = 0.0
    batch_norm_frozen: bool = False
    batch_norm_cells: int = 0
    selected_by: Literal["val_balanced_accuracy_by_subject", "val_balanced_accuracy", "val_accuracy", "val_loss"] = (
        "val_balanced_accuracy_by_subject"
    )
    block_config: tuple[int, ...] = ()
    finetuned_by: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"] = "bicubic"


_UNCHANGED = Augmentation(scale=0.0, brightness=0.0, contrast=0.0, stain=0.0, rotation=0.0, flips="none")

_DENSENET_EARLY = (
    "features.conv0",
    "features.norm0",
    "features.denseblock1",
    "features.transition1",
    "features.denseblock2",
    "features.transition2",
)

# Few subjects have most cells. Sampled by cell, they decide what a class looks like; sampled evenly, and few times,
# with all layers trained, the network generalises better to unseen subjects (results/ablation).
_FOR_OTHER_PATIENTS: dict[str, Any] = {
    "sampling": "subjects",
    "epoch_cells": 2000,
    "num_train_epochs": 2,
    "label_smoothing": 0.05,
}

_OWN = (
    # The TensorFlow twin (SAME padding, BN eps 1e-3): the plain `efficientnet_b3` takes the same tensors and
    # gives other logits. bf16 slows its depthwise convolutions on a CPU.
    Recipe(
        name="efficientnet_b3",
        architecture="tf_efficientnet_b3",
        base_model="timm/tf_efficientnet_b3.ns_jft_in1k",
        # Depthwise filters move slowly: at a DenseNet's rate it stays under-trained.
        learning_rate=5e-4,
        drop_rate=0.3,
        drop_path_rate=0.1,
        **_FOR_OTHER_PATIENTS,
    ),
    Recipe(
        name="densenet121",
        architecture="densenet121",
        base_model="timm/densenet121.ra_in1k",
        learning_rate=2e-4,
        **_FOR_OTHER_PATIENTS,
        cpu_precision="bf16",
    ),
    Recipe(
        name="densenet169",
        architecture="densenet169",
        base_model="timm/densenet169.tv_in1k",
        learning_rate=2e-4,
        **_FOR_OTHER_PATIENTS,
        cpu_precision="bf16",
    ),
    Recipe(
        name="densenet201",
        architecture="densenet201",
        base_model="timm/densenet201.tv_in1k",
        num_train_epochs=3,
        frozen=_DENSENET_EARLY,
        cpu_precision="bf16",
    ),
    # Early and middle feature maps hold a cell's texture, and with every cell at one size there is little else to
    # learn from. Only the head is trained, on features that are computed once.
    Recipe(
        name="densenet169_levels",
        architecture="densenet169",
        base_model="timm/densenet169.tv_in1k",
        image_size=320,
        framing="cell",
        num_train_epochs=10,
        drop_rate=0.0,
        head=Head(pooling="avg_std", batch_norm=True, levels=(1, 2)),
        frozen=("backbone",),
        augmentation=_UNCHANGED,
        sampling="subjects",
    ),
    # The same idea as a network that timm builds and plain `pipeline()` opens: whole pictures, one feature map.
    Recipe(
        name="densenet169_block2",
        architecture="densenet169",
        base_model="timm/densenet169.tv_in1k",
        image_size=320,
        num_train_epochs=10,
        drop_rate=0.0,
        head=Head(batch_norm=True, levels=(2,)),
        frozen=("backbone",),
        augmentation=_UNCHANGED,
        sampling="subjects",
        finetuned_by="densenet169_block2_finetuned",
    ),
    # Fine-tunes such a release (`--init_from`): its last BatchNorm must keep its statistics, see
    # `rewrite_for_timm`.
    Recipe(
        name="densenet169_block2_finetuned",
        architecture="densenet169",
        base_model="timm/densenet169.tv_in1k",
        image_size=320,
        learning_rate=1e-4,
        drop_rate=0.0,
        batch_norm_frozen=True,
        block_config=(6, 12),
        **_FOR_OTHER_PATIENTS,
        cpu_precision="bf16",
    ),
)


# Five published systems: what their authors describe and, where they say nothing, what was chosen here. Each entry's
# `about` names the system and separates the two. They are rebuilt as described, without the mistakes of their code, so
# that one protocol can measure them beside each other.

_MIRRORED = replace(_UNCHANGED, flips="horizontal")
# Keras's BatchNormalization(momentum=0.99, epsilon=1e-3): its momentum is the share of the old statistics.
_keras_head = partial(Head, batch_norm=True, eps=1e-3, momentum=0.01)
# Keras's EfficientNet drops whole residual branches, up to this share in the last block, unless told otherwise.
_KERAS_DROP_CONNECT = 0.2

# None of them has these, as far as described: Leukoscope's defaults are switched off.
_prior = partial(
    Recipe,
    image_size=224,
    weight_decay=0.0,
    label_smoothing=0.0,
    drop_rate=0.0,
    augmentation=_UNCHANGED,
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
    augmentation=replace(_UNCHANGED, brightness=0.1, contrast=0.1, rotation=20.0, flips="both"),
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
    augmentation=replace(_UNCHANGED, rotation=20.0, flips="both"),
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
        least_image_size=63,
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
        least_image_size=75,
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

PRIOR_SYSTEMS = (_A, _B, *_C, *_D, _E)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*_OWN, *PRIOR_SYSTEMS)}


TIMM = "timm/"
"""What the names of timm's models begin with on the Hub, and those of their recipes."""


def get_recipe(name: str) -> Recipe:
    """The recipe of that name: an entry of `RECIPES`, or for "timm/…" the one that `timm_recipe` gives.

    Raises:
        LeukoscopeError: neither.
    """
    if name.startswith(TIMM):
        return timm_recipe(name, "--recipe")
    if name not in RECIPES:
        raise LeukoscopeError(
            f"--recipe {name}: unknown; choose one of {', '.join(RECIPES)}, or any model of timm with "
            "--model_name_or_path"
        )
    return RECIPES[name]


def timm_recipe(name: str, flag: str) -> Recipe:
    """A recipe for any model of timm, from its `pretrained_cfg`: weights, input size, standardisation, interpolation.

    A network that was trained without classes (DINOv2, for one) is frozen, and a linear head is trained on its
    features; any other is fine-tuned as a whole, at a lower rate where its input size is fixed, as a transformer's is.

    Args:
        name: a model of timm, with or without "timm/" and a tag: `timm/resnet50.a1_in1k`, `resnet50`.
        flag: the flag that named it, for messages.

    Raises:
        LeukoscopeError: timm has no such model, or no such weights of it.
    """
    import timm
    from timm.models import PretrainedCfg, get_pretrained_cfg

    model = name.removeprefix(TIMM)
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3) or ["resnet50", "convnext_tiny"]
        raise LeukoscopeError(
            f"{flag} {name}: timm {timm.__version__} has no such model; give one that it has, like {' or '.join(near)}"
        )
    try:
        cfg = get_pretrained_cfg(model) or PretrainedCfg()
    except RuntimeError:
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise LeukoscopeError(f"{flag} {name}: timm has no such weights; of {architecture} it has {known}") from None
    base: dict[str, Any] = {
        "name": TIMM + (f"{architecture}.{cfg.tag}" if cfg.tag else architecture),
        "architecture": architecture,
        "base_model": cfg.hf_hub_id or "",
        "image_size": cfg.input_size[-1],
        "mean": tuple(cfg.mean),
        "std": tuple(cfg.std),
        "interpolation": cfg.interpolation,
    }
    if cfg.num_classes == 0:
        frozen: dict[str, Any] = {"frozen": ("backbone",), "augmentation": _UNCHANGED, "drop_rate": 0.0}
        return Recipe(**base, **frozen, num_train_epochs=10, sampling="subjects")
    return Recipe(**base, **_FOR_OTHER_PATIENTS, learning_rate=5e-5 if cfg.fixed_input_size else 2e-4)


# Fields that cannot be overridden: they name a recipe.
_FIXED = ("name", "about", "finetuned_by")


def with_overrides(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """Apply `key=value` assignments to a recipe, in order.

    Args:
        assignments: keys as in `Recipe`, those of its parts after a dot; values in YAML (0.4, true, null, [a, b]).

    Raises:
        LeukoscopeError: no such key, or a value that does not fit it.
    """
    import yaml

    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise LeukoscopeError(f"--override {assignment}: write KEY=VALUE, e.g. augmentation.scale=0.4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise LeukoscopeError(
                f"--override {assignment}: {text!r} is no value; give e.g. 0.4, true or null"
            ) from None
        # YAML reads 1e-4, the usual way to write a learning rate, as text.
        if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", value):
            with suppress(ValueError):
                value = float(value)
        recipe = _replaced(recipe, key.strip().split("."), value, assignment)
    return recipe


def _replaced(part: Any, path: list[str], value: Any, assignment: str) -> Any:
    """A copy of a recipe, or of a part of it, with the value at the end of the path replaced."""
    kinds = get_type_hints(type(part))
    known = [field.name for field in fields(part) if field.name not in _FIXED]
    name, rest = path[0], path[1:]
    if name not in known:
        raise LeukoscopeError(f"--override {assignment}: {name} is unknown; choose one of {', '.join(known)}")
    now = getattr(part, name)
    if rest and now is None:
        # A part that a recipe does not have begins as its defaults.
        parts: list[Any] = [choice for choice in get_args(kinds[name]) if is_dataclass(choice)]
        now = parts[0]() if parts else None
    if rest:
        if not is_dataclass(now):
            raise LeukoscopeError(f"--override {assignment}: {name} is {now!r} and has no parts; assign it as a whole")
        return replace(part, **{name: _replaced(now, rest, value, assignment)})
    if is_dataclass(now):
        raise LeukoscopeError(
            f"--override {assignment}: {name} has parts; assign one, {name}.KEY=VALUE, of "
            f"{', '.join(field.name for field in fields(now))}"
        )
    return replace(part, **{name: _fitted(value, kinds[name], assignment)})


def _fitted(value: Any, kind: Any, assignment: str) -> Any:
    """The value as the field's type has it."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin is Literal:
        # YAML reads a plain `no` as false.
        value = "no" if value is False else value
        if value in choices:
            return value
        raise LeukoscopeError(f"--override {assignment}: choose one of {', '.join(map(str, choices))}")
    if origin is tuple and isinstance(value, list):
        of_each = choices[:1] * len(value) if Ellipsis in choices else choices
        if len(value) != len(of_each):
            raise LeukoscopeError(f"--override {assignment}: {value} does not fit; give {len(of_each)} values")
        return tuple(_fitted(one, plain, assignment) for one, plain in zip(value, of_each, strict=True))
    if is_dataclass(kind):
        return value  # an element of head.hidden, which building the network checks
    if value is None and type(None) in choices:
        return None
    plain = next((choice for choice in choices if choice is not type(None)), kind) if origin is not tuple else kind
    if plain is float and type(value) in (int, float):
        return float(value)
    if type(value) is plain:
        return value
    kinds = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
    needed = kinds.get(plain, "a list, e.g. [0.5, 0.5, 0.5]")
    raise LeukoscopeError(f"--override {assignment}: {value!r} does not fit; give {needed}")


_ABOVE_0 = math.nextafter(0, 1)
# The least and the most that these numbers of a recipe may be.
_RANGES: dict[tuple[float, float], tuple[str, ...]] = {
    (1, math.inf): ("num_train_epochs", "train_batch_size", "plateau.patience", "plateau.stop_patience"),
    (_ABOVE_0, math.inf): ("learning_rate", "head_learning_rate", "max_grad_norm", "std", "head.eps"),
    (0, math.inf): (
        *("weight_decay", "warmup_steps", "epoch_cells", "batch_norm_cells", "augmentation.scale"),
        *("penalty.weight_l2", "penalty.weight_l1", "penalty.bias_l2", "penalty.bias_l1"),
    ),
    (0, 1): (
        *("warmup_share", "label_smoothing", "drop_rate", "drop_path_rate", "ema_decay", "head.momentum"),
        *("augmentation.brightness", "augmentation.contrast", "augmentation.stain", "plateau.until_train_accuracy"),
    ),
    (_ABOVE_0, 1): ("plateau.factor",),
    (0, 180): ("augmentation.rotation",),
}


def check_ranges(recipe: Recipe, flags: Mapping[str, str]) -> None:
    """Check that every number of a recipe is one that a network can be trained with.

    Args:
        flags: field → the flag that set it; any other was set by --override.

    Raises:
        LeukoscopeError: names the flag, its value and what to give instead.
    """
    for (least, most), key in ((limits, key) for limits, keys in _RANGES.items() for key in keys):
        part = key.rpartition(".")[0]
        value = None if part and getattr(recipe, part) is None else attrgetter(key)(recipe)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(least <= number <= most for number in numbers):
            from_least = "a number above 0" if least == _ABOVE_0 else f"{least} or more"
            needed = from_least if most == math.inf else f"{from_least}, at most {most}"
            given = f"--{flags[key]} {value}" if key in flags else f"--override {key}={value}"
            raise LeukoscopeError(f"{given}: give {needed}")
