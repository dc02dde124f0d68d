"""What a run writes down about itself: how it was made, what it answered, and what those answers are worth.

Every block of figures says what it estimates; a number without that word misleads.
"""

from __future__ import annotations

import csv
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.cells.cache import FramedCells
from leukoscope.cells.files import write_whole
from leukoscope.cells.splits import Split
from leukoscope.evaluation.metrics import CellPredictions, headline, measure, size_only_answers
from leukoscope.models.recipes import Recipe
from leukoscope.models.release_files import SCHEMA_VERSION
from leukoscope.training.config import TrainingConfig
from leukoscope.training.environment import hardware, versions

THESE_WEIGHTS = "these weights"


def record_answers(out: Path, answers: CellPredictions, cells: FramedCells, split: Split) -> dict[str, Any]:
    """Keep the answers on the test side, and the baseline's on the same cells, in the run folder; judge both."""
    answers.save(out / "predictions.parquet")
    block = judge("test", THESE_WEIGHTS, answers, split)
    if cells.data.info.background == "black":
        baseline = size_baseline(answers, cells, split)
        baseline.save(out / "size_only_predictions.parquet")
        block["size_only_baseline"] = headline(measure(baseline))
    return block


def judge(name: str, estimates: str, answers: CellPredictions, split: Split) -> dict[str, Any]:
    """One block of metrics.json: figures, and what they estimate."""
    return {
        "name": name,
        "estimates": estimates,
        "split": {
            "strategy": split.strategy,
            "detail": split.detail,
            "disjoint_by": split.group,
            "seed": split.seed,
            "fingerprint": split.fingerprint,
            "train_cells": len(split.train),
            "notes": list(split.notes),
        },
        "thresholds_fitted_on": None,
        "metrics": measure(answers),
    }


def size_baseline(answers: CellPredictions, cells: FramedCells, split: Split) -> CellPredictions:
    """What cell area alone answers for the same cells, fitted on the same training side."""
    train = cells.rows(split.train)
    areas, tested = cells.areas_of(train), cells.areas_of(cells.rows(answers.cell_ids))
    assert areas is not None and tested is not None, "cells are cut out"
    return size_only_answers(areas, cells.labels[train], tested, answers)


def describe_run(
    config: TrainingConfig, recipe: Recipe, cells: FramedCells, split: Split, started_from: str
) -> dict[str, Any]:
    """The part of metrics.json that says how a model was made."""
    data, rows = cells.data, cells.rows(split.train)
    subjects = {cells.subjects[row] for row in rows} - {""}
    shares = np.bincount(cells.labels[rows], minlength=len(data.info.labels)) / len(rows)
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        "recipe": {**asdict(recipe)},
        "labels": list(data.info.labels),
        "positive_label": data.info.positive_label,
        "data": {
            "name": data.info.name,
            "title": data.info.title,
            "licence": data.info.licence,
            "citation": data.info.citation,
            "fingerprint": data.fingerprint,
            "cells": sum(len(rows) for rows in data.cells.values()),
            "unreadable": len(data.unreadable),
            "count_differences": list(data.count_differences),
            "synthetic": data.info.synthetic,
            "unit": data.info.group,
        },
        "training": {
            "cells": len(split.train),
            "subjects": sorted(subjects),
            # The frequencies its probabilities speak for: elsewhere, with other frequencies, they shift.
            "class_frequencies": dict(zip(data.info.labels, shares.tolist(), strict=True)),
            "split": split.detail,
            "start_weights": started_from,
            "seed": config.run.seed,
            "command": config.command(),
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "hardware": hardware(),
            "versions": versions(),
        },
        "evaluations": [],
    }


def write_args(path: Path, config: TrainingConfig, recipe: Recipe) -> None:
    """Write args.yaml: the flags as given, and the recipe they came to."""
    content = {"flags": config.as_dict(), "resolved_recipe": plain(asdict(recipe)), "leukoscope": __version__}
    write_whole(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def plain(value: Any) -> Any:
    """Tuples as lists, as YAML and JSON give them back."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def append_row(file: Any, row: dict[str, Any]) -> None:
    """Add one epoch to summary.csv."""
    writer = csv.DictWriter(file, fieldnames=list(row))
    if row["epoch"] == 1:
        writer.writeheader()
    writer.writerow(row)
    file.flush()


def result_lines(block: dict[str, Any]) -> str:
    """A block of figures for the terminal, the size-only baseline below it."""
    figures, baseline = block["metrics"], block.get("size_only_baseline")
    auroc = "–" if figures["auroc"] is None else f"{figures['auroc']:.3f}"
    lines = [
        f"test ({figures['cells']:,} cells): accuracy {figures['accuracy']:.3f}, balanced accuracy "
        f"{figures['balanced_accuracy']:.3f}, weighted F1 {figures['f1_weighted']:.3f}, AUROC {auroc}"
    ]
    if baseline:
        lines.append(
            f"  cell size alone: balanced accuracy {baseline['balanced_accuracy']:.3f}, "
            f"weighted F1 {baseline['f1_weighted']:.3f}"
        )
    return "\n".join([*lines, f"  {RESEARCH_NOTICE}"])
