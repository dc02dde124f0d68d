"""The dataclasses of a recipe, which says how a classifier is built and trained, and `--override` of its fields.

`recipes.py` has Leukoscope's own recipes, `prior_recipes.py` those of published systems that are rebuilt here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from leukoscope import LeukoscopeError
from leukoscope.data.augmentation import Augmentation
from leukoscope.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD


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
            arXiv:1710.09412); 0 for none.
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
    ema_decay: float = 0.0
    head_first: float = 0.0
    batch_norm_frozen: bool = False
    batch_norm_cells: int = 0
    selected_by: Literal["val_balanced_accuracy_by_subject", "val_balanced_accuracy", "val_accuracy", "val_loss"] = (
        "val_balanced_accuracy_by_subject"
    )
    block_config: tuple[int, ...] = ()
    finetuned_by: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


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
        if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value):
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
        if value in choices:
            return value
        raise LeukoscopeError(f"--override {assignment}: choose one of {', '.join(map(str, choices))}")
    if origin is tuple and isinstance(value, list):
        return tuple(value)
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
