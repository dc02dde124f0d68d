"""Audit a data set: what would inflate metrics, which images are odd, and how much trivial features already predict.

`scan_cells` opens every image once; `audit_cells` makes of that the findings that `leukoscope data audit` writes as
JSON, as
a page and as an exit code.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.audit.duplicates import (
    HASH_DISTANCE,
    SAME_CORRELATION,
    SAME_DIFFERENCE,
    PictureKey,
    find_duplicates,
    linked,
    picture_key,
)
from leukoscope.data.framing import BACKGROUND_LEVEL
from leukoscope.data.images import UnreadableImage, cell_areas, open_encoded
from leukoscope.data.loading import LoadedCells
from leukoscope.data.splits import Split, groups_of
from leukoscope.evaluation.baselines import cross_validation, shortcut_metrics, split_unit, trivial_features
from leukoscope.evaluation.metrics import CellPredictions

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

AUDIT_SCHEMA_VERSION = 1
# The size of an image is odd only where nearly all others have the same.
USUAL_SIZE_SHARE = 0.9
# Side in pixels at which sizes, colours and corners are measured; the lines of a scale bar are still visible.
FEATURE_SIDE = 112
# Standard deviation in grey levels below which an image is blank, and the largest distance between its channels
# at which it counts as grey: what JPEG leaves of a truly blank or grey image stays below both.
BLANK_SPREAD = 3.0
GREY_DISTANCE = 3
# A cell cut out on black reaches the border of its image when more than this share of the border's pixels belong to it:
# two pixels may be noise of the encoding.
BORDER_SHARE = 0.005
ODDITIES = {
    "blank": "shows nothing: all pixels are nearly alike",
    "grey": "has no colour",
    "cut off": "the cell reaches the border of the picture",
    "size": "differs in width or height from nearly all others",
}
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


# The scan


@dataclass(frozen=True)
class CellScan:
    """What is kept of one image.

    Attributes:
        key: what its duplicates are found by.
        size: (width, height) in pixels.
        features: name → (D,), see `trivial_features`.
        area: share of the image that the cell covers, None where cells are not cut out on black.
        oddities: keys of `ODDITIES`.
    """

    key: PictureKey
    size: tuple[int, int]
    features: Mapping[str, np.ndarray]
    area: float | None
    oddities: tuple[str, ...]


@dataclass(frozen=True)
class ScannedCells:
    """A data set without its damaged images, and one scan per cell, in the order of `rows`."""

    data: LoadedCells
    scans: Sequence[CellScan]

    @cached_property
    def rows(self) -> Dataset:
        """Every cell, the publisher's test set after the others; `image` is not decoded."""
        from datasets import Image as ImageFeature
        from datasets import concatenate_datasets

        return concatenate_datasets(list(self.data.cells.values())).cast_column("image", ImageFeature(decode=False))


def scan_cells(data: LoadedCells, *, progress: Callable[[int, int], None] | None = None) -> ScannedCells:
    """Open every image once.

    Args:
        progress: called with (done, total) after each image.
    """
    rows = ScannedCells(data, ()).rows
    ids = rows["cell_id"][:]

    def scan(row: int) -> CellScan | str:
        try:
            return _scan(open_cell(rows[row]), data.info.background)
        except UnreadableImage as error:
            return str(error)

    scans, problems = [], {}
    with ThreadPoolExecutor() as pool:
        for row, scanned in enumerate(pool.map(scan, range(len(ids)))):
            if isinstance(scanned, str):
                problems[ids[row]] = scanned
            else:
                scans.append(scanned)
            if progress:
                progress(row + 1, len(ids))
    return ScannedCells(data.without(problems), scans)


def open_cell(row: Mapping[str, Any]) -> Image:
    """Open the image of one of `ScannedCells.rows`."""
    return open_encoded(row["image"], row["cell_id"])


def _scan(image: Image, background: Any) -> CellScan:
    from PIL.Image import Resampling

    small = np.asarray(image.resize((FEATURE_SIDE, FEATURE_SIDE), Resampling.BOX))
    features = {name: values[0] for name, values in trivial_features([small], background).items()}
    area = float(cell_areas([small])[0]) if background == "black" else None
    oddities = tuple(_oddities(np.asarray(image), small, background))
    return CellScan(picture_key(image), image.size, features, area, oddities)


