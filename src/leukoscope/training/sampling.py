"""Which cells an epoch shows, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class SubjectBalancedSampler(Sampler[int]):
    """Shows every class equally often, and in a class every subject equally often.

    Patients differ in their number of cells by a factor of ten and more: drawn by cell, a few of them decide what a
    class looks like. Within a subject cells take turns, so none comes a second time before all others came once.
    The order depends on (seed, epoch) alone.
    """

    def __init__(self, labels: np.ndarray, subjects: Sequence[str], seed: int):
        """Args:
        labels: (N,) class of each position.
        subjects: N subject ids; cells whose subject is unnamed ("") count as one subject a class.
        """
        self.seed, self.epoch, self.size = seed, 0, len(labels)
        named = np.asarray(subjects)
        self._groups = [
            [np.flatnonzero((labels == k) & (named == subject)) for subject in np.unique(named[labels == k])]
            for k in np.unique(labels)
        ]

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated next, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """As many cells as there are: an epoch costs the same however it is drawn."""
        return self.size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        quotas = _shares(self.size, len(self._groups), rng)
        drawn = [
            _in_turns(cells, count, rng)
            for subjects, quota in zip(self._groups, quotas, strict=True)
            for cells, count in zip(subjects, _shares(quota, len(subjects), rng), strict=True)
        ]
        yield from rng.permutation(np.concatenate(drawn)).tolist()


def _shares(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """(parts,) counts that add up to `total` and differ by one at most; who gets the odd ones is drawn."""
    counts = np.full(parts, total // parts)
    counts[rng.permutation(parts)[: total % parts]] += 1
    return counts


def _in_turns(cells: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    rounds = [rng.permutation(cells) for _ in range(-(-count // len(cells)))]
    return np.concatenate(rounds)[:count] if rounds else cells[:0]
