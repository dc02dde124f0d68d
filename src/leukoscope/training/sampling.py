"""Which cells an epoch shows, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class SubjectBalancedSampler(Sampler[int]):
    """Shows every class equally often, and in a class every subject equally often, or by a power of its cells.

    Patients differ in their number of cells by a factor of ten and more: drawn by cell, a few of them decide what a
    class looks like. Within a subject cells take turns, so none comes a second time before all others came once.
    The order depends on (seed, epoch) alone.
    """

    def __init__(
        self, labels: np.ndarray, subjects: Sequence[str], seed: int, *, size: int | None = None, power: float = 0.0
    ):
        """Args:
        labels: (N,) class of each position.
        subjects: N subject ids; cells whose subject is unnamed ("") count as one subject a class.
        size: cells an epoch; None takes as many as there are: an epoch then costs the same however it is drawn.
        power: a subject of n cells is shown in proportion to n to this power; 0 shows all equally.
        """
        self.seed, self.epoch, self.size, self.power = seed, 0, len(labels) if size is None else size, power
        named = np.asarray(subjects)
        self._groups = [
            [np.flatnonzero((labels == k) & (named == subject)) for subject in np.unique(named[labels == k])]
            for k in np.unique(labels)
        ]

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Cells an epoch."""
        return self.size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        quotas = _shares(self.size, np.ones(len(self._groups)), rng)
        drawn = [
            _in_turns(cells, count, rng)
            for subjects, quota in zip(self._groups, quotas, strict=True)
            for cells, count in zip(subjects, _shares(quota, self._weights(subjects), rng), strict=True)
        ]
        yield from rng.permutation(np.concatenate(drawn)).tolist()

    def _weights(self, subjects: list[np.ndarray]) -> np.ndarray:
        return np.asarray([len(cells) for cells in subjects]) ** self.power


def _shares(total: int, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(P,) counts that add up to `total`, each its weight's share to the next whole number; who gets more is drawn."""
    exact = total * weights / weights.sum()
    counts = np.floor(exact + 1e-9).astype(int)
    if left := total - counts.sum():
        rest = np.maximum(exact - counts, 1e-12)
        counts[rng.choice(len(counts), size=left, replace=False, p=rest / rest.sum())] += 1
    return counts


def _in_turns(cells: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    rounds = [rng.permutation(cells) for _ in range(-(-count // len(cells)))]
    return np.concatenate(rounds)[:count] if rounds else cells[:0]
