"""What a training batch is made of: pixels for a whole network, or stored features for the head of a frozen one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from leukoscope.cells.cache import FramedCells
from leukoscope.cells.transforms import Augmenter, Preprocessing


class Inputs(Protocol):
    """From a row of the cells to what is fed forward."""

    def item(self, row: int) -> torch.Tensor:
        """What the loader reads of one cell."""

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        """A batch of items as this epoch shows them."""

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        """A batch of items as they are, without augmentation."""


class PixelInputs:
    """Cells as a whole network sees them; items are (3, S, S) uint8."""

    def __init__(self, cells: FramedCells, preprocessing: Preprocessing, augment: Augmenter):
        self.pixels, self.preprocessing, self.augment = cells.pixels, preprocessing, augment

    def item(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.pixels[row].transpose(2, 0, 1)))

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        return self.preprocessing.normalise(self.augment(items, rows.tolist(), epoch))

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        return self.preprocessing.normalise(items)


class FeatureInputs:
    """A frozen backbone's features of every cell, kept in each look it can have; items are (V, F) float32."""

    def __init__(self, features: np.ndarray, augment: Augmenter):
        self.features, self.augment = features, augment

    def item(self, row: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.features[row]))

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        return items[torch.arange(len(items)), self.augment.mirrorings_of(rows.tolist(), epoch)]

    def for_answers(self, items: torch.Tensor) -> torch.Tensor:
        return items[:, 0]


class Rows(Dataset[tuple[torch.Tensor, int, int]]):
    """Some rows of the cells, for a DataLoader: item, class, row."""

    def __init__(self, inputs: Inputs, labels: np.ndarray, rows: np.ndarray):
        self.inputs, self.labels, self.rows = inputs, labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        row = int(self.rows[index])
        return self.inputs.item(row), int(self.labels[row]), row
