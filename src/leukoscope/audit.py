"""Audit a data set: what it holds, what would inflate metrics, and how well trivial features predict the class.

`survey_cells` counts cells. `scan_cells` opens every image once; `audit_cells` turns the scans into the findings that
`leukoscope audit` writes as JSON and sums up on the terminal.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from leukoscope import RESEARCH_NOTICE, DataError, LeukoscopeError, __version__
from leukoscope.data.cells import SPLIT_SIDES, LoadedCells
from leukoscope.data.images import foreground, pixel_hash
from leukoscope.data.pixel_cache import each_picture
from leukoscope.data.registry import DatasetInfo, ground_rgb
from leukoscope.data.splits import (
    SUBJECT_FOLDS,
    Split,
    cross_validation,
    divided_subjects,
    groups_of,
    linked,
    split_unit,
)
from leukoscope.evaluation.baselines import shortcut_metrics, trivial_features
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import NUM_VIEWS, turned

AUDIT_SCHEMA_VERSION = 3
FEATURE_SIDE = 112  # pixels, at which features are measured; the lines of a scale bar are still visible
BLANK_SPREAD = 3.0  # standard deviation in grey levels; what JPEG leaves of truly blank images is below
# Features that do not lie in the cell; from this share of the way from chance to perfect they are a shortcut.
OUTSIDE_THE_CELL = ("background", "corner", "picture size")
SHORTCUT_SHARE = 0.2
SMALL_CLASS = 20
_SPLIT_WITHOUT_SUBJECTS = {"block": "block", "subject": "random"}
SMALL_SIDE = 32
# The perceptual hash: which of the lowest 16 × 16 frequencies but the mean are above their median (after Zauner 2010,
# "Implementation and benchmarking of perceptual image hash functions"). The usual 8 × 8 cannot tell cells on black
# apart: all are round. JPEG at quality 50 of a picture at half its size moves at most 18 of these 255 bits.
HASH_SIDE = 16
HASH_DISTANCE = 32
# Two pictures are near-duplicates when, at 32 × 32 and over the pixels where either shows a cell, they differ by at
# most this many grey levels (root mean square) and correlate. Of 7,779 C-NMC cells 903 pairs do; by chance, none would.
SAME_DIFFERENCE = 5.0
SAME_CORRELATION = 0.9
NOT_FOUND = "copies that were cropped by a few pixels more, or made brighter or darker; look for those by eye"
"""What the search for copies misses: brightness and place are what it tells pictures of different cells apart by."""
MOST_NEAR = 20  # near-duplicates searched for each picture, before those that cross what none of these did
_ROWS_AT_ONCE = 512
_PAIRS_AT_ONCE = 4096
_LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)


def survey_cells(data: LoadedCells) -> dict[str, Any]:
    """Count the cells of a data set by partition, class and subject, as training would read them; decodes no image.

    Returns:
        Ready for JSON: `partitions` (publisher's partition or "" → label → cells), `subjects` (label → subject, aliases
        joined → cells), `problems` (one line each), `fewest_cells` of the rarest class outside the publisher's test,
        and `split_flags` of `train.py` for the most honest split that these cells allow; [] where it is the default.
    """
    info = data.info
    classes = data.info.labels
    columns = (data.rows[name][:] for name in ("fold", "label", "subject"))
    partitions: defaultdict[str, Counter[str]] = defaultdict(Counter)
    subjects: dict[str, Counter[str]] = {label: Counter() for label in classes}
    training_subjects: dict[str, set[str]] = {label: set() for label in classes}
    counts = Counter[str]()
    for fold, number, subject in zip(*columns, strict=True):
        label = classes[number]
        partitions[fold][label] += 1
        if subject:
            subjects[label][subject] += 1
        if fold not in info.held_out:
            counts[label] += 1
            training_subjects[label] |= {subject} - {""}
    problems = [*data.count_differences, *data.passed_over, *data.some_unreadable()]
    for label in classes:
        if counts[label] < SMALL_CLASS:
            why = f"no metric of fewer than {SMALL_CLASS} is worth stating"
            problems.append(f"{label}: {counts[label]} cell(s); {why}: gather more")
    subjects_to_train = {label: len(of_label) for label, of_label in training_subjects.items()}
    problems += _subject_problems(info, subjects_to_train)
    divided = divided_subjects(data)
    if divided:
        problems.append(
            f"{len(divided)} subject(s) are on two sides of the data set's own splits, for example {divided[0]}: "
            "their test metrics do not apply to a new subject; --split subject keeps each on one side"
        )
    fewest = min(subjects_to_train.values())
    flags: list[str] = []
    if not (partitions.keys() <= set(SPLIT_SIDES) or fewest >= SUBJECT_FOLDS):
        flags = ["--split", _SPLIT_WITHOUT_SUBJECTS[info.group]]
        if fewest > 1:
            flags = ["--split", "subject-cv", "--num_folds", str(min(fewest, 5)), "--no_validation"]
    return {
        "dataset_name": info.name,
        "title": info.title,
        "licence": info.licence,
        "citation": info.citation,
        "partitions": partitions,
        "subjects": subjects,
        "known": list(info.traps),
        "problems": problems,
        "fewest_cells": min(counts[label] for label in classes),
        "split_flags": flags,
    }


def _subject_problems(info: DatasetInfo, subjects: Mapping[str, int]) -> Iterator[str]:
    if not any(subjects.values()):
        split = f"split by --split {_SPLIT_WITHOUT_SUBJECTS[info.group]}"
        fix = "give --subject_pattern or --labels" if info.name == "imagefolder" else split
        yield f"the subjects of these cells are not known: no figure on them applies to a new subject; {fix}"
        return
    for label, number in subjects.items():
        if number < SUBJECT_FOLDS:
            fix = "cross-validate with the flags of the command below, or gather cells of more subjects"
            if min(subjects.values()) < 2:
                fix = "no figure on so few applies to a new subject; gather cells of more subjects"
            few = f"fewer than the {SUBJECT_FOLDS} of --split subject"
            yield f"{label}: {number} subject(s) to train on, {few}: {fix}"


@dataclass(frozen=True)
class CellScan:
    """What the audit keeps of one image."""

    key: PictureKey
    size: tuple[int, int]  # (width, height) in pixels
    features: Mapping[str, np.ndarray]  # name → (D,), see `trivial_features`
    is_blank: bool


def scan_cells(data: LoadedCells) -> tuple[LoadedCells, list[CellScan]]:
    """Open every image once; return the data without damaged cells, and a scan of each, in the order of its rows.

    Raises:
        DataError: no image can be read.
    """
    rows = data.rows
    background = data.info.background

    def scan(row: int, image: Image.Image) -> CellScan:
        small = np.asarray(image.resize((FEATURE_SIDE, FEATURE_SIDE), Image.Resampling.BOX))
        features = {name: values[0] for name, values in trivial_features([small], background).items()}
        is_blank = bool(small.std(axis=(0, 1)).max() < BLANK_SPREAD)
        return CellScan(picture_key(image), image.size, features, is_blank)

    of_rows, problems = each_picture(rows, scan, "reading images", ground=ground_rgb(data.info))
    scans = [scan for scan in of_rows if scan is not None]
    if not scans:
        first = next(iter(problems.values()), f"{data.info.name}: holds no image")
        raise DataError(f"{first}; none of the {len(rows):,} images could be read, so there is nothing to audit")
    return data.without(problems), scans


class _Cell(NamedTuple):
    """The facts of one cell; "" for an unknown one."""

    id: str
    label: str
    subject: str
    fold: str
    side: str
    unit: str


# What a duplicate may cross: key in the findings → field of `_Cell`. A split must keep each of the units on one side.
_CROSSED = {"subjects": "subject", "classes": "label", "official_folds": "fold", "split_sides": "side", "units": "unit"}


def audit_cells(data: LoadedCells, scans: Sequence[CellScan], *, split: Split | None = None) -> dict[str, Any]:
    """Return all findings on scanned cells, ready to be written as JSON; shares are 0–1.

    `inflating` holds one sentence each and is empty for a data set fit to be measured on; `warnings` are of shortcuts
    outside the cell.

    Args:
        split: sides that no duplicate may cross; baselines are then measured on it rather than cross-validated.
    """
    info = data.info
    subject_of = {**groups_of(data, "subject"), **data.published_subjects}
    unit_of = groups_of(data, split_unit(data))
    side_of = {cell: side for side in SPLIT_SIDES for cell in getattr(split, side, ())}
    rows = zip(*(data.rows[name][:] for name in ("cell_id", "label", "fold")), strict=True)
    cells = [
        _Cell(cell, info.labels[label], subject_of[cell], fold, side_of.get(cell, ""), unit_of[cell])
        for cell, label, fold in rows
    ]
    pairs = _pairs(scans, cells)
    copies: dict[str, Any] = {}
    for kind, identical in (("identical", True), ("near", False)):
        of_kind = [pair["across"] for pair in pairs if pair["identical"] == identical]
        copies[kind] = {"pairs": len(of_kind)}
        for key in (*_CROSSED, "inflates"):
            copies[kind][key] = sum(across[key] for across in of_kind)
    findings: dict[str, Any] = {
        "schema_version": AUDIT_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "leukoscope": __version__,
        "data": {
            **info.about(),
            "fingerprint": data.fingerprint,
            "cells": len(cells),
            "background": info.background,
            "unit": split_unit(data),
            "official_folds": sorted({cell.fold for cell in cells} - {""}),
        },
        "split": split and {"strategy": split.strategy, "detail": split.detail, "disjoint_by": split.group},
        "inflating": [],
        "unreadable": list(data.unreadable),
        "survey": survey_cells(data),
        **_divided(cells),
        "duplicates": {**copies, "pairs": pairs, "not_found": NOT_FOUND},
        "subject_aliases": _aliases(data, cells, pairs),
        "blank": [cell.id for cell, scan in zip(cells, scans, strict=True) if scan.is_blank],
        "shortcuts": _shortcuts(data, scans, cells, split),
    }
    return findings | {"inflating": _inflating(findings), "warnings": _shortcut_warnings(findings["shortcuts"])}


def _divided(cells: Sequence[_Cell]) -> dict[str, Any]:
    """The blocks about subjects of several classes and units on several sides."""
    labels_of = defaultdict[str, Counter[str]](Counter)
    sides_of = defaultdict[str, set[str]](set)
    for cell in cells:
        if cell.subject:
            labels_of[cell.subject][cell.label] += 1
        if cell.unit and cell.side:  # cells of unknown subjects are not one subject's
            sides_of[cell.unit].add(cell.side)
    mixed = {subject: dict(labels) for subject, labels in sorted(labels_of.items()) if len(labels) > 1}
    return {
        # Suspect only where most subjects have one class, as with diagnoses.
        "subjects_in_two_classes": {"suspect": 0 < len(mixed) <= len(labels_of) / 2, "subjects": mixed},
        "units_on_two_sides": sorted(unit for unit, sides in sides_of.items() if len(sides) > 1),
    }


def _pairs(scans: Sequence[CellScan], cells: Sequence[_Cell]) -> list[dict[str, Any]]:
    """Duplicates and what they cross, without blank images: these are alike, but do not show one cell."""
    rows = [row for row, scan in enumerate(scans) if not scan.is_blank]
    kinds = [(cells[row].label, cells[row].subject, cells[row].fold, cells[row].side) for row in rows]
    pairs = []
    for duplicate in find_duplicates([scans[row].key for row in rows], kinds):
        first = cells[rows[duplicate.first]]
        second = cells[rows[duplicate.second]]
        crossed = {
            key: _known_and_differ(getattr(first, name), getattr(second, name)) for key, name in _CROSSED.items()
        }
        crossed["inflates"] = crossed["classes"] or crossed["split_sides"] or crossed["units"]
        pairs.append(
            {
                "cells": [first.id, second.id],
                "subjects": [first.subject, second.subject],
                "identical": duplicate.identical,
                "difference": duplicate.difference,
                "turned": duplicate.turned,
                "across": crossed,
            }
        )
    return pairs


def _known_and_differ(first: str, second: str) -> bool:
    """Whether something is known of both cells of a pair, and differs."""
    both_known = bool(first and second)
    return both_known and first != second


def _aliases(data: LoadedCells, cells: Sequence[_Cell], pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of subject ids that share cells, hence are one subject, which a registry entry would join as `same_as`."""
    shared = Counter(frozenset(pair["subjects"]) for pair in pairs if pair["across"]["subjects"])
    size = Counter(cell.subject for cell in cells)
    groups: list[dict[str, Any]] = []
    for group in linked(shared):
        canonical = data.info.canonical_subject(max(group, key=lambda subject: size[subject]))
        unjoined = [subject for subject in group if data.info.canonical_subject(subject) != canonical]
        copies = sum(count for ids, count in shared.items() if not ids.isdisjoint(group))
        groups.append(
            {"subjects": group, "same_as": canonical, "known": not unjoined, "unjoined": unjoined, "copies": copies}
        )
    return groups


