"""Recipes: which network is built, how a cell is preprocessed, and how the network is trained.

`RECIPES` holds Leukoscope's own. Any other model of timm has a recipe that follows from its `pretrained_cfg`.
`--override` changes single fields; a run's `args.yaml` records what was used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from leukoscope import ConfigError
from leukoscope.data.augmentation import Augmentation
from leukoscope.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, LEAST_STD, MAX_INPUT
from leukoscope.models.metrics import FromOne, FromZero, NotNegative, Positive, Share
from leukoscope.plain_yaml import read_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Schedule = Literal["cosine", "constant", "linear", "cosine_with_restarts", "polynomial", "constant_with_warmup"]
"""Names of `transformers.get_scheduler`."""

# timm's networks halve an image five times; releases are read up to `MAX_INPUT`.
Side = Annotated[int, Field(ge=32, le=MAX_INPUT)]
Deviation = Annotated[float, Field(ge=LEAST_STD, le=1)]


@dataclass(frozen=True)
class Recipe:
    """How one kind of classifier is built and trained. Values are checked where a user can set them (`with_values`).

    Attributes:
        architecture: a timm model.
        base_model: Hub repository of its pretrained weights (safetensors); "" starts from random ones.
        block_config: layers of each dense block, for a DenseNet with fewer blocks than its architecture; () keeps all.
        pooled_norm: train a DenseNet with BatchNorm after pooling instead of before; see `models.build`.
        learning_rate, head_learning_rate: peak rates of the pretrained layers and of the new head.
        frozen: modules that keep their pretrained weights and statistics; "backbone" is all but the head. Ignored when
            starting from scratch.
        cpu_precision: "bf16" or "no": which is faster for this backbone on a CPU that has units for bf16. Other CPUs
            compute in float32, GPUs always in bf16.
        warmup_share: share of all steps over which the rate rises to its peak; `warmup_steps`, unless None, is their
            number.
        class_weighted: weigh the loss by inverse class frequency.
        sampling: an epoch shows every cell once ("cells"), or every class equally and in it every subject equally
            ("subjects"): otherwise few subjects with many cells decide what a class looks like.
        epoch_cells: cells that an epoch shows, at most as many as there are; 0 shows that many.
        consistency: weight of the squared difference between the logits of a cell as it is augmented and as it is,
            added to the loss of the cell as it is (stability training, Zheng et al. 2016, arXiv:1604.04326); 0 trains
            on augmented cells alone.
        ema_decay: of the moving average of the weights that is kept (Izmailov et al. 2018, arXiv:1803.05407); 0 keeps
            the last step's weights.
        selected_by: the validation metric whose best epoch is kept; one by subject gives way to its pooled form where
            subjects are unknown or a class is missing.
        mean, std: what pixels in 0–1 are standardised with.
    """

    name: str
    architecture: str
    base_model: str
    image_size: Side = 160
    num_train_epochs: FromOne = 2
    train_batch_size: FromOne = 32
    learning_rate: Positive = 3e-4
    head_learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.05
    warmup_share: Share = 0.1
    label_smoothing: Share = 0.1
    drop_rate: Share = 0.2
    drop_path_rate: Share = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    frozen: tuple[str, ...] = ()
    cpu_precision: Literal["bf16", "no"] = "no"
    schedule: Schedule = "cosine"
    warmup_steps: FromZero | None = None
    max_grad_norm: Positive | None = 5.0
    class_weighted: bool = True
    sampling: Literal["cells", "subjects"] = "cells"
    epoch_cells: FromZero = 0
    consistency: NotNegative = 0.0
    ema_decay: Share = 0.0
    selected_by: Literal["val_balanced_accuracy_by_subject", "val_balanced_accuracy", "val_accuracy", "val_loss"] = (
        "val_balanced_accuracy_by_subject"
    )
    early_stopping_patience: FromOne = 8
    block_config: tuple[FromOne, ...] = ()
    pooled_norm: bool = False
    mean: tuple[Share, Share, Share] = IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD
    interpolation: Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"] = "bicubic"


UNCHANGED = Augmentation(scale=0.0, brightness=0.0, contrast=0.0, stain=0.0, rotation=0.0, flips="none")

# Few subjects have most cells. Sampled by cell, they decide what a class looks like; sampled evenly, with all layers
# trained, the network generalises better to unseen subjects (results/ablation).
_FOR_UNSEEN_SUBJECTS: dict[str, Any] = {"sampling": "subjects", "epoch_cells": 2000, "label_smoothing": 0.05}
# On unseen subjects 224 px rank cells better than 112 px, and better up to 24,000 draws (results/learning_curves).
_LONG: dict[str, Any] = {"image_size": 224, "num_train_epochs": 12, **_FOR_UNSEEN_SUBJECTS}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # The TensorFlow twin (SAME padding, BN eps 1e-3): the plain `efficientnet_b3` takes the same tensors and
        # gives other logits.
        Recipe(
            name="efficientnet_b3",
            architecture="tf_efficientnet_b3",
            base_model="timm/tf_efficientnet_b3.ns_jft_in1k",
            # Depthwise filters move slowly: at a DenseNet's rate it stays under-trained.
            learning_rate=5e-4,
            drop_rate=0.3,
            drop_path_rate=0.1,
            # As its release: on the cells of further subjects 24,000 draws were no better.
            **{**_LONG, "num_train_epochs": 8},
            cpu_precision="bf16",
        ),
        Recipe(
            name="densenet121",
            architecture="densenet121",
            base_model="timm/densenet121.ra_in1k",
            learning_rate=2e-4,
            **_LONG,
            cpu_precision="bf16",
        ),
        Recipe(
            name="densenet201",
            architecture="densenet201",
            base_model="timm/densenet201.tv_in1k",
            num_train_epochs=3,
            frozen=(
                *("features.conv0", "features.norm0", "features.denseblock1", "features.transition1"),
                *("features.denseblock2", "features.transition2"),
            ),
            cpu_precision="bf16",
        ),
        # Early and middle feature maps hold a cell's texture. Only the head is trained, on features computed once, of a
        # cell as it is and of three copies, turned, half of them slightly changed, too. Classes are learnt from the
        # cell as it is; its copies only have to get the same logits. Learnt from the copies, too, classes rank worse.
        Recipe(
            name="densenet169_block2",
            architecture="densenet169",
            base_model="timm/densenet169.tv_in1k",
            image_size=320,
            num_train_epochs=25,
            head_learning_rate=3e-3,
            drop_rate=0.0,
            block_config=(6, 12),
            pooled_norm=True,
            frozen=("backbone",),
            augmentation=replace(UNCHANGED, flips="dihedral", small_changes=0.5, versions=4),
            consistency=0.4,
            sampling="subjects",
        ),
    )
}


TIMM = "timm/"
"""What the names of timm's models begin with on the Hub, and those of their recipes."""


