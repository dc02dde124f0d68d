"""Audit a data set: what would inflate metrics, which images are odd, and how much trivial features already predict.

`scan_cells` opens every image once; `audit_cells` makes of that the findings that `leukoscope data audit` writes as
JSON, as a page and as an exit code. A copy of an image on both sides of a split leaks the label of a test cell:
`find_duplicates` finds pixel-identical copies and near-duplicates that were re-encoded, turned or taken anew. It works
on what `picture_key` keeps of each image (3 KB), so a data set of any size is compared in one pass over its files.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.data.folders import ImageFolder
from leukoscope.data.images import UnreadableImage, cell_area, foreground, open_encoded, pixel_hash
from leukoscope.data.loading import LoadedCells
from leukoscope.data.splits import Split, cross_validation, groups_of, split_unit
from leukoscope.evaluation.baselines import shortcut_metrics, trivial_features
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.inference.tta import VIEWS, turned
from leukoscope.progress import track

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
# Features that do not lie in the cell; from this share of the way from chance to perfect they are a shortcut.
OUTSIDE_THE_CELL = ("background", "corner", "picture size")
SHORTCUT_SHARE = 0.2
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# What a duplicate may cross. A split must keep each of the units on one side.
_CROSSED = ("subjects", "classes", "official_folds", "split_sides", "units")
# Each of these and "ids", cell by cell; "" where it is not known.
_Columns: TypeAlias = dict[str, list[str]]
SMALL_SIDE = 32
# The perceptual hash: which of the lowest 16 × 16 frequencies but the mean are above their median (after Zauner 2010,
# "Implementation and benchmarking of perceptual image hash functions"). 8 × 8, as it is mostly used, cannot tell cells
# on black apart: all are round. JPEG at quality 50 of a picture at half its size moves at most 18 of these 255 bits.
HASH_SIDE = 16
HASH_DISTANCE = 32
# Two pictures count as one when, at 32 × 32 and over the pixels where either shows a cell, they differ by at most this
# many grey levels (root mean square) and correlate. On 7,779 C-NMC cells, 903 pairs do as they lie and not one after a
# turn or a flip of either, which is how often chance would produce them.
SAME_DIFFERENCE = 5.0
SAME_CORRELATION = 0.9
_ROWS_AT_ONCE, _PAIRS_AT_ONCE = 512, 4096
_LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)


# Duplicates


@dataclass(frozen=True)
class PictureKey:
    """What copies of an image are found by.

    Attributes:
        pixels: hash of all its pixels and its size; equal for identical pictures, however they are stored.
        small: (32, 32, 3) uint8, the whole picture reduced.
    """

    pixels: str
    small: np.ndarray


@dataclass(frozen=True)
class Duplicate:
    """Two rows that show one picture.

    Attributes:
        difference: root mean square, in grey levels of 0–255; 0 for identical pixels.
        turned: the second matches only after a turn by right angles or a flip.
    """

    first: int
    second: int
    identical: bool
    difference: float = 0.0
    turned: bool = False


def picture_key(image: Image) -> PictureKey:
    """Compute from a decoded RGB image what its copies are found by."""
    from PIL.Image import Resampling

    small = image.resize((SMALL_SIDE, SMALL_SIDE), Resampling.BOX)
    return PictureKey(pixel_hash(image), np.asarray(small))


def find_duplicates(keys: Sequence[PictureKey]) -> list[Duplicate]:
    """Find all duplicates among N images, identical ones first, each by its row.

    Of n identical pictures the first is paired with each other; only it takes part in the search for near-duplicates.
    """
    same: defaultdict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        same[key.pixels].append(row)
    identical = [Duplicate(rows[0], other, True) for rows in same.values() for other in rows[1:]]
    alone = np.asarray([rows[0] for rows in same.values()], dtype=np.int64)
    return identical + list(_near_duplicates(alone, [keys[row].small for row in alone.tolist()]))


def _near_duplicates(rows: np.ndarray, smalls: Sequence[np.ndarray]) -> Iterator[Duplicate]:
    if len(rows) < 2:
        return
    pictures = np.stack(smalls)
    found: dict[tuple[int, int], Duplicate] = {}
    upright = _hashes(pictures)
    for view in range(VIEWS):
        for first, second in _similar_hashes(upright, _hashes(turned(pictures, view)) if view else upright):
            differences, correlations = _compare(pictures[first], turned(pictures[second], view))
            same = (differences <= SAME_DIFFERENCE) & (correlations >= SAME_CORRELATION)
            for i, j, difference in zip(first[same], second[same], differences[same], strict=True):
                duplicate = Duplicate(int(rows[i]), int(rows[j]), False, float(difference), view > 0)
                known = found.get((i, j), duplicate)
                found[i, j] = min(known, duplicate, key=lambda d: d.difference)
    yield from found.values()


def _hashes(pictures: np.ndarray) -> np.ndarray:
    """(N, 4) uint64: the perceptual hash of each (S, S, 3) picture."""
    from scipy.fft import dctn

    frequencies = dctn(pictures @ _LUMA, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE].reshape(len(pictures), -1)
    frequencies[:, 0] = -np.inf
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)


def _similar_hashes(ones: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (i, j), i < j, whose hashes differ in few bits; some thousand pairs at a time, to bound the memory."""
    for start in range(0, len(ones), _ROWS_AT_ONCE):
        block, rest = ones[start : start + _ROWS_AT_ONCE], others[start:]
        distance = np.zeros((len(block), len(rest)), dtype=np.uint16)
        for word in range(ones.shape[1]):
            distance += np.bitwise_count(block[:, word, None] ^ rest[None, :, word])
        first, second = np.nonzero(distance <= HASH_DISTANCE)
        later = np.flatnonzero(first < second)
        for some in range(0, len(later), _PAIRS_AT_ONCE):
            chosen = later[some : some + _PAIRS_AT_ONCE]
            yield first[chosen] + start, second[chosen] + start


