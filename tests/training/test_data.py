"""Cells come to the network a batch at a time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from leukoscope.data.augmentation import Augmentation, Augmenter
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.models.recipes import Recipe
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.data import CellDataset, PixelInputs, SubjectBalancedSampler, prediction_loader
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


# Subject-balanced epochs: who is shown how often, and in which order

# Class 0: a has 60 cells, b 6; class 1: c has 30, d 3, e 1.
SUBJECTS = ["a"] * 60 + ["b"] * 6 + ["c"] * 30 + ["d"] * 3 + ["e"]
LABELS = np.asarray([0] * 66 + [1] * 34)


def epoch(number: int, seed: int = 0) -> list[int]:
    sampler = SubjectBalancedSampler(LABELS, SUBJECTS, seed)
    sampler.set_epoch(number)
    return list(sampler)


def test_classes_and_their_subjects_are_shown_equally_often() -> None:
    shown = epoch(0)
    assert len(shown) == len(LABELS) == len(SubjectBalancedSampler(LABELS, SUBJECTS, 0))
    assert Counter(LABELS[shown].tolist()) == {0: 50, 1: 50}
    by_subject = Counter(SUBJECTS[i] for i in shown)
    assert (by_subject["a"], by_subject["b"]) == (25, 25)
    assert sorted(by_subject[s] for s in "cde") == [16, 17, 17]


@pytest.mark.parametrize("size", [10, 250])
def test_an_epoch_has_the_size_asked_for(size: int) -> None:
    sampler = SubjectBalancedSampler(LABELS, SUBJECTS, 0, size=size)
    assert len(list(sampler)) == len(sampler) == size


def test_a_subjects_cells_take_turns() -> None:
    shown = Counter(epoch(0))
    assert set(shown[i] for i in range(60)) == {0, 1}, "25 of 60: none twice"
    assert {shown[i] for i in range(60, 66)} == {4, 5}, "25 among 6: four rounds and one more"


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch(3) == epoch(3)
    assert epoch(3) != epoch(4)
    assert epoch(3) != epoch(3, seed=1)


def test_cells_without_a_subject_share_one_turn_within_their_class() -> None:
    sampler = SubjectBalancedSampler(np.asarray([0, 0, 1, 1]), ["", "", "", ""], 0)
    assert Counter(sampler) == {0: 1, 1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_fewer_cells_than_classes_is_no_error(cells: int) -> None:
    sampler = SubjectBalancedSampler(LABELS[-cells:], SUBJECTS[-cells:], 0)
    assert len(list(sampler)) == cells