def _oddities(pixels: np.ndarray, small: np.ndarray, background: str) -> Iterator[str]:
    """Keys of `ODDITIES`, from the pixels of an image and from those of its reduction."""
    if small.std(axis=(0, 1)).max() < BLANK_SPREAD:
        yield "blank"
        return
    if np.ptp(small, axis=2).max() <= GREY_DISTANCE:
        yield "grey"
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if background == "black" and (border.max(axis=1) > BACKGROUND_LEVEL).mean() > BORDER_SHARE:
        yield "cut off"


# The findings


def published_subjects(data: LoadedCells, train_dir: str | Path | None) -> dict[str, str]:
    """Return cell id → the subject its publisher names, before the registry joins the ids of one person.

    Without a local folder only the joined ids are known.
    """
    ids = groups_of(data, "subject")
    if train_dir is None or data.info.find_cells is None or not data.info.subject_aliases:
        return ids
    return ids | {cell.cell_id: cell.subject for cell in data.info.find_cells(Path(train_dir)) if cell.cell_id in ids}


@dataclass(frozen=True)
class _Columns:
    """What is known of each cell, row by row; a split must keep each of the `units` on one side."""

    ids: list[str]
    labels: list[str]
    subjects: list[str]
    folds: list[str]
    units: list[str]
    sides: list[str]


def audit_cells(
    scanned: ScannedCells, *, subjects: Mapping[str, str] | None = None, split: Split | None = None
) -> dict[str, Any]:
    """Return all findings, ready to be written as JSON; shares are 0–1.

    Args:
        subjects: cell id → subject as published; the loaded ones where None.
        split: sides that no duplicate may cross; baselines are then measured on it rather than cross-validated.

    Returns:
        `inflating` (one sentence each; empty for a data set fit to be measured on), `unreadable`, `counts`,
        `classes`, `subjects`, `picture_sizes`, `subjects_in_two_classes`, `units_on_two_sides` (of the split),
        `duplicates`, `subject_aliases`, `odd_pictures` and `shortcuts`.
    """
    data, info, rows = scanned.data, scanned.data.info, scanned.rows
    ids, unit = rows["cell_id"][:], split_unit(data)
    subject_of, unit_of = subjects or groups_of(data, "subject"), groups_of(data, unit)
    side_of = {cell: side for side in ("train", "validation", "test") for cell in getattr(split, side, ())}
    cells = _Columns(
        ids,
        [info.labels[k] for k in rows["label"][:]],
        [subject_of[cell] for cell in ids],
        rows["fold"][:],
        [unit_of[cell] for cell in ids],
        [side_of.get(cell, "") for cell in ids],
    )
    rows_of, sides_of = defaultdict[str, list[int]](list), defaultdict[str, set[str]](set)
    for row, (subject, of, side) in enumerate(zip(cells.subjects, cells.units, cells.sides, strict=True)):
        if subject:
            rows_of[subject].append(row)
        sides_of[of] |= {side} - {""}
    labels_of = {subject: Counter(cells.labels[row] for row in own) for subject, own in sorted(rows_of.items())}
    mixed = {subject: dict(labels) for subject, labels in labels_of.items() if len(labels) > 1}
    pairs = _pairs(scanned, cells)
    findings = {
        "schema_version": AUDIT_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "leukoscope": __version__,
        "data": {
            "name": info.name,
            "title": info.title,
            "licence": info.licence,
            "citation": info.citation,
            "fingerprint": data.fingerprint,
            "cells": len(ids),
            "background": info.background,
            "unit": unit,
            "official_folds": sorted(set(cells.folds) - {""}),
            "synthetic": info.synthetic,
        },
        "split": split and {"strategy": split.strategy, "detail": split.detail, "disjoint_by": split.group},
        "inflating": [],
        "unreadable": list(data.unreadable),
        "counts": {"differences": list(data.count_differences), "passed_over": list(data.passed_over)},
        "classes": {
            label: {
                "cells": cells.labels.count(label),
                "subjects": sum(label in labels for labels in labels_of.values()),
                "area": _area_quantiles(scanned, [row for row, of in enumerate(cells.labels) if of == label]),
            }
            for label in info.labels
        },
        "subjects": {
            subject: {"cells": dict(labels), "area": _area_quantiles(scanned, rows_of[subject])}
            for subject, labels in labels_of.items()
        },
        "picture_sizes": dict(Counter(f"{w}×{h}" for w, h in (scan.size for scan in scanned.scans)).most_common()),
        # Suspect only where most subjects have one class, as with diagnoses.
        "subjects_in_two_classes": {"suspect": 0 < len(mixed) <= len(labels_of) / 2, "subjects": mixed},
        "units_on_two_sides": sorted(of for of, sides in sides_of.items() if len(sides) > 1),
        "duplicates": _duplicates(pairs),
        "subject_aliases": _aliases(data, cells, pairs),
        "odd_pictures": _odd_pictures(scanned, cells),
        "shortcuts": _shortcuts(scanned, cells, split),
    }
    return findings | {"inflating": _inflating(findings)}


