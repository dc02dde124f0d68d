"""What of a release folder travels to the Hub: a release's own files by name, and never a patient's picture.

Whatever else lies in the folder stays at home. Pictures travel only as the card's figures, which show phantoms and
curves; tables of answers only with the columns that `CellPredictions.save` writes.
"""

from __future__ import annotations

import re
from pathlib import Path

from leukoscope import LeukoscopeError
from leukoscope.hub.figures import SHOWN
from leukoscope.models.release_code import CODE, PROCESSOR
from leukoscope.models.release_files import CARD, CONFIG, FIGURES, METRICS, OOD, PREDICTIONS, WEIGHTS

REQUIRED = (CONFIG, WEIGHTS, METRICS, CARD)
_NAMED = {*REQUIRED, OOD, PROCESSOR, *CODE, *(f"{FIGURES}/{name}.png" for name in SHOWN)}


def travelling_files(release: Path) -> dict[str, Path]:
    """Path in the repository → file, of all that is published of a release.

    Raises:
        LeukoscopeError: a file that every release has is missing, or a table of answers holds more than answers.
    """
    there = {path.relative_to(release).as_posix(): path for path in sorted(release.rglob("*")) if path.is_file()}
    files = {name: path for name, path in there.items() if belongs_to_release(name)}
    if missing := [name for name in REQUIRED if name not in files]:
        raise LeukoscopeError(f"{release}: has no {missing[0]}; give the folder of a release")
    for path in files.values():
        if path.suffix == ".parquet":
            _require_answers_only(path)
    return files


def staying_files(release: Path) -> list[str]:
    """What lies in the folder but is no part of a release, and is not published."""
    names = (path.relative_to(release).as_posix() for path in sorted(release.rglob("*")) if path.is_file())
    return [name for name in names if not belongs_to_release(name)]


def belongs_to_release(name: str) -> bool:
    """Whether a path in a repository is one that a release may have; files of other kinds are not ours to remove."""
    folder, _, file = name.rpartition("/")
    return name in _NAMED or (folder == PREDICTIONS and file.endswith(".parquet"))


def _require_answers_only(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise LeukoscopeError(f"{path}: cannot be read ({error}); make the release again") from None
    for column in schema:
        is_name = column.name in ("cell_id", "subject", "label") and pa.types.is_string(column.type)
        is_share = (column.name.startswith("p_") or column.name == "area") and pa.types.is_floating(column.type)
        is_hash = column.name == "pixel_hash" and pa.types.is_string(column.type) and _all_hashes(path)
        if not (is_name or is_share or is_hash):
            raise LeukoscopeError(
                f"{path}: column {column.name} ({column.type}) is no prediction; only cell ids, subjects, labels, "
                "areas, hashes and probabilities are published — remove it"
            )


def _all_hashes(path: Path) -> bool:
    """True where the column pixel_hash holds nothing longer than a `pixel_hash`."""
    import pyarrow.parquet as pq

    return all(re.fullmatch(r"[0-9a-f]{16}|", value or "") for value in pq.read_table(path)["pixel_hash"].to_pylist())
