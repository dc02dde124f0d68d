"""Whether an earlier run's cells are those that a command names now: its flags may be equal, and the folder another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from leukoscope.cells.cache import frame_cells
from leukoscope.cells.loading import LoadedCells, load_cells
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.training.config import TrainingConfig


def other_cells(then: Mapping[str, Any], config: TrainingConfig) -> list[str]:
    """What tells an earlier run's cells from those in --train_dir, as "name: the value then"; [] where nothing does.

    Without --train_dir, or where that folder is not on this machine, there is nothing to compare with, and [] is
    returned too.

    Args:
        then: the "data" block of its metrics.json.

    Raises:
        LeukoscopeError: the folder holds no such cells.
    """
    args = config.data
    if args.train_dir is None or not Path(args.train_dir).is_dir():
        return []
    data = _loaded(args.dataset_name, args.train_dir, args.subject_pattern, args.subject_csv)
    if then["fingerprint"] != data.fingerprint and then["cells"] < sum(map(len, data.cells.values())):
        # Damaged pictures, which only decoding finds, are no part of a run's fingerprint.
        recipe = config.resolve()
        preprocessing = Preprocessing(
            recipe.image_size, data.info.crop_pct, mean=recipe.mean, std=recipe.std, framing=recipe.framing
        )
        data = frame_cells(data, preprocessing, keep=args.cache_images).data
    return [] if then["fingerprint"] == data.fingerprint else [f"the data's fingerprint: {then['fingerprint'][:12]}"]


@lru_cache(maxsize=1)
def _loaded(name: str, folder: str, subject_pattern: str | None, subject_csv: str | None) -> LoadedCells:
    """Read once for all the runs of a protocol."""
    return load_cells(name, folder, subject_pattern=subject_pattern, subject_csv=subject_csv)
