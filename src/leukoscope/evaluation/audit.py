"""Is a data set fit to be measured on? What would inflate figures, what is odd, and what trivial features already know.

`audit_cells` turns one look at every picture into the findings that `leukoscope audit` writes as JSON, as a page and as
an exit code.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.cells.loading import LoadedCells
from leukoscope.cells.splits import Split, groups_of
from leukoscope.evaluation.duplicates import (
    HASH_DISTANCE,
    SAME_CORRELATION,
    SAME_DIFFERENCE,
    Duplicate,
    find_duplicates,
    linked,
)
from leukoscope.evaluation.looks import ODDITIES, SeenCells
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.evaluation.shortcuts import cross_validation, shortcut_figures, split_unit

AUDIT_SCHEMA_VERSION = 1
# A picture's size is odd only where nearly all others share one.
USUAL_SIZE_SHARE = 0.9
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def published_subjects(data: LoadedCells, train_dir: str | Path | None) -> dict[str, str]:
    """cell id → the subject its publisher names, before the registry joins ids of one person.

    Without a local folder only the joined ids are at hand.
    """
    ids = groups_of(data, "subject")
    if train_dir is None or data.info.find_cells is None or not data.info.subject_aliases:
        return ids
    return ids | {cell.cell_id: cell.subject for cell in data.info.find_cells(Path(train_dir)) if cell.cell_id in ids}


def audit_cells(
    seen: SeenCells, *, subjects: Mapping[str, str] | None = None, split: Split | None = None
) -> dict[str, Any]:
    """All findings, ready to be written as JSON; shares are 0–1.

    Args:
        subjects: cell id → subject as published; the loaded ones where None.
        split: sides that no duplicate may cross; baselines are then measured on it rather than cross-validated.

    Returns:
        `inflating` (one sentence each; empty for a data set fit to be measured on), `unreadable`, `counts`,
        `classes`, `subjects`, `picture_sizes`, `subjects_in_two_classes`, `units_on_two_sides` (of the split),
        `duplicates`, `subject_aliases`, `odd_pictures` and `shortcuts`.
    """
    cells = _Cells.of(seen, subjects, split)
    pairs = _pairs(seen, cells)
    findings = {
        "schema_version": AUDIT_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "leukoscope": __version__,
        "data": _about(seen, cells),
        "split": split and {"strategy": split.strategy, "detail": split.detail, "disjoint_by": split.group},
        "inflating": [],
        "unreadable": list(seen.data.unreadable),
        "counts": {"differences": list(seen.data.count_differences), "passed_over": list(seen.data.passed_over)},
        "classes": _classes(seen, cells),
        "subjects": _subjects(seen, cells),
        "picture_sizes": dict(Counter(f"{w}×{h}" for w, h in (look.size for look in seen.looks)).most_common()),
        "subjects_in_two_classes": _in_two_classes(cells),
        "units_on_two_sides": _on_two_sides(cells),
        "duplicates": _duplicates(pairs),
        "subject_aliases": _aliases(seen.data, cells, pairs),
        "odd_pictures": _odd_pictures(seen, cells),
        "shortcuts": _shortcuts(seen, cells, split),
    }
    return findings | {"inflating": _inflating(findings)}


@dataclass(frozen=True)
class _Cells:
    """What is known of each cell, row by row; `unit` is what an honest split keeps on one side."""

    ids: list[str]
    labels: list[str]
    subjects: list[str]
    folds: list[str]
    units: list[str]
    sides: list[str]
    unit: str

    @classmethod
    def of(cls, seen: SeenCells, subjects: Mapping[str, str] | None, split: Split | None) -> _Cells:
        rows, data = seen.rows, seen.data
        ids = rows["cell_id"][:]
        joined, unit = groups_of(data, "subject"), split_unit(data)
        units = groups_of(data, unit)
        sides = {cell: side for side in ("train", "validation", "test") for cell in getattr(split, side, ())}
        return cls(
            ids,
            [data.info.labels[k] for k in rows["label"][:]],
            [(subjects or joined)[cell] for cell in ids],
            rows["fold"][:],
            [units[cell] for cell in ids],
            [sides.get(cell, "") for cell in ids],
            unit,
        )

    def cross(self, pair: Duplicate) -> dict[str, bool]:
        """What the two cells of a pair lie on different sides of; False where it is not known."""

        def differ(of: Sequence[str]) -> bool:
            return bool(of[pair.first] and of[pair.second]) and of[pair.first] != of[pair.second]

        crossed = {
            "subjects": differ(self.subjects),
            "classes": differ(self.labels),
            "official_folds": differ(self.folds),
            "split_sides": differ(self.sides),
            "units": differ(self.units),
        }
        return crossed | {"inflates": crossed["classes"] or crossed["split_sides"] or crossed["units"]}


def _about(seen: SeenCells, cells: _Cells) -> dict[str, Any]:
    info = seen.data.info
    return {
        "name": info.name,
        "title": info.title,
        "licence": info.licence,
        "citation": info.citation,
        "fingerprint": seen.data.fingerprint,
        "cells": len(cells.ids),
        "background": info.background,
        "unit": cells.unit,
        "official_folds": sorted(set(cells.folds) - {""}),
        "synthetic": info.synthetic,
    }


def _classes(seen: SeenCells, cells: _Cells) -> dict[str, Any]:
    return {
        label: {
            "cells": cells.labels.count(label),
            "subjects": len({s for s, of in zip(cells.subjects, cells.labels, strict=True) if s and of == label}),
            "area": _area_quantiles(seen, [row for row, of in enumerate(cells.labels) if of == label]),
        }
        for label in seen.data.info.labels
    }


def _subjects(seen: SeenCells, cells: _Cells) -> dict[str, Any]:
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, subject in enumerate(cells.subjects):
        if subject:
            rows_of[subject].append(row)
    return {
        subject: {
            "cells": dict(Counter(cells.labels[row] for row in rows)),
            "area": _area_quantiles(seen, rows),
        }
        for subject, rows in sorted(rows_of.items())
    }


def _area_quantiles(seen: SeenCells, rows: Sequence[int]) -> list[float] | None:
    """5, 25, 50, 75 and 95 % quantiles of the cells' area; None where cells are not cut out."""
    areas = [area for row in rows if (area := seen.looks[row].area) is not None]
    return np.quantile(areas, _QUANTILES).tolist() if areas else None