def _shortcuts(
    data: LoadedCells, scans: Sequence[CellScan], cells: Sequence[_Cell], split: Split | None
) -> dict[str, Any]:
    """The baselines, on the sides a network would get; or the reason why they cannot be measured."""
    labels = data.info.labels
    black = data.info.background == "black"
    block: dict[str, Any] = {
        "chance_balanced_accuracy": 1 / len(labels),
        "left_out": "background and corner: the cells are cut out on black" if black else "size: no cell is cut out",
    }
    try:
        # A data set's own splits may have no test side.
        if split and (split.test or split.strategy != "given"):
            splits = [split]
        else:
            splits = cross_validation(data)
    except LeukoscopeError as error:
        return block | {"not_measured": str(error)}
    if not all(s.test for s in splits):
        return block | {"not_measured": f"--split {splits[0].strategy}: tests no cell"}
    row_of = {cell.id: row for row, cell in enumerate(cells)}

    def rows(ids: Iterable[str]) -> np.ndarray:
        return np.asarray([row_of[cell] for cell in ids])

    folds = [(rows([*s.train, *s.validation]), rows(s.test)) for s in splits]
    references = np.asarray([labels.index(cell.label) for cell in cells])
    nothing = np.zeros((len(cells), len(labels)))
    ids = tuple(cell.id for cell in cells)
    units = tuple(cell.unit for cell in cells)
    truth = CellPredictions(ids, units, references, nothing, labels)
    features = {}
    for name in scans[0].features:
        features[name] = np.stack([scan.features[name] for scan in scans])
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
    chance = shortcuts["chance_balanced_accuracy"]
    separating = []
    # Two standard deviations of guessing, which is also right by chance on few cells.
    by_luck = 2 * math.sqrt(chance * (1 - chance) / max(1, shortcuts.get("cells", 1)))
    least = chance + max(SHORTCUT_SHARE * (1 - chance), by_luck)
    for name in OUTSIDE_THE_CELL:
        measured = shortcuts.get("features", {}).get(name)
        if measured and measured["balanced_accuracy"] >= least:
            separating.append(f"{name} alone reaches a balanced accuracy of {measured['balanced_accuracy']:.3f}")
    if not separating:
        return []
    return [
        f"{', '.join(separating)} (chance {chance:.3f}): a network can learn that instead of the cell; take the "
        "pictures of all classes alike, or cut the cells out"
    ]


