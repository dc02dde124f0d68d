"""The recipes: one entry of `RECIPES` says which network is built, how a cell is preprocessed and how it is trained.

The command line can override single fields; a run's `args.yaml` records what was used.
"""

from __future__ import annotations

from typing import Any

from leukoscope import LeukoscopeError
from leukoscope.data.augmentation import Augmentation
from leukoscope.models.prior_recipes import PRIOR_SYSTEMS
from leukoscope.models.recipe import Head, Hidden, Penalty, Plateau, Recipe

__all__ = ["RECIPES", "Head", "Hidden", "Penalty", "Plateau", "Recipe", "get_recipe"]

_DENSENET_EARLY = (
    "features.conv0",
    "features.norm0",
    "features.denseblock1",
    "features.transition1",
    "features.denseblock2",
    "features.transition2",
)

# Few patients have most cells. Sampled by cell, they decide what a class looks like; sampled evenly, and few times,
# with all layers trained, the network generalises better to unseen patients (results/ablation).
_FOR_OTHER_PATIENTS: dict[str, Any] = {
    "sampling": "subjects",
    "epoch_cells": 2000,
    "num_train_epochs": 2,
    "label_smoothing": 0.05,
}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
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
            augmentation=Augmentation(scale=0, brightness=0, contrast=0, stain=0, rotation=0, flips="none"),
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
            augmentation=Augmentation(scale=0, brightness=0, contrast=0, stain=0, rotation=0, flips="none"),
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
        *PRIOR_SYSTEMS,
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; raises `LeukoscopeError` naming the known ones."""
    if name not in RECIPES:
        raise LeukoscopeError(f"--recipe {name}: unknown; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
