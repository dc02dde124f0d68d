"""How a release's answers hold when the pictures change a little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def even_sample(subjects: Sequence[str], at_most: int, *, seed: int = 0) -> np.ndarray:
    """Rows of at most so many of N cells, subject by subject in turns, so that every prefix has all subjects alike."""
    named, shuffled = np.asarray(subjects), np.random.default_rng(seed).permutation(len(subjects))
    turn = np.empty(len(named), dtype=int)
    for subject in np.unique(named):
        mine = shuffled[named[shuffled] == subject]
        turn[mine] = np.arange(len(mine))
    return shuffled[np.argsort(turn[shuffled], kind="stable")][:at_most]
