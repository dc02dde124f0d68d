"""Several releases side by side, on the cells that all of them predicted: which is best, and whether that is certain.

Each release brings its predictions (predictions/<evaluation>.parquet), so that neither cells nor network are needed.
All are judged on the same bootstrap samples of subjects; a difference whose interval reaches 0 decides nothing.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.evaluation.bootstrap import (
    BOOTSTRAP_SAMPLES,
    LEVEL,
    paired_difference,
    point_metrics,
    subject_intervals,
)
from leukoscope.evaluation.evaluate import ModelPredictions, keep_cells, predictions_in_file
from leukoscope.evaluation.plots import interval_plot
from leukoscope.files import disk_errors
from leukoscope.models.hub_download import find_release
from leukoscope.models.release import CONFIG, METRICS, PREDICTIONS, folder_name
from leukoscope.reports.formatting import Table, count, difference, metric_name, with_span
from leukoscope.reports.html import Section, plot_picture, write_page
from research.commands import make_parser, run

RANKED_BY = "auroc_by_subject"
SHOWN = (RANKED_BY, "auroc_equal_size", "balanced_accuracy_by_subject", "auroc", "f1_weighted", "subject_auroc")


def recorded_predictions(release: Path, evaluation: str, *, name: str, revision: str = "") -> ModelPredictions:
    """The predictions that a release brings along.

    Args:
        evaluation: name of the evaluation, as metrics.json has it.
        name, revision: of the release, to be shown.

    Raises:
        LeukoscopeError: the release has no predictions of that evaluation; the text names those it has.
    """
    path = release / PREDICTIONS / f"{evaluation}.parquet"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.parquet"))) or "none"
        raise LeukoscopeError(
            f"{name}: holds no predictions of the evaluation {evaluation}; it has {there} (--evaluation)"
        )
    return replace(predictions_in_file(path), name=name, revision=revision)


def compare_releases(
    releases: Sequence[ModelPredictions], *, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Rank releases by their AUROC by subject on the cells that all of them predicted.

    Returns:
        cells and subjects compared on, unit (what the subjects are, "subject" or "block"), left_out (a sentence for
        each release with more cells), and rows, best first: model, estimates, trust (whether and why the split is a
        test), metrics (value, low, high by subject; key `figures`) and behind_the_first (difference, low, high,
        share_a_better; None for the first).

    Raises:
        LeukoscopeError: fewer than two releases, no cell or not every class in common, other classes or labels, or
            unknown subjects.
    """
    if len(releases) < 2:
        raise LeukoscopeError("leaderboard: name two releases or more")
    shared = set.intersection(*(set(one.predictions.cell_ids) for one in releases))
    if not shared:
        raise LeukoscopeError(
            "leaderboard: no cell was predicted by all of these releases; compare releases of one data set"
        )
    alike = [replace(one, predictions=keep_cells(one.predictions, tuple(shared))) for one in releases]
    intervals = [subject_intervals(one.predictions, samples=samples, seed=seed) for one in alike]
    points = [point_metrics(one.predictions) for one in alike]
    if any(RANKED_BY not in one for one in points):
        raise LeukoscopeError(
            "leaderboard: the cells that all of these releases predicted lack a class, so that "
            "there is no AUROC; compare releases that share cells of every class"
        )
    order = sorted(range(len(alike)), key=lambda i: -points[i][RANKED_BY])
    first, rows = alike[order[0]], []
    for i in order:
        one, behind = alike[i], None
        if one is not first:
            behind = paired_difference(one.predictions, first.predictions, samples=samples, seed=seed)[RANKED_BY]
        rows.append(
            {
                "model": {"name": one.name, "revision": one.revision},
                "estimates": one.estimates,
                "trust": {key: one.overlap[key] for key in ("verdict", "statement")},
                "figures": {key: {"value": points[i][key], **intervals[i][key]} for key in SHOWN if key in points[i]},
                "behind_the_first": behind,
            }
        )
    return {
        "notice": RESEARCH_NOTICE,
        "cells": len(shared),
        "subjects": len(set(first.predictions.subjects)),
        "unit": first.unit,
        "level": LEVEL,
        "left_out": [
            f"{one.name}: {more:,} cells that not every release predicted"
            for one in releases
            if (more := len(one.predictions.cell_ids) - len(shared))
        ],
        "rows": rows,
    }