def _area_quantiles(scanned: ScannedCells, rows: Sequence[int]) -> list[float] | None:
    """5, 25, 50, 75 and 95 % quantiles of the cells' area; None where cells are not cut out."""
    areas = [area for row in rows if (area := scanned.scans[row].area) is not None]
    return np.quantile(areas, _QUANTILES).tolist() if areas else None


def _pairs(scanned: ScannedCells, cells: _Columns) -> list[dict[str, Any]]:
    """Every duplicate and what it crosses; blank images are alike without showing one cell, and are left out."""
    rows = [row for row, scan in enumerate(scanned.scans) if "blank" not in scan.oddities]
    columns = {
        "subjects": cells.subjects,
        "classes": cells.labels,
        "official_folds": cells.folds,
        "split_sides": cells.sides,
        "units": cells.units,
    }
    found = []
    for pair in find_duplicates([scanned.scans[row].key for row in rows]):
        one, other = rows[pair.first], rows[pair.second]
        # What is not known of both cells is not crossed.
        crossed = {name: bool(of[one] and of[other]) and of[one] != of[other] for name, of in columns.items()}
        crossed["inflates"] = crossed["classes"] or crossed["split_sides"] or crossed["units"]
        found.append(
            {
                "cells": [cells.ids[one], cells.ids[other]],
                "subjects": [cells.subjects[one], cells.subjects[other]],
                "rows": [one, other],
                "identical": pair.identical,
                "difference": pair.difference,
                "turned": pair.turned,
                "across": crossed,
            }
        )
    return found