def _in_two_classes(cells: _Cells) -> dict[str, Any]:
    """Subjects with cells of several classes; `suspect` only where most subjects have one, as with diagnoses."""
    labels_of: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for subject, label in zip(cells.subjects, cells.labels, strict=True):
        if subject:
            labels_of[subject][label] += 1
    mixed = {subject: dict(labels) for subject, labels in sorted(labels_of.items()) if len(labels) > 1}
    return {"suspect": 0 < len(mixed) <= len(labels_of) / 2, "subjects": mixed}


def _on_two_sides(cells: _Cells) -> list[str]:
    sides_of: defaultdict[str, set[str]] = defaultdict(set)
    for unit, side in zip(cells.units, cells.sides, strict=True):
        sides_of[unit] |= {side} - {""}
    return sorted(unit for unit, sides in sides_of.items() if len(sides) > 1)


def _pairs(seen: SeenCells, cells: _Cells) -> list[dict[str, Any]]:
    """Every duplicate with what it crosses; blank pictures are alike without showing one cell, and are left out."""
    rows = [row for row, look in enumerate(seen.looks) if "blank" not in look.oddities]
    found = []
    for pair in find_duplicates([seen.looks[row].key for row in rows]):
        placed = Duplicate(rows[pair.first], rows[pair.second], pair.identical, pair.difference, pair.turned)
        found.append(
            {
                "cells": [cells.ids[placed.first], cells.ids[placed.second]],
                "subjects": [cells.subjects[placed.first], cells.subjects[placed.second]],
                "rows": [placed.first, placed.second],
                "identical": placed.identical,
                "difference": placed.difference,
                "turned": placed.turned,
                "across": cells.cross(placed),
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


def _aliases(data: LoadedCells, cells: _Cells, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
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


def _odd_pictures(seen: SeenCells, cells: _Cells) -> dict[str, Any]:
    sizes = Counter(look.size for look in seen.looks)
    usual, count = sizes.most_common(1)[0]
    usual_size = usual if count >= USUAL_SIZE_SHARE * len(seen.looks) else None
    odd: list[dict[str, Any]] = []
    for row, look in enumerate(seen.looks):
        why = [*look.oddities, *(["size"] if usual_size and look.size != usual_size else [])]
        if why:
            odd.append({"cell": cells.ids[row], "row": row, "why": why, "size": list(look.size)})
    return {"counts": {name: sum(name in picture["why"] for picture in odd) for name in ODDITIES}, "pictures": odd}


def _shortcuts(seen: SeenCells, cells: _Cells, split: Split | None) -> dict[str, Any]:
    """The baselines, on the sides a network would get; says why where they cannot be measured."""
    labels = seen.data.info.labels
    black = seen.data.info.background == "black"
    block: dict[str, Any] = {
        "chance_balanced_accuracy": 1 / len(labels),
        "left_out": "background and corner: the cells are cut out on black" if black else "size: no cell is cut out",
    }
    try:
        splits = [split] if split else cross_validation(seen.data)
    except LeukoscopeError as error:
        return block | {"not_measured": str(error)}
    row_of = {cell: row for row, cell in enumerate(cells.ids)}
    if not all(s.test for s in splits):
        return block | {"not_measured": f"--split {splits[0].strategy}: tests no cell"}

    def rows(cells: Sequence[str]) -> np.ndarray:
        return np.asarray([row_of[cell] for cell in cells])

    folds = [(rows([*s.train, *s.validation]), rows(s.test)) for s in splits]
    references = np.asarray([labels.index(label) for label in cells.labels])
    nothing = np.zeros((len(cells.ids), len(labels)))
    truth = CellPredictions(tuple(cells.ids), tuple(cells.units), references, nothing, labels)
    return block | {
        "split": {"strategy": splits[0].strategy, "folds": len(splits), "disjoint_by": splits[0].group},
        "cells": sum(len(test) for _, test in folds),
        "features": shortcut_figures(_features(seen), folds, truth),
    }


def _features(seen: SeenCells) -> dict[str, np.ndarray]:
    features = {name: np.stack([look.features[name] for look in seen.looks]) for name in seen.looks[0].features}
    sizes = [look.size for look in seen.looks]
    return features | ({"picture size": np.log(sizes)} if len(set(sizes)) > 1 else {})


def _inflating(findings: Mapping[str, Any]) -> list[str]:
    """One sentence for each finding that would make figures look better than they are."""
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
