"""The evaluation of a model for a reader: evaluation.json as one page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.prediction import WITHOUT_CLASS
from leukoscope.reports.formatting import count, fraction
from leukoscope.reports.release_tables import confusion_table, metrics_table, robustness_table, subjects_table

WORST = 10
LEFT_OUT = 20


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """Render the content of evaluation.json as Markdown."""
    return "\n\n".join(_paragraphs(evaluation)) + "\n"


def _paragraphs(evaluation: Mapping[str, Any]) -> Iterator[str]:
    metrics = evaluation["metrics"]
    data = evaluation["data"]
    unit = evaluation["unit"]
    intervals = evaluation["intervals"]
    subjects = metrics["subjects"]
    yield f"# {evaluation['model']['name']}"
    yield f"**{RESEARCH_NOTICE}**"
    yield evaluation["training_overlap"]["statement"]
    if data["synthetic"]:
        yield "Synthetic cells: these metrics say nothing about patients."
    of = ""
    if subjects:
        of = f" of {len(subjects)} {unit}s"
    yield f"{data['title']}: {count(metrics['cells'])} cells{of}. The metrics estimate: {evaluation['estimates']}."
    yield str(metrics_table(evaluation["figures"], intervals, unit))
    if intervals["by_subject"] is None:
        yield f"No interval by {unit}: {intervals['by_subject_missing']}. Those by cell are too narrow."
    yield str(confusion_table(metrics, list(metrics["per_class"])))
    decisions = evaluation["decisions"]
    cells = sum(decisions["outcomes"].values())
    decided = decisions["given"]
    without = ", ".join(f"{count(n)} {name}" for name, n in decisions["outcomes"].items() if name in WITHOUT_CLASS)
    right = ""
    if decided:
        right = f", {count(decisions['right'])} of them right"
    named = ""
    if without:
        named = f" ({without})"
    yield f"The release gives a class to {count(decided)} of these {count(cells)} cells{right}{named}."
    rule = evaluation["subject_rule"]
    if rule:
        yield (
            f"The rule for subjects gives a class to {rule['given_a_class']} of {len(rule['subjects'])}; of these, "
            f"sensitivity {fraction(rule['sensitivity'])}, specificity {fraction(rule['specificity'])}."
        )
    robustness = evaluation.get("robustness")
    if robustness:
        yield (
            f"Under small changes of the picture, {count(robustness['cells'])} cells, every "
            f"{robustness['weighted_by']} counting the same:"
        )
        yield str(robustness_table(robustness))
    if subjects:
        yield f"The {unit}s with the lowest accuracy:"
        yield str(subjects_table(subjects, unit, most=WORST))
    left_out = evaluation["left_out"]
    if left_out:
        more = []
        if len(left_out) > LEFT_OUT:
            more = [f"- and {len(left_out) - LEFT_OUT} more, in evaluation.json"]
        yield "\n".join(["Left out:", "", *(f"- {line}" for line in left_out[:LEFT_OUT]), *more])