def _duplicates(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def summary(identical: bool) -> dict[str, int]:
        of_kind = [pair["across"] for pair in pairs if pair["identical"] == identical]
        crossed = ("subjects", "classes", "official_folds", "split_sides", "units", "inflates")
        return {"pairs": len(of_kind), **{name: sum(across[name] for across in of_kind) for name in crossed}}

    return {
        "criteria": {
            "hash_bits_at_most": HASH_DISTANCE,
            "difference_at_most": SAME_DIFFERENCE,
            "correlation_at_least": SAME_CORRELATION,
        },
        "identical": summary(True),
        "near": summary(False),
        "pairs": list(pairs),
    }


def _aliases(data: LoadedCells, cells: _Columns, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Groups of subject ids that share cells, hence are one person; as a registry entry would join them."""
    shared: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for pair in pairs:
        if pair["across"]["subjects"]:
            one, other = sorted(pair["subjects"])
            shared[one, other]["identical" if pair["identical"] else "near"] += 1
    size = Counter(cells.subjects)
    groups: list[dict[str, Any]] = []
    for group in linked(shared):
        canonical = data.info.canonical_subject(max(group, key=lambda subject: size[subject]))
        unjoined = [subject for subject in group if data.info.canonical_subject(subject) != canonical]
        links = [
            {"subjects": list(ids), "identical": count["identical"], "near": count["near"]}
            for ids, count in sorted(shared.items())
            if ids[0] in group
        ]
        groups.append(
            {"subjects": group, "same_as": canonical, "known": not unjoined, "unjoined": unjoined, "links": links}
        )
    proposed = {s: group["same_as"] for group in groups for s in group["subjects"] if s != group["same_as"]}
    return {"groups": groups, "proposed": dict(sorted(proposed.items()))}


def _odd_pictures(scanned: ScannedCells, cells: _Columns) -> dict[str, Any]:
    usual, count = Counter(scan.size for scan in scanned.scans).most_common(1)[0]
    sizes_alike = count >= USUAL_SIZE_SHARE * len(scanned.scans)
    odd: list[dict[str, Any]] = []
    for row, scan in enumerate(scanned.scans):
        why = [*scan.oddities, *(["size"] if sizes_alike and scan.size != usual else [])]
        if why:
            odd.append({"cell": cells.ids[row], "row": row, "why": why, "size": list(scan.size)})
    return {"counts": {name: sum(name in picture["why"] for picture in odd) for name in ODDITIES}, "pictures": odd}


def _shortcuts(scanned: ScannedCells, cells: _Columns, split: Split | None) -> dict[str, Any]:
    """The baselines, on the sides a network would get; or the reason why they cannot be measured."""
    labels, scans = scanned.data.info.labels, scanned.scans
    black = scanned.data.info.background == "black"
    block: dict[str, Any] = {
        "chance_balanced_accuracy": 1 / len(labels),
        "left_out": "background and corner: the cells are cut out on black" if black else "size: no cell is cut out",
    }
    try:
        splits = [split] if split else cross_validation(scanned.data)
    except LeukoscopeError as error:
        return block | {"not_measured": str(error)}
    if not all(s.test for s in splits):
        return block | {"not_measured": f"--split {splits[0].strategy}: tests no cell"}
    row_of = {cell: row for row, cell in enumerate(cells.ids)}

    def rows(cells: Iterable[str]) -> np.ndarray:
        return np.asarray([row_of[cell] for cell in cells])

    folds = [(rows([*s.train, *s.validation]), rows(s.test)) for s in splits]
    references = np.asarray([labels.index(label) for label in cells.labels])
    nothing = np.zeros((len(cells.ids), len(labels)))
    truth = CellPredictions(tuple(cells.ids), tuple(cells.units), references, nothing, labels)
    features = {name: np.stack([scan.features[name] for scan in scans]) for name in scans[0].features}
    sizes = [scan.size for scan in scans]
    if len(set(sizes)) > 1:
        features["picture size"] = np.log(sizes)
    return block | {
        "split": {"strategy": splits[0].strategy, "folds": len(splits), "disjoint_by": splits[0].group},
        "cells": sum(len(test) for _, test in folds),
        "features": shortcut_metrics(features, folds, truth),
    }


def _inflating(findings: Mapping[str, Any]) -> list[str]:
    """One sentence for each finding that would make metrics better than they are."""
    unit, lines = findings["data"]["unit"], []
    for identical, name in ((True, "pixel-identical"), (False, "near-identical")):
        pairs = [pair for pair in findings["duplicates"]["pairs"] if pair["identical"] == identical]
        for across, words in (
            ("units", f"stand in two {unit}s, so that a split may test on a picture it trained on"),
            ("classes", "carry two different classes"),
            ("split_sides", "lie on two sides of the split"),
        ):
            if crossing := [pair["cells"] for pair in pairs if pair["across"][across]]:
                example = " and ".join(crossing[0])
                lines.append(f"{len(crossing)} {name} pair(s) {words}, for example {example}")
    if findings["subjects_in_two_classes"]["suspect"]:
        mixed = findings["subjects_in_two_classes"]["subjects"]
        lines.append(f"{len(mixed)} subject(s) have cells of two classes: {', '.join(mixed)}")
    if on_two := findings["units_on_two_sides"]:
        lines.append(f"{len(on_two)} {unit}(s) stand on two sides of the split, for example {on_two[0]}")
    return lines
