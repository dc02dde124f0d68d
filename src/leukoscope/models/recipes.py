"""Recipes: everything that makes a kind of model, as data.

One entry of `RECIPES` says which network is built, how a cell is shown to it and how it learns. The command line can
override single values; a run's `args.yaml` records what was used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from leukoscope import LeukoscopeError
from leukoscope.cells.transforms import Augmentation


@dataclass(frozen=True)
class Recipe:
    """How one kind of classifier is built and trained.

    Attributes:
        architecture: name of the timm model; its own global-average-pooled linear head is kept.
        base_model: Hub repository of its ImageNet weights (safetensors).
        image_size: side of the input in pixels.
        learning_rate: peak rate of the pretrained layers (AdamW).
        head_learning_rate: peak rate of the new linear head.
        frozen: modules that keep their pretrained weights and statistics. Early filters carry over from photographs;
            leaving them alone regularises (few patients, many cells) and saves the costliest part of a step.
            Ignored when starting from scratch.
        cpu_precision: "bf16" or "no": which is faster for this backbone on a CPU (GPUs always use bf16).
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
