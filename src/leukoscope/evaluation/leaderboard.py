"""Several releases side by side, on the cells that all of them answered: who leads, and whether that is settled.

Each release brings its answers along (predictions/<evaluation>.parquet), so that no cell and no network is needed. All
are judged on the same drawn subjects; a lead whose interval reaches 0 is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.evaluation.answering import Answered, answers_in_file, only
from leukoscope.evaluation.draws import DRAWS, LEVEL
from leukoscope.evaluation.evaluation_page import figure_name
from leukoscope.evaluation.figures import interval_plot
from leukoscope.evaluation.intervals import paired_difference, point_figures, subject_intervals
from leukoscope.evaluation.pages import Section, figure_picture, write_page
from leukoscope.models.release_files import PREDICTIONS

RANKED_BY = "auroc_by_subject"
SHOWN = (RANKED_BY, "auroc_equal_size", "balanced_accuracy_by_subject", "auroc", "f1_weighted", "subject_auroc")
COLUMNS = ("", "release", *(figure_name(key) for key in SHOWN), "behind the first", "speaks of")


def recorded_answers(release: Path, evaluation: str, *, name: str, revision: str = "") -> Answered:
    """The answers that a release brings along.

    Args:
        evaluation: name of the evaluation, as metrics.json has it.
        name, revision: of the release, to be shown.

    Raises:
        LeukoscopeError: the release has no answers of that evaluation; the text names those it has.
    """
    path = release / PREDICTIONS / f"{evaluation}.parquet"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.parquet"))) or "none"
        raise LeukoscopeError(f"{name}: holds no answers of the evaluation {evaluation}; it has {there} (--evaluation)")
    return replace(answers_in_file(path), name=name, revision=revision)


def compare_releases(answered: Sequence[Answered], *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Rank releases by their AUROC by subject on the cells that all of them answered.

    Returns:
        cells and subjects compared on, left_out (a sentence for each release with more cells), and rows, best first:
        model, estimates, trust (verdict and statement on the split), figures (key → value, low, high by subject) and
        behind_the_first (difference, low, high, share_a_better; None for the first).

    Raises:
        LeukoscopeError: fewer than two releases, no cell in common, other classes or labels, or unknown subjects.
    """
    if len(answered) < 2:
        raise LeukoscopeError("leukoscope leaderboard: name two releases or more")
    shared = set.intersection(*(set(one.answers.cell_ids) for one in answered))
    if not shared:
        raise LeukoscopeError(
            "leukoscope leaderboard: no cell was answered by all of these releases; compare releases of one data set"
        )
    alike = [replace(one, answers=only(one.answers, tuple(shared))) for one in answered]
    points = [point_figures(one.answers) for one in alike]
    order = sorted(range(len(alike)), key=lambda i: -points[i][RANKED_BY])
    first = alike[order[0]]
    rows = []
    for i in order:
        behind = None
        if i != order[0]:
            behind = paired_difference(alike[i].answers, first.answers, draws=draws, seed=seed)[RANKED_BY]
        rows.append(_row(alike[i], points[i], behind, draws, seed))
    return {
        "notice": RESEARCH_NOTICE,
        "cells": len(shared),
        "subjects": len(set(first.answers.subjects)),
        "level": LEVEL,
        "left_out": [
            f"{one.name}: {more:,} cells that not every release answered"
            for one in answered
            if (more := len(one.answers.cell_ids) - len(shared))
        ],
        "rows": rows,
    }


def _row(
    one: Answered, points: Mapping[str, float], behind: Mapping[str, float] | None, draws: int, seed: int
) -> dict[str, Any]:
    intervals = subject_intervals(one.answers, draws=draws, seed=seed)
    return {
        "model": {"name": one.name, "revision": one.revision},
        "estimates": one.estimates,
        "trust": {key: one.overlap[key] for key in ("verdict", "statement")},
        "figures": {key: {"value": points[key], **intervals[key]} for key in SHOWN if key in points},
        "behind_the_first": behind,
    }


def table_rows(board: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The board as a person reads it, in the order of `COLUMNS`."""
    return [
        (
            str(place),
            _called(row["model"]),
            *(_figure(row["figures"].get(key)) for key in SHOWN),
            _difference(row["behind_the_first"]),
            row["estimates"],
        )
        for place, row in enumerate(board["rows"], start=1)
    ]


def verdict(board: Mapping[str, Any]) -> str:
    """Whether the first place is settled, in a sentence."""
    first, *others = board["rows"]
    open_to = [_called(row["model"]) for row in others if row["behind_the_first"]["high"] >= 0]
    if open_to:
        return f"Not settled: {', '.join(open_to)} may be as good as {_called(first['model'])} on other patients."
    return f"{_called(first['model'])} leads: no interval of the difference reaches 0."


def write_board(path: Path, board: Mapping[str, Any]) -> Path:
    """The board as one HTML page with a picture."""
    lead = [
        f"{board['cells']:,} cells of {board['subjects']} subjects, answered by every release.",
        verdict(board),
    ]
    lines = [
        (_called(row["model"]), found["value"], {"low": found["low"], "high": found["high"]}, None)
        for row in board["rows"]
        if (found := row["figures"][RANKED_BY])
    ]
    alt = f"{figure_name(RANKED_BY)} of each release with its interval by subject, as in the table."
    doubts = [
        Section(_called(row["model"]), [row["trust"]["statement"]], verdict=row["trust"]["verdict"])
        for row in board["rows"]
    ]
    ranking = Section(
        "Side by side",
        [f"Intervals: {board['level']:.0%}, drawing subjects anew; differences on the same draws.", *board["left_out"]],
        COLUMNS,
        table_rows(board),
        [figure_picture(interval_plot(lines, axis=figure_name(RANKED_BY)), alt)],
    )
    return write_page(path, "Leaderboard", lead, [ranking, *doubts])


def _called(model: Mapping[str, str]) -> str:
    return f"{model['name']}@{model['revision'][:12]}" if model["revision"] else model["name"]


def _figure(found: Mapping[str, float] | None) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})" if found else "–"


def _difference(found: Mapping[str, float] | None) -> str:
    return f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})" if found else "–"
