"""Cells small and few enough to train on in a test, and trainers of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from torch import nn

from drawn import save_cell
from leukoscope.data.augmentation import Augmentation
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import Split, make_split
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe
from leukoscope.training.accelerator import make_accelerator
from leukoscope.training.checkpoint import Checkpoints
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
SMALL = Recipe(
    name="small",
    architecture="densenet121",
    base_model="",
    image_size=32,
    num_train_epochs=3,
    train_batch_size=4,
    drop_rate=0.0,
    block_config=(1, 1),
    pooled_norm=True,
)
MIRRORED = Augmentation(0.0, 0.0, 0.0, 0.0, rotation=0.0, flips="horizontal")


@pytest.fixture(scope="session")
def drawn_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small phantoms: 8 subjects a class, 2 cells each, `<class>/<subject>_<n>.png`."""
    root = tmp_path_factory.mktemp("drawn") / "cells"
    for label, subject, cell in product(("ALL", "HEM"), range(8), range(2)):
        save_cell(root / label / f"{label}{subject}_{cell}.png", label, subject=subject, cell=cell, size=32)
    return root


@pytest.fixture
def own_cells(drawn_cells: Path, tmp_path: Path) -> Path:
    """A copy of `drawn_cells`, free to be changed."""
    return shutil.copytree(drawn_cells, tmp_path / "cells")


@pytest.fixture
def cells(own_cells: Path) -> FramedCells:
    """The cells of `own_cells`, framed at 32 px."""
    data = load_cells("imagefolder", str(own_cells), subject_pattern=r"/(?P<subject>\w+)_", image_size=64)
    return frame_cells(data, Preprocessing(32, 1.0))


@pytest.fixture
def split(cells: FramedCells) -> Split:
    """About 70/15/15 by subject."""
    return make_split(cells.data, "subject")


@pytest.fixture
def trainer_for(cells: FramedCells) -> MakeTrainer:
    """A trainer for a recipe's network on the cells, with the flags of a run."""

    def make(
        recipe: Recipe,
        *,
        split: str = "subject",
        build: Callable[[Any, int], nn.Module] = build_network,
        trainer_class: type[Trainer] = Trainer,
        checkpoints: Checkpoints | None = None,
        **flags: Any,
    ) -> Trainer:
        run = RunArguments(**{"mixed_precision": "no", **flags})
        set_seed(run.seed)
        accelerator, network = make_accelerator(TrainingConfig(run=run), recipe), build(recipe, 2)
        more: dict[str, Any] = {"seed": run.seed, "checkpoints": checkpoints}
        return trainer_class(accelerator, network, cells, make_split(cells.data, split), recipe, **more)

    return make


def scripted_validation(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, **columns: list[float]
) -> list[dict[str, torch.Tensor]]:
    """Prescribe the validation metrics of each epoch; returns the weights that each of them was given for."""
    seen: list[dict[str, torch.Tensor]] = []

    def validate() -> dict[str, float]:
        seen.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
        return {name: values[len(seen) - 1] for name, values in columns.items()}

    monkeypatch.setattr(trainer, "_validate", validate)
    return seen