def get_recipe(name: str) -> Recipe:
    """The recipe of that name: an entry of `RECIPES`, or for "timm/…" that of `timm_recipe`; an error for neither."""
    if name.startswith(TIMM):
        return timm_recipe(name, "--recipe")
    if name not in RECIPES:
        raise ConfigError(
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
        ConfigError: timm has no such model, or no such weights of it.
    """
    import timm
    from timm.models import PretrainedCfg, get_pretrained_cfg

    model = name.removeprefix(TIMM)
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3) or ["resnet50", "convnext_tiny"]
        raise ConfigError(
            f"{flag} {name}: timm {timm.__version__} has no such model; give one that it has, like {' or '.join(near)}"
        )
    try:
        cfg = get_pretrained_cfg(model) or PretrainedCfg()
    except RuntimeError:
        names = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise ConfigError(f"{flag} {name}: timm has no such weights; of {architecture} it has {names}") from None
    tag = f".{cfg.tag}" if cfg.tag else ""
    base: dict[str, Any] = {
        "name": f"{TIMM}{architecture}{tag}",
        "architecture": architecture,
        "base_model": cfg.hf_hub_id or "",
        "image_size": cfg.input_size[-1],
        "mean": tuple(cfg.mean),
        "std": tuple(cfg.std),
        "interpolation": cfg.interpolation,
    }
    if cfg.num_classes == 0:
        frozen: dict[str, Any] = {"frozen": ("backbone",), "augmentation": UNCHANGED, "drop_rate": 0.0}
        return Recipe(**base, **frozen, num_train_epochs=10, sampling="subjects")
    return Recipe(**base, **_FOR_UNSEEN_SUBJECTS, learning_rate=5e-5 if cfg.fixed_input_size else 2e-4)


_Recipe = TypeVar("_Recipe", bound=Recipe)
_Part = TypeVar("_Part", bound="DataclassInstance")


def with_overrides(recipe: _Recipe, assignments: Iterable[str]) -> _Recipe:
    """Apply `key=value` assignments to a recipe, in order; an error for no such key or a value that does not fit.

    Keys are those of `Recipe`, and of its parts after a dot; values are YAML (0.4, true, null, [a, b]).
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--override {assignment}: write KEY=VALUE, e.g. augmentation.scale=0.4")
        part: Any = asdict(recipe)
        for name in key.strip().split("."):
            keys = []
            if isinstance(part, dict):
                keys = [key for key in part if key != "name"]
            if name not in keys:
                choices = f"choose one of {', '.join(keys)}" if keys else f"{part!r} has no parts"
                raise ConfigError(f"--override {assignment}: {name} is unknown; {choices}")
            part = part[name]
        try:
            setting = read_yaml(text)
        except yaml.YAMLError:
            raise ConfigError(f"--override {assignment}: {text!r} is not YAML; give e.g. 0.4, true or null") from None
        recipe = with_values(recipe, {key.strip(): setting}, {key.strip(): f"--override {assignment}"})
    return recipe


@cache
def checker(kind: type[_Part]) -> TypeAdapter[_Part]:
    """Checker of the values of a dataclass by its types and their ranges."""
    return TypeAdapter(kind)


def with_values(recipe: _Part, values: Mapping[str, Any], given_as: Mapping[str, str]) -> _Part:
    """A recipe, or flags, with other values (a part's field after a dot), all checked by their types' ranges.

    An error names the value as `given_as` says it was given, by the same names, and what to give instead.
    """
    content = asdict(recipe)
    for key, value in values.items():
        *above, name = key.split(".")
        part = content
        for outer in above:
            part = part[outer]
        part[name] = value
    try:
        return checker(type(recipe)).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        flags = [words for key, words in given_as.items() if f"{place}.".startswith(f"{key}.")]
        flags.append(f"{place}={first['input']}")
        # Of a tuple, pydantic calls a value that is not there a required field.
        reason = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "missing":
            reason = "give more values"
        raise ConfigError(f"{flags[0]}: {reason}") from None
