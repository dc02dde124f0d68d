"""A release that learnt nothing, of a network that is computed, exported and copied in no time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leukoscope.models.recipes import Recipe


def untrained(folder: Path, metrics: Mapping[str, Any], recipe: Recipe | None = None, size: int = 96) -> Path:
    """Write an ALL/HEM release with random weights (seed 0) and these metrics; its network is a small densenet121."""
    import torch

    from leukoscope.data.preprocessing import Preprocessing
    from leukoscope.models.build import build_network, model_args
    from leukoscope.models.metrics import Metrics
    from leukoscope.models.recipes import get_recipe
    from leukoscope.models.release import write_json
    from leukoscope.models.weights import save_release

    torch.manual_seed(0)
    recipe = recipe or replace(get_recipe("densenet121"), block_config=(2, 2, 2, 2), image_size=size)
    save_release(
        folder,
        build_network(recipe, 2),
        architecture=recipe.architecture,
        model_args=model_args(recipe),
        labels=("ALL", "HEM"),
        preprocessing=Preprocessing(recipe.image_size, 350 / 450, recipe.interpolation, recipe.mean, recipe.std),
        metrics=Metrics(),
    )
    write_json(folder / "metrics.json", {"schema_version": 3, "labels": ["ALL", "HEM"], **metrics})
    return folder
