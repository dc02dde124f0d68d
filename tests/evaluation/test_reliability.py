"""Figures show what the blocks hold: the points lie where the numbers say, and words tell which is which."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from leukoscope.evaluation.calibration import calibration_block
from leukoscope.evaluation.decisions import decision_block
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.evaluation.reliability import reliability_diagram, risk_coverage_curve, roc_figure


@pytest.fixture(scope="module")
def answers(calibrated_cells: Callable[..., CellPredictions]) -> CellPredictions:
    return calibrated_cells(900, subjects=4, too_sharp=2.0)


@pytest.fixture(scope="module")
def decisions(answers: CellPredictions) -> dict[str, Any]:
    return decision_block(answers, "HEM")


def _drawn(axes: Any) -> dict[str, np.ndarray]:
    """What the legend names → the (M, 2) points drawn for it."""
    return {line.get_label(): line.get_xydata() for line in axes.get_lines() if line.get_label()[0] != "_"}


def _is_picture(figure: Any) -> bool:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue().startswith(b"\x89PNG")


def test_the_reliability_diagram_shows_both_sides_bin_by_bin(answers: CellPredictions) -> None:
    block = calibration_block(answers)
    figure = reliability_diagram(block)
    points = _drawn(figure.axes[0])

    for (words, drawn), side in zip(points.items(), ("before", "after"), strict=True):
        assert drawn.tolist() == [[b["confidence"], b["accuracy"]] for b in block["reliability"][side]]
        assert f"ECE {block[side]['ece']:.3f}" in words
    assert figure.axes[1].get_xlabel() == "confidence (probability of the answer given)"
    assert _is_picture(figure)


def test_the_risk_coverage_curve_marks_the_default_threshold(decisions: dict[str, Any]) -> None:
    block = decisions["abstention"]
    figure = risk_coverage_curve(block)
    (_, curve), (words, default) = _drawn(figure.axes[0]).items()

    assert curve.tolist() == [[point["coverage"], point["risk"]] for point in block["curve"]]
    assert default.tolist() == [[block["default"]["coverage"], block["default"]["risk"]]]
    assert words.startswith(f"no class below {block['default']['threshold']:.2f}: ")
    assert _is_picture(figure)


def test_operating_points_stand_where_unseen_subjects_found_them(
    answers: CellPredictions, decisions: dict[str, Any]
) -> None:
    block = decisions["operating_points"]
    figure = roc_figure(answers, block)
    drawn = _drawn(figure.axes[0])

    for (words, at), name in zip(list(drawn.items())[1:], ("sensitivity_95", "specificity_95", "youden"), strict=True):
        found = block["points"][name]["cross_fitted"]
        assert at.tolist() == [[1 - found["specificity"], found["sensitivity"]]]
        assert words.endswith(f"{found['sensitivity']:.1%} and {found['specificity']:.1%}, cross-fitted")
    assert figure.axes[0].get_ylabel() == "sensitivity (share of HEM cells found)"
    assert _is_picture(figure)