def _inflating(findings: Mapping[str, Any]) -> list[str]:
    """One sentence for each finding that would make metrics better than they are."""
    unit = findings["data"]["unit"]
    lines = []
    for identical, name in ((True, "pixel-identical"), (False, "near-identical")):
        pairs = [pair for pair in findings["duplicates"]["pairs"] if pair["identical"] == identical]
        for across, words in (
            ("units", f"stand in two {unit}s, so that a split may test on a picture it trained on"),
            ("classes", "have two different classes"),
            ("split_sides", "are on two sides of the split"),
        ):
            crossing = [pair["cells"] for pair in pairs if pair["across"][across]]
            if crossing:
                example = " and ".join(crossing[0])
                lines.append(f"{len(crossing)} {name} pair(s) {words}, for example {example}")
    if findings["subjects_in_two_classes"]["suspect"]:
        mixed = list(findings["subjects_in_two_classes"]["subjects"])
        lines.append(f"{len(mixed)} subject(s) have cells of two classes, for example {mixed[0]}")
    on_two = findings["units_on_two_sides"]
    if on_two:
        lines.append(f"{len(on_two)} {unit}(s) are on two sides of the split, for example {on_two[0]}")
    return lines


# Copies


class PictureKey(NamedTuple):
    """What the copies of an image have in common."""

    pixels: str  # hash of its size and all its pixels, equal however the file is stored
    small: np.ndarray  # (32, 32, 3) uint8, the whole image reduced