def _compare(ones: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference in grey levels and correlation of M pairs of (S, S, 3) pictures, where either shows a cell."""
    cell = foreground(ones) | foreground(others)
    count = np.maximum(cell.sum(axis=(1, 2)), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * cell).sum(axis=(1, 2)) / count

    squares = mean(((ones.astype(np.float32) - others) ** 2).mean(axis=3))
    a, b = ones @ _LUMA, others @ _LUMA
    a, b = a - mean(a)[:, None, None], b - mean(b)[:, None, None]
    spread = np.sqrt(mean(a * a) * mean(b * b))
    # Two pictures without any structure agree in nothing that could be compared.
    correlation = np.divide(mean(a * b), spread, out=np.zeros_like(spread), where=spread > 0)
    return np.sqrt(squares), correlation


def linked(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Join pairs of names into groups, each sorted, the largest first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.asarray(sorted(set(pairs))).reshape(-1, 2)
    names, index = np.unique(ends, return_inverse=True)
    index = index.reshape(-1, 2)
    links = coo_array((np.ones(len(index)), (index[:, 0], index[:, 1])), shape=(len(names), len(names)))
    count, component = connected_components(links, directed=False)
    groups = [names[component == k].tolist() for k in range(count)]
    return sorted(groups, key=lambda group: (-len(group), group))


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


def scan_cells(data: LoadedCells) -> ScannedCells:
    """Open every image once.

    Raises:
        LeukoscopeError: not one can be read.
    """
    from PIL.Image import Resampling

    rows, background = ScannedCells(data, ()).rows, data.info.background
    ids = rows["cell_id"][:]

    def scan(row: int) -> CellScan | str:
        try:
            image = open_cell(rows[row])
        except UnreadableImage as error:
            return str(error)
        small = np.asarray(image.resize((FEATURE_SIDE, FEATURE_SIDE), Resampling.BOX))
        features = {name: values[0] for name, values in trivial_features([small], background).items()}
        area = cell_area(small) if background == "black" else None
        oddities = tuple(_oddities(np.asarray(image), small, background))
        return CellScan(picture_key(image), image.size, features, area, oddities)

    scans, problems = [], {}
    with ThreadPoolExecutor() as pool:
        for cell, scanned in zip(ids, track(pool.map(scan, range(len(ids))), "reading images", len(ids)), strict=True):
            if isinstance(scanned, str):
                problems[cell] = scanned
            else:
                scans.append(scanned)
    if not scans:
        first = next(iter(problems.values()), f"{data.info.name}: holds no image")
        raise LeukoscopeError(f"{first}; none of the {len(ids):,} images could be read, so there is nothing to audit")
    return ScannedCells(data.without(problems), scans)


def open_cell(row: Mapping[str, Any]) -> Image:
    """Open the image of one of `ScannedCells.rows`."""
    return open_encoded(row["image"], row["cell_id"])


def _oddities(pixels: np.ndarray, small: np.ndarray, background: str) -> Iterator[str]:
    """Keys of `ODDITIES`, from the pixels of an image and from those of its reduction."""
    if small.std(axis=(0, 1)).max() < BLANK_SPREAD:
        yield "blank"
        return
    if np.ptp(small, axis=2).max() <= GREY_DISTANCE:
        yield "grey"
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if background == "black" and foreground(border).mean() > BORDER_SHARE:
        yield "cut off"


# The findings


def published_subjects(data: LoadedCells, train_dir: str | Path | None) -> dict[str, str]:
    """Return cell id → the subject its publisher names, before the registry joins the ids of one person.

    Without a local folder only the joined ids are known.
    """
    ids = groups_of(data, "subject")
    if train_dir is None or data.info.find_cells is None or not data.info.subject_aliases:
        return ids
    cells = data.info.find_cells(ImageFolder.read(Path(train_dir)))
    return ids | {cell.cell_id: cell.subject for cell in cells if cell.cell_id in ids}


def audit_cells(
    scanned: ScannedCells, *, subjects: Mapping[str, str] | None = None, split: Split | None = None
) -> dict[str, Any]:
    """Return all findings, ready to be written as JSON; shares are 0–1.

    Args:
        subjects: cell id → subject as published; the loaded ones where None.
        split: sides that no duplicate may cross; baselines are then measured on it rather than cross-validated.

    Returns:
        `inflating` (one sentence each; empty for a data set fit to be measured on), `warnings` (a sentence on shortcuts
        outside the cell, if there are any), `unreadable`, `counts`, `classes`, `subjects`, `picture_sizes`,
        `subjects_in_two_classes`, `units_on_two_sides` (of the split), `duplicates`, `subject_aliases`, `odd_pictures`
        and `shortcuts`.
    """
    data, info, rows = scanned.data, scanned.data.info, scanned.rows
    ids, unit = rows["cell_id"][:], split_unit(data)
    subject_of, unit_of = subjects or groups_of(data, "subject"), groups_of(data, unit)
    side_of = {cell: side for side in ("train", "validation", "test") for cell in getattr(split, side, ())}
    cells: _Columns = {
        "ids": ids,
        "classes": [info.labels[k] for k in rows["label"][:]],
        "subjects": [subject_of[cell] for cell in ids],
        "official_folds": rows["fold"][:],
        "split_sides": [side_of.get(cell, "") for cell in ids],
        "units": [unit_of[cell] for cell in ids],
    }
    rows_of, sides_of = defaultdict[str, list[int]](list), defaultdict[str, set[str]](set)
    for row, (subject, of, side) in enumerate(
        zip(cells["subjects"], cells["units"], cells["split_sides"], strict=True)
    ):
        if subject:
            rows_of[subject].append(row)
        if of:  # cells of unknown subjects are not one subject's
            sides_of[of] |= {side} - {""}
    labels_of = {subject: Counter(cells["classes"][row] for row in own) for subject, own in sorted(rows_of.items())}
    mixed = {subject: dict(labels) for subject, labels in labels_of.items() if len(labels) > 1}
    pairs = _pairs(scanned, cells)
    findings: dict[str, Any] = {
        "schema_version": AUDIT_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "leukoscope": __version__,
        "data": {
            **info.about(),
            "fingerprint": data.fingerprint,
            "cells": len(ids),
            "background": info.background,
            "unit": unit,
            "official_folds": sorted(set(cells["official_folds"]) - {""}),
        },
        "split": split and {"strategy": split.strategy, "detail": split.detail, "disjoint_by": split.group},
        "inflating": [],
        "unreadable": list(data.unreadable),
        "counts": {"differences": list(data.count_differences), "passed_over": list(data.passed_over)},
        "classes": {
            label: {
                "cells": cells["classes"].count(label),
                "subjects": sum(label in labels for labels in labels_of.values()),
                "area": _area_quantiles(scanned, [row for row, of in enumerate(cells["classes"]) if of == label]),
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
    return findings | {"inflating": _inflating(findings), "warnings": _shortcut_warnings(findings["shortcuts"])}


def _area_quantiles(scanned: ScannedCells, rows: Sequence[int]) -> list[float] | None:
    """5, 25, 50, 75 and 95 % quantiles of the cells' area; None where cells are not cut out."""
    areas = [area for row in rows if (area := scanned.scans[row].area) is not None]
    return np.quantile(areas, _QUANTILES).tolist() if areas else None


def _pairs(scanned: ScannedCells, cells: _Columns) -> list[dict[str, Any]]:
    """Every duplicate and what it crosses; blank images are alike without showing one cell, and are left out."""
    rows = [row for row, scan in enumerate(scanned.scans) if "blank" not in scan.oddities]

    def crossing(one: int, other: int) -> dict[str, bool]:
        # What is not known of both cells is not crossed.
        return {name: "" != cells[name][one] != cells[name][other] != "" for name in _CROSSED}

    found = []
    unlike: defaultdict[int, dict[tuple[str, ...], int]] = defaultdict(dict)
    for pair in find_duplicates([scanned.scans[row].key for row in rows]):
        one, other = rows[pair.first], rows[pair.second]
        if pair.identical:
            # Of the first of several copies the subject or the side may be unknown: the one that differs most is named.
            copies = unlike[one]
            for row in (one, other):
                copies.setdefault(tuple(cells[name][row] for name in _CROSSED), row)
            one = max(copies.values(), key=lambda row: sum(crossing(row, other).values()))
        crossed = crossing(one, other)
        crossed["inflates"] = crossed["classes"] or crossed["split_sides"] or crossed["units"]
        found.append(
            {
                "cells": [cells["ids"][one], cells["ids"][other]],
                "subjects": [cells["subjects"][one], cells["subjects"][other]],
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
        crossed = (*_CROSSED, "inflates")
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
    size = Counter(cells["subjects"])
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
            odd.append({"cell": cells["ids"][row], "row": row, "why": why, "size": list(scan.size)})
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
        # A data set's own splits may have no test side.
        splits = [split] if split and (split.test or split.strategy != "given") else cross_validation(scanned.data)
    except LeukoscopeError as error:
        return block | {"not_measured": str(error)}
    if not all(s.test for s in splits):
        return block | {"not_measured": f"--split {splits[0].strategy}: tests no cell"}
    row_of = {cell: row for row, cell in enumerate(cells["ids"])}

    def rows(cells: Iterable[str]) -> np.ndarray:
        return np.asarray([row_of[cell] for cell in cells])

    folds = [(rows([*s.train, *s.validation]), rows(s.test)) for s in splits]
    references = np.asarray([labels.index(label) for label in cells["classes"]])
    nothing = np.zeros((len(cells["ids"]), len(labels)))
    truth = CellPredictions(tuple(cells["ids"]), tuple(cells["units"]), references, nothing, labels)
    features = {name: np.stack([scan.features[name] for scan in scans]) for name in scans[0].features}
    sizes = [scan.size for scan in scans]
    if len(set(sizes)) > 1:
        features["picture size"] = np.log(sizes)
    return block | {
        "split": {"strategy": splits[0].strategy, "folds": len(splits), "disjoint_by": splits[0].group},
        "cells": sum(len(test) for _, test in folds),
        "features": shortcut_metrics(features, folds, truth),
    }


def _shortcut_warnings(shortcuts: Mapping[str, Any]) -> list[str]:
    """One sentence on the features outside the cell that separate the classes far better than chance; [] without."""
    chance, found = shortcuts["chance_balanced_accuracy"], []
    # Of few cells, guessing also gets many right: two standard deviations more than on average once in forty.
    by_luck = 2 * math.sqrt(chance * (1 - chance) / max(1, shortcuts.get("cells", 1)))
    least = chance + max(SHORTCUT_SHARE * (1 - chance), by_luck)
    for name in OUTSIDE_THE_CELL:
        measured = shortcuts.get("features", {}).get(name)
        if measured and measured["balanced_accuracy"] >= least:
            found.append(f"{name} alone reaches a balanced accuracy of {measured['balanced_accuracy']:.3f}")
    if not found:
        return []
    return [
        f"{', '.join(found)} (chance {chance:.3f}): a network can learn that instead of the cell; take the pictures of "
        "all classes alike, or cut the cells out"
    ]


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