def columns(board: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads of the board's columns."""
    return ("", "release", *(metric_name(key, board["unit"]) for key in SHOWN), "behind the first", "estimates")


def table_rows(board: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The board as a person reads it, in the order of `columns`."""
    return [
        (
            str(place),
            _called(row["model"]),
            *(with_span(row["figures"].get(key)) for key in SHOWN),
            difference(row["behind_the_first"]),
            row["estimates"],
        )
        for place, row in enumerate(board["rows"], start=1)
    ]


def first_place(board: Mapping[str, Any]) -> str:
    """Whether the first place is settled, in a sentence."""
    first, *others = board["rows"]
    open_to = [_called(row["model"]) for row in others if row["behind_the_first"]["high"] >= 0]
    if open_to:
        return (
            f"Not settled: {', '.join(open_to)} may be as good as {_called(first['model'])} on other {board['unit']}s."
        )
    return f"{_called(first['model'])} leads: no interval of the difference reaches 0."


def write_board(path: Path, board: Mapping[str, Any]) -> Path:
    """Write the board as one HTML page with a plot."""
    lines = [
        (_called(row["model"]), found["value"], {"low": found["low"], "high": found["high"]}, None)
        for row in board["rows"]
        if (found := row["figures"][RANKED_BY])
    ]
    unit = board["unit"]
    ranked_by = metric_name(RANKED_BY, unit)
    alt = f"{ranked_by} of each release with its interval by {unit}, as in the table."
    ranking = Section(
        "Side by side",
        [
            f"Intervals: {board['level']:.0%}, bootstrap samples of {unit}s; differences on the same samples.",
            *board["left_out"],
        ],
        Table(columns(board), table_rows(board), text_columns=2),
        [plot_picture(interval_plot(lines, axis=ranked_by, unit=unit), alt)],
    )
    splits = [
        Section(_called(row["model"]), [row["trust"]["statement"]], verdict=row["trust"]["verdict"])
        for row in board["rows"]
    ]
    lead = f"{count(board['cells'])} cells of {board['subjects']} {unit}s, predicted by every release."
    return write_page(path, "Leaderboard", [lead, first_place(board)], [ranking, *splits])


def _called(model: Mapping[str, str]) -> str:
    return f"{model['name']}@{model['revision'][:12]}" if model["revision"] else model["name"]


def parser() -> ArgumentParser:
    """The program's flags."""
    made = make_parser("leaderboard", __doc__)
    made.add_argument("releases", nargs="+", help="Release folders, or Hub ids owner/name@revision.")
    made.add_argument("--evaluation", default="subject_cv", help="Compare the predictions of this one.")
    made.add_argument("--output", type=Path, help="Write the comparison as an HTML page.")
    made.add_argument("--seed", type=int, default=0, help="Of the bootstrap samples.")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Compare releases, print the board, and write it as a page where one is named."""
    given = parser().parse_args(argv)
    compared = []
    for release in given.releases:
        folder, name, revision = find_release(release, (CONFIG, METRICS, f"{PREDICTIONS}/*.parquet"))
        # The path of a local folder is private; its name is not.
        name = name if revision else folder_name(folder)
        compared.append(recorded_predictions(folder, given.evaluation, name=name, revision=revision))
    board = compare_releases(compared, seed=given.seed)
    print(f"{Table(columns(board), table_rows(board), text_columns=2)}\n")
    print(f"{board['cells']:,} cells of {board['subjects']} {board['unit']}s", first_place(board), sep="\n")
    for line in board["left_out"]:
        print(line)
    for row in board["rows"]:
        if row["trust"]["verdict"] != "good":
            print(f"{row['model']['name']}: {row['trust']['statement']}")
    if given.output:
        with disk_errors(f"--output {given.output}: cannot be written", "name another file"):
            given.output.parent.mkdir(parents=True, exist_ok=True)
            write_board(given.output, board)
        print(f"page: {given.output}")
    print(RESEARCH_NOTICE)


if __name__ == "__main__":
    run(main)