class Duplicate(NamedTuple):
    """Two rows that show one picture."""

    first: int
    second: int
    identical: bool
    difference: float = 0.0  # root mean square, in grey levels of 0–255
    turned: bool = False  # the second matches only after a turn by right angles or a flip


def picture_key(image: Image.Image) -> PictureKey:
    """Compute the key of a decoded RGB image."""
    small = image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX)
    return PictureKey(pixel_hash(image), np.asarray(small))


def find_duplicates(keys: Sequence[PictureKey], kinds: Sequence[tuple[str, ...]]) -> list[Duplicate]:
    """Find the duplicates among N images, identical ones first.

    Each image is paired with only a few of its copies, so the number of pairs grows linearly with N. Of identical
    images, only the first is compared with other images.

    Args:
        kinds: class, subject and other facts that must be equal for all copies of an image; "" for an unknown fact. An
            image with a copy that differs in a fact is paired with such a copy.
    """
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key.pixels].append(row)
    identical = [Duplicate(*pair, True) for rows in rows_of.values() for pair in _pairs_of_identical(rows, kinds)]
    alone = [rows[0] for rows in rows_of.values()]
    if len(alone) < 2:
        return identical
    pictures = np.stack([keys[row].small for row in alone])
    kind_of = np.asarray([kinds[row] for row in alone])
    near = _NearDuplicates(alone, kind_of)
    upright = _hashes(pictures)
    for view in range(NUM_VIEWS):
        in_view = upright
        if view > 0:
            in_view = _hashes(turned(pictures, view))
        for first, second in _similar_hashes(upright, in_view):
            needed = near.needed(first, second)
            first = first[needed]
            second = second[needed]
            differences, correlations = _compare(pictures[first], turned(pictures[second], view))
            same = (differences <= SAME_DIFFERENCE) & (correlations >= SAME_CORRELATION)
            near.keep(first[same], second[same], differences[same], is_turned=view > 0)
    return [*identical, *near.duplicates.values()]


