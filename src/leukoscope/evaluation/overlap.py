"""Whether cells are among those that a release was made from, whatever their data set is called now.

A folder of copied C-NMC cells is another data set by name, and no test of a release that was trained on C-NMC. The
release's own predictions tell: they hold the id of every cell it was measured on and, where they are new enough, a hash
of the cell's pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from leukoscope.cells.registry import DATASETS
from leukoscope.models.release_files import PREDICTIONS

# Shorter names, such as 12.png, are given to other cells again.
_LEAST_NAME = 6


@dataclass(frozen=True)
class KnownCells:
    """Cells that a release keeps predictions of.

    Attributes:
        names: file names without folder and suffix, those too short to mean anything left out.
        hashes: `pixel_hash` of each; empty where the release keeps none.
    """

    names: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()

    @classmethod
    def of_release(cls, folder: Path | None) -> KnownCells:
        """Read the names and hashes in a release's predictions; nothing where it has none."""
        import pyarrow.parquet as pq

        names: set[str] = set()
        hashes: set[str] = set()
        for path in sorted(folder.glob(f"{PREDICTIONS}/*.parquet")) if folder else ():
            table = pq.read_table(path)
            names |= set(_names(table["cell_id"].to_pylist()))
            if "pixel_hash" in table.column_names:
                hashes |= set(table["pixel_hash"].to_pylist()) - {""}
        return cls(frozenset(names), frozenset(hashes))

    @property
    def by_pixels(self) -> bool:
        """True where cells can be recognised by their pixels, under whatever name."""
        return bool(self.hashes)

    def among(self, cell_ids: Sequence[str], hashes: Sequence[str] | None) -> int:
        """How many of these cells are known, by name or by pixels."""
        pixels = hashes or [""] * len(cell_ids)
        return sum(
            hash_ in self.hashes or not self.names.isdisjoint(_names([cell]))
            for cell, hash_ in zip(cell_ids, pixels, strict=True)
        )


def same_person(dataset: str, subject: str) -> str:
    """The subject under the one id that its data set's known aliases are joined under."""
    return DATASETS[dataset].canonical_subject(subject) if dataset in DATASETS else subject


def _names(cell_ids: Iterable[str]) -> list[str]:
    names = [PurePosixPath(cell).name for cell in cell_ids]
    stems = [PurePosixPath(name).stem if PurePosixPath(name).suffix else name for name in names]
    return [stem for stem in stems if len(stem) >= _LEAST_NAME]
