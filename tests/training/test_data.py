"""Cells come to the network a batch at a time, and what they take to come is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from leukoscope.data.augmentation import Augmentation, Augmenter
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.models.recipes import Recipe
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.data import (
    Batch,
    CellDataset,
    PixelInputs,
    prediction_loader,
    ready_batches,
)
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


def test_waiting_is_what_batches_take_to_come_and_to_be_augmented(
    own_cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("leukoscope.training.data.time", SimpleNamespace(perf_counter=lambda: now[0]))
    cells = frame_cells(load_cells("imagefolder", str(own_cells)), PREPROCESSING)
    rows = _rows(cells)

    def loader() -> Iterator[Batch]:
        for number in range(3):
            now[0] += 0.05
            yield rows.__getitems__([number, number + 1])
        now[0] += 0.05

    waited: list[float] = []
    for shown, labels, numbers in ready_batches(loader(), rows.inputs, torch.device("cpu"), 2, waited.append):
        expected = rows.inputs.for_training(rows.inputs.items(numbers.numpy()), numbers, 2)
        assert torch.equal(shown, expected)
        assert shown.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(labels.numpy(), cells.labels[numbers.numpy()])
        now[0] += 0.2
    assert waited == pytest.approx([0.05] * 4), "the network's own time is none of it"
