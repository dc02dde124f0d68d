"""Audit a data set: what it holds, what would inflate metrics, and how well trivial features predict the class.

`survey_cells` counts cells. `scan_cells` opens every image once; `audit_cells` turns the scans into the findings that
`leukoscope audit` writes as JSON and sums up on the terminal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from sklearn.neighbors import NearestNeighbors

from leukoscope import RESEARCH_NOTICE, DataError, LeukoscopeError, __version__
from leukoscope.data.cells import LoadedCells
from leukoscope.data.images import foreground, pixel_hash
from leukoscope.data.names import SPLIT_SIDES
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
from leukoscope.evaluation.baselines import LEAST_SOLIDITY, is_torn, shortcut_metrics, trivial_features
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
MOST_NEAR = 50  # pictures with the most similar hashes, with which each is compared
_PAIRS_AT_ONCE = 4096
_LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
# What a duplicate may cross: key in the findings → column of the cells. A split must keep a unit on one side.
_CROSSED = {"subjects": "subject", "classes": "label", "official_folds": "fold", "split_sides": "side", "units": "unit"}
_FACTS = ("label", "subject", "fold", "side")


def _cells_of(data: LoadedCells) -> pd.DataFrame:
    """One row a cell, in the order of the data: cell_id, label, subject and fold; "" for an unknown one."""
    columns = {name: data.rows[name][:] for name in ("cell_id", "label", "subject", "fold")}
    cells = pd.DataFrame(columns)
    return cells.assign(label=cells["label"].map(dict(enumerate(data.info.labels))))


def survey_cells(data: LoadedCells) -> dict[str, Any]:
    """Count the cells of a data set by partition, class and subject, as training would read them; decodes no image.

    Returns:
        Ready for JSON: `partitions` (publisher's partition or "" → label → cells), `subjects` (label → subject, aliases
        joined → cells), `problems` (one line each), `fewest_cells` of the rarest class outside the publisher's test,
        and `split_flags` of `train.py` for the most honest split that these cells allow; [] where it is the default.
    """
    info = data.info
    cells = _cells_of(data)
    partitions = {str(fold): Counter(labels) for fold, labels in cells.groupby("fold", sort=False)["label"]}
    named = cells[cells["subject"] != ""]
    to_train = cells[~cells["fold"].isin(info.held_out)]
    counts = Counter(to_train["label"])
    problems = [*data.count_differences, *data.passed_over, *data.some_unreadable()]
    for label in info.labels:
        if counts[label] < SMALL_CLASS:
            why = f"no metric of fewer than {SMALL_CLASS} is worth stating"
            problems.append(f"{label}: {counts[label]} cell(s); {why}: gather more")
    subjects_to_train = {
        label: to_train["subject"][(to_train["label"] == label) & (to_train["subject"] != "")].nunique()
        for label in info.labels
    }
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
        "subjects": {label: Counter(named["subject"][named["label"] == label]) for label in info.labels},
        "known": list(info.traps),
        "problems": problems,
        "fewest_cells": min(counts[label] for label in info.labels),
        "split_flags": flags,
    }


def _subject_problems(info: DatasetInfo, subjects: Mapping[str, int]) -> Iterator[str]:
    if not any(subjects.values()):
        yield (
            "the subjects of these cells are not known: no figure on them applies to a new subject; name them with "
            "--subject_pattern, --subject_folders, --labels or --subject_column, or split by --split "
            f"{_SPLIT_WITHOUT_SUBJECTS[info.group]}"
        )
        return
    for label, number in subjects.items():
        if number < SUBJECT_FOLDS:
            few = f"fewer than the {SUBJECT_FOLDS} of --split subject"
            yield f"{label}: {number} subject(s) to train on, {few}: gather cells of more subjects"


def scan_cells(data: LoadedCells) -> tuple[LoadedCells, pd.DataFrame]:
    """Open every image once; return the data without damaged cells, and what the audit keeps of each in their order.

    Columns: those of `picture_key`, `size` (width and height in pixels), `features` (name → (D,), as
    `trivial_features`), `is_blank` and `is_torn`.

    Raises:
        DataError: no image can be read.
    """
    background = data.info.background

    def scan(row: int, image: Image.Image) -> dict[str, Any]:
        small = np.asarray(image.resize((FEATURE_SIDE, FEATURE_SIDE), Image.Resampling.BOX))
        return {
            **picture_key(image),
            "size": image.size,
            "features": trivial_features(small, background),
            "is_blank": bool(small.std(axis=(0, 1)).max() < BLANK_SPREAD),
            "is_torn": background == "black" and is_torn(small),
        }

    of_rows, problems = each_picture(data.rows, scan, "reading images", ground=ground_rgb(data.info))
    scans = [scan for scan in of_rows if scan is not None]
    if not scans:
        first = next(iter(problems.values()), f"{data.info.name}: holds no image")
        raise DataError(f"{first}; none of the {len(data.rows):,} images could be read, so there is nothing to audit")
    return data.without(problems), pd.DataFrame(scans)


def audit_cells(data: LoadedCells, scans: pd.DataFrame, *, split: Split | None = None) -> dict[str, Any]:
    """Return all findings on scanned cells, ready to be written as JSON; shares are 0–1.

    `inflating` holds one sentence each and is empty for a data set fit to be measured on; `warnings` are of shortcuts
    outside the cell.

    Args:
        split: sides that no duplicate may cross; baselines are then measured on it rather than cross-validated.
    """
    info = data.info
    unit = split_unit(data)
    cells = _cells_of(data).join(scans)
    facts = {
        "subject": {**groups_of(data, "subject"), **data.published_subjects},
        "unit": groups_of(data, unit),
        "side": {cell: side for side in SPLIT_SIDES for cell in getattr(split, side, ())},
    }
    for name, fact_of in facts.items():
        cells[name] = [fact_of.get(cell, "") for cell in cells["cell_id"]]
    pairs = _pairs(cells)
    crossed = [*_CROSSED, "inflates"]
    copies: dict[str, Any] = {}
    for kind, identical in (("identical", True), ("near", False)):
        of_kind = pairs[pairs["identical"] == identical]
        copies[kind] = {"pairs": len(of_kind), **of_kind[crossed].sum().astype(int).to_dict()}
    listed = pairs[["cells", "people", "identical", "difference", "turned"]].rename(columns={"people": "subjects"})
    listed["across"] = pd.Series(pairs[crossed].to_dict("records"), dtype=object)
    divided = _divided(cells)
    shortcuts = _shortcuts(data, cells, split)
    return {
        "schema_version": AUDIT_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "leukoscope": __version__,
        "data": {
            **info.about(),
            "fingerprint": data.fingerprint,
            "cells": len(cells),
            "background": info.background,
            "unit": unit,
            "official_folds": sorted(set(cells["fold"]) - {""}),
        },
        "split": split and {"strategy": split.strategy, "detail": split.detail, "disjoint_by": split.group},
        "inflating": list(_inflating(pairs, divided, unit)),
        "unreadable": list(data.unreadable),
        "survey": survey_cells(data),
        **divided,
        "duplicates": {**copies, "pairs": listed.to_dict("records"), "not_found": NOT_FOUND},
        "subject_aliases": _aliases(data, cells, pairs),
        "blank": cells["cell_id"][cells["is_blank"]].tolist(),
        "shortcuts": shortcuts,
        "warnings": [*_shortcut_warnings(shortcuts), *_torn_outlines(cells)],
    }


def _torn_outlines(cells: pd.DataFrame) -> Iterator[str]:
    """One sentence on cells that are torn or merged; their outline may be a sign of the class."""
    torn = cells.groupby("label")["is_torn"]
    if cells["is_torn"].any():
        shares = ", ".join(f"{share:.1f} {label}" for label, share in (100 * torn.sum() / torn.size()).items())
        yield f"torn, or two cells in one (solidity below {LEAST_SOLIDITY}), of 100 cells of each class: {shares}"


def _divided(cells: pd.DataFrame) -> dict[str, Any]:
    """The blocks about subjects of several classes and units on several sides."""
    labels_of = cells[cells["subject"] != ""].groupby("subject")["label"]
    mixed = {subject: Counter(labels) for subject, labels in labels_of if labels.nunique() > 1}
    # Cells of unknown subjects are not one subject's.
    sides = cells[(cells["unit"] != "") & (cells["side"] != "")].groupby("unit")["side"].nunique()
    return {
        # Suspect only where most subjects have one class, as with diagnoses.
        "subjects_in_two_classes": {"suspect": 0 < len(mixed) <= labels_of.ngroups / 2, "subjects": mixed},
        "units_on_two_sides": sides.index[sides > 1].tolist(),
    }


def _pairs(cells: pd.DataFrame) -> pd.DataFrame:
    """Duplicates and what they cross, without blank images: these are alike, but do not show one cell.

    Columns: those of `find_duplicates`, `cells` and `people` with both names, and for each of `_CROSSED` whether it is
    known of both and differs.
    """
    pairs = find_duplicates(cells[~cells["is_blank"]], _FACTS)
    first = cells.loc[pairs["first"]]
    second = cells.loc[pairs["second"]]
    for name, column in (("cells", "cell_id"), ("people", "subject")):
        pairs[name] = [list(pair) for pair in zip(first[column], second[column], strict=True)]
    for name, column in _CROSSED.items():
        fact, other = (end[column].to_numpy() for end in (first, second))
        pairs[name] = (fact != other) & (fact != "") & (other != "")
    return pairs.assign(inflates=pairs["classes"] | pairs["split_sides"] | pairs["units"])


def _aliases(data: LoadedCells, cells: pd.DataFrame, pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """Groups of subject ids that share cells, hence are one subject, which a registry entry would join as `same_as`."""
    shared = Counter(map(frozenset, pairs["people"][pairs["subjects"]]))
    size = Counter(cells["subject"])
    groups: list[dict[str, Any]] = []
    for group in linked(shared):
        canonical = data.info.canonical_subject(max(group, key=lambda subject: size[subject]))
        unjoined = [subject for subject in group if data.info.canonical_subject(subject) != canonical]
        copies = sum(count for ids, count in shared.items() if not ids.isdisjoint(group))
        groups.append(
            {"subjects": group, "same_as": canonical, "known": not unjoined, "unjoined": unjoined, "copies": copies}
        )
    return groups


def _shortcuts(data: LoadedCells, cells: pd.DataFrame, split: Split | None) -> dict[str, Any]:
    """The baselines, on the sides a network would get; or the reason why they cannot be measured."""
    labels = data.info.labels
    black = data.info.background == "black"
    block: dict[str, Any] = {
        "chance_balanced_accuracy": 1 / len(labels),
        "left_out": "background and corner: the cells are cut out on black" if black else "size: no cell is cut out",
    }
    if split and split.test:
        splits = [split]
    else:
        try:
            splits = cross_validation(data)
        except LeukoscopeError as error:
            return block | {"not_measured": str(error)}
    index = pd.Index(cells["cell_id"])
    folds = []
    for s in splits:
        train, test = (index.get_indexer(ids) for ids in ([*s.train, *s.validation], [*s.test]))
        folds.append((train[train >= 0], test[test >= 0]))  # of a damaged picture there is no cell
    truth = CellPredictions(
        tuple(cells["cell_id"]),
        tuple(cells["unit"]),
        cells["label"].map(labels.index).to_numpy(),
        np.zeros((len(cells), len(labels))),
        labels,
    )
    columns = pd.DataFrame(cells["features"].tolist())
    features = {str(name): np.stack(values.tolist()) for name, values in columns.items()}
    if cells["size"].nunique() > 1:
        features["picture size"] = np.log(cells["size"].tolist())
    return block | {
        "split": {"strategy": splits[0].strategy, "folds": len(splits), "disjoint_by": splits[0].group},
        "cells": sum(len(test) for _, test in folds),
        "features": shortcut_metrics(features, folds, truth),
    }


def _shortcut_warnings(shortcuts: Mapping[str, Any]) -> Iterator[str]:
    """One sentence on the features outside the cell that separate the classes far better than chance."""
    chance = shortcuts["chance_balanced_accuracy"]
    # Two standard deviations of guessing, which is also right by chance on few cells.
    by_luck = 2 * math.sqrt(chance * (1 - chance) / max(1, shortcuts.get("cells", 1)))
    least = chance + max(SHORTCUT_SHARE * (1 - chance), by_luck)
    separating = [
        f"{name} alone reaches a balanced accuracy of {metrics['balanced_accuracy']:.3f}"
        for name, metrics in shortcuts.get("features", {}).items()
        if name in OUTSIDE_THE_CELL and metrics["balanced_accuracy"] >= least
    ]
    if separating:
        yield (
            f"{', '.join(separating)} (chance {chance:.3f}): a network can learn that instead of the cell; take the "
            "pictures of all classes alike, or cut the cells out"
        )


def _inflating(pairs: pd.DataFrame, divided: Mapping[str, Any], unit: str) -> Iterator[str]:
    """One sentence for each finding that would make metrics better than they are."""
    for identical, name in ((True, "pixel-identical"), (False, "near-identical")):
        for across, words in (
            ("units", f"stand in two {unit}s, so that a split may test on a picture it trained on"),
            ("classes", "have two different classes"),
            ("split_sides", "are on two sides of the split"),
        ):
            crossing = pairs["cells"][(pairs["identical"] == identical) & pairs[across]]
            if len(crossing):
                yield f"{len(crossing)} {name} pair(s) {words}, for example {' and '.join(crossing.iloc[0])}"
    in_two_classes = divided["subjects_in_two_classes"]
    if in_two_classes["suspect"]:
        mixed = list(in_two_classes["subjects"])
        yield f"{len(mixed)} subject(s) have cells of two classes, for example {mixed[0]}"
    on_two = divided["units_on_two_sides"]
    if on_two:
        yield f"{len(on_two)} {unit}(s) are on two sides of the split, for example {on_two[0]}"


# Copies


def picture_key(image: Image.Image) -> dict[str, Any]:
    """Compute what the copies of a decoded RGB image have in common.

    Returns:
        `pixels`: hash of its size and all its pixels, equal however the file is stored; `small`: (32, 32, 3) uint8.
    """
    small = image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX)
    return {"pixels": pixel_hash(image), "small": np.asarray(small)}


def find_duplicates(pictures: pd.DataFrame, facts: Sequence[str]) -> pd.DataFrame:
    """Find the duplicates among N pictures, identical ones first.

    Each picture is paired with only a few of its copies, so the number of pairs grows linearly with N. Of identical
    pictures, only the first is compared with others.

    Args:
        pictures: columns of `picture_key`, and the facts.
        facts: class, subject and other columns that must be equal for all copies of a picture; "" for an unknown one.

    Returns:
        first, second (of the index of `pictures`), identical, difference (root mean square, in grey levels of 0–255)
        and turned (whether the second matches only after a turn by right angles or a flip).
    """
    alone = pictures.drop_duplicates("pixels")
    frames = [_identical(pictures, facts)]
    if len(alone) > 1:
        frames.append(_near(alone))
    return pd.concat(frames, ignore_index=True)


def _identical(pictures: pd.DataFrame, facts: Sequence[str]) -> pd.DataFrame:
    """Pair each with one of the same pixels, the first of those that most facts are known of."""
    known_facts = (pictures[list(facts)] != "").sum(axis=1)
    rows = pictures.loc[known_facts.sort_values(ascending=False, kind="stable").index].reset_index(names="row")
    first_of = rows.drop_duplicates("pixels").set_index("pixels")["row"]
    ends = np.sort(np.stack([pictures["pixels"].map(first_of), pictures.index]), axis=0)
    pairs = pd.DataFrame(ends.T, columns=["first", "second"]).query("first != second").sort_values(["first", "second"])
    return pairs.assign(identical=True, difference=0.0, turned=False)


def _near(pictures: pd.DataFrame) -> pd.DataFrame:
    """Pairs of N different pictures that are alike in one of the eight views, with the smallest difference of these."""
    small = np.stack(pictures["small"].tolist())
    hashes = _hashes(small)
    frames = []
    for view in range(NUM_VIEWS):
        in_view = turned(small, view)
        search = NearestNeighbors(n_neighbors=min(MOST_NEAR, len(small)), algorithm="brute").fit(_hashes(in_view))
        distances, nearest = search.kneighbors(hashes)
        # Of bits, the squared distance is the number that differ. The views of a pair are those of its second picture.
        is_near = (distances**2 < HASH_DISTANCE + 0.5) & (nearest > np.arange(len(small))[:, None])
        pairs = np.stack([np.nonzero(is_near)[0], nearest[is_near]], axis=1)
        for first, second in (some.T for some in np.array_split(pairs, len(pairs) // _PAIRS_AT_ONCE + 1)):
            differences, correlations = _compare(small[first], in_view[second])
            same = (differences <= SAME_DIFFERENCE) & (correlations >= SAME_CORRELATION)
            ends = {"first": pictures.index[first[same]], "second": pictures.index[second[same]]}
            frames.append(pd.DataFrame({**ends, "difference": differences[same].astype(float), "turned": view > 0}))
    near = pd.concat(frames, ignore_index=True).sort_values("difference", kind="stable")
    return near.drop_duplicates(["first", "second"]).sort_values(["first", "second"]).assign(identical=False)


def _hashes(pictures: np.ndarray) -> np.ndarray:
    """(N, 256) 0 or 1: the perceptual hash of each (S, S, 3) picture."""
    frequencies = dctn(pictures @ _LUMA, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE].reshape(len(pictures), -1)
    frequencies[:, 0] = -np.inf
    return (frequencies > np.median(frequencies, axis=1, keepdims=True)).astype(np.float32)


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