class _NearDuplicates:
    """The near-duplicates kept so far among N different pictures."""

    def __init__(self, rows: Sequence[int], kinds: np.ndarray):
        """Take the (N,) rows of the pictures and the (N, P) parts of their kinds; "" for an unknown part."""
        self.duplicates: dict[tuple[int, int], Duplicate] = {}
        self._rows = rows
        self._kinds = kinds
        self._number_of = np.zeros(len(rows), dtype=int)  # kept for each second picture
        self._crossed = np.zeros(kinds.shape, dtype=bool)  # whether a picture has a copy that differs in this part

    def needed(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(M,) bool: pairs to compare: the second picture has few copies so far, or the pair crosses a new part."""
        is_new = ~(self._crossed[first] & self._crossed[second])
        crosses_more = (self._crosses(first, second) & is_new).any(axis=1)
        return (self._number_of[second] < MOST_NEAR) | crosses_more

    def keep(self, first: np.ndarray, second: np.ndarray, differences: np.ndarray, *, is_turned: bool) -> None:
        """Keep M pairs; of a pair that is alike in several views, keep the view with the smallest difference."""
        for i, j, difference in zip(first, second, differences, strict=True):
            duplicate = Duplicate(self._rows[i], self._rows[j], False, float(difference), is_turned)
            earlier = self.duplicates.get((i, j))
            if earlier is None:
                self._number_of[j] += 1
            if earlier is None or duplicate.difference < earlier.difference:
                self.duplicates[i, j] = duplicate
        crosses = self._crosses(first, second)
        np.logical_or.at(self._crossed, first, crosses)
        np.logical_or.at(self._crossed, second, crosses)

    def _crosses(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(M, P) bool: the parts of the kind that are known for both pictures and differ."""
        of_first = self._kinds[first]
        of_second = self._kinds[second]
        both_known = (of_first != "") & (of_second != "")
        return both_known & (of_first != of_second)


def _pairs_of_identical(rows: Sequence[int], kinds: Sequence[tuple[str, ...]]) -> list[tuple[int, int]]:
    """Pair each of these rows with the first row and, for each part of the kinds, with the first two that differ."""
    paired = {rows[0]}
    for parts in zip(*(kinds[row] for row in reversed(rows)), strict=True):
        first_of = {part: row for part, row in zip(parts, reversed(rows), strict=True) if part}
        paired.update(sorted(first_of.values())[:2])
    return sorted({(min(pair), max(pair)) for pair in product(paired, rows) if pair[0] != pair[1]})


def _hashes(pictures: np.ndarray) -> np.ndarray:
    """(N, 4) uint64: the perceptual hash of each (S, S, 3) picture."""
    frequencies = dctn(pictures @ _LUMA, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE].reshape(len(pictures), -1)
    frequencies[:, 0] = -np.inf
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)


def _similar_hashes(ones: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (i, j), i < j, whose hashes differ in few bits; some thousand pairs at a time, to bound the memory."""
    for start in range(0, len(ones), _ROWS_AT_ONCE):
        block = ones[start : start + _ROWS_AT_ONCE]
        rest = others[start:]
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
    a = ones @ _LUMA
    b = others @ _LUMA
    a = a - mean(a)[:, None, None]
    b = b - mean(b)[:, None, None]
    spread = np.sqrt(mean(a * a) * mean(b * b))
    # Two pictures without any structure agree in nothing that could be compared.
    correlation = np.divide(mean(a * b), spread, out=np.zeros_like(spread), where=spread > 0)
    return np.sqrt(squares), correlation
