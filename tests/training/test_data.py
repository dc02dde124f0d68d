"""Cells come to the network a batch at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from leukoscope.data.augmentation import Augmentation, Augmenter
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.models.recipes import Recipe
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.data import CellDataset, PixelInputs, prediction_loader
from leukoscope.training.train import make_accelerator

PREPROCESSING = Preprocessing(32, 1.0)
RECIPE = Recipe(name="small", architecture="test_resnet", base_model="", image_size=32)


def _rows(cells: FramedCells) -> CellDataset:
    inputs = PixelInputs(cells, PREPROCESSING, Augmenter(Augmentation(), "black", seed=0))
    return CellDataset(inputs, cells.labels, np.arange(len(cells.labels))[::-1].copy())


def _accelerator() -> object:
    return make_accelerator(TrainingConfig(run=RunArguments(mixed_precision="no")), RECIPE)


def test_batches_hold_the_cells_of_their_rows(own_cells: Path) -> None:
    cells = frame_cells(load_cells("imagefolder", str(own_cells)), PREPROCESSING)
    loader = prediction_loader(_rows(cells), 10, _accelerator())
    batches = list(loader)
    assert [len(rows) for _, _, rows in batches] == [10, 10, 10, 2]
    for items, labels, rows in batches:
        assert (items.shape[1:], items.dtype) == ((3, 32, 32), torch.uint8)
        assert np.array_equal(items.permute(0, 2, 3, 1).numpy(), cells.pixels[rows.numpy()])
        assert np.array_equal(labels.numpy(), cells.labels[rows.numpy()])
    assert torch.cat([rows for _, _, rows in batches]).tolist() == list(range(31, -1, -1))
