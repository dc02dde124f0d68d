"""The Evidence tab of the demo: the tables of a release's card, two of its plots, scores to choose a point by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leukoscope.evaluation.calibration import calibrated
from leukoscope.evaluation.plots import reliability_diagram
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import passes_map_checks
from leukoscope.models.release import PREDICTIONS, ReleaseInfo
from leukoscope.reports import release_tables as tables
from leukoscope.reports.formatting import Table, count, metric_name, minutes, new_aliases, pooling, share
from leukoscope.reports.html import Section, plot_picture, subjects_section

Metrics = Mapping[str, Any]


def evidence_sections(metrics: Metrics) -> Iterator[Section]:
    """Everything that the Evidence tab shows of a release: a section for each block that was measured.

    Plots are drawn with matplotlib, so only one thread may do so at a time.

    Raises:
        AttributeError, IndexError, KeyError, TypeError, ValueError: metrics.json is damaged or lacks a value.
    """
    if not metrics.get("evaluations"):
        return
    first, unit = metrics["evaluations"][0], metrics["data"]["unit"]
    text = [
        f"By {unit}: every {unit} weighs the same. At equal size: among cells of similar area. In brackets 95 % "
        f"intervals from bootstrap samples of {unit}s. Where the same {unit}s are in training and test, metrics are "
        "too good. “Size alone”: AUROC of nothing but the cell's area."
    ]
    if aliases := new_aliases(metrics):
        text.append(f"Found since to be one subject each: {', '.join(aliases)}.")
    keys = ("detail", "both_sides", "cells", *tables.RESULT_METRICS, "size_aurocs")
    rows = [[tables.evaluation_row(metrics, block)[key] for key in keys] for block in metrics["evaluations"]]
    names = [metric_name(key, unit) for key in tables.RESULT_METRICS]
    columns = ("tested on", f"same {unit}s in training and test?", "cells", *names, "size alone")
    yield Section(f"Unseen {unit}s beside the random split", text, Table(columns, rows, text_columns=2))
    if subjects := first["metrics"].get("subjects"):
        yield subjects_section(subjects, metrics["labels"], unit)
    if block := metrics.get("subject_rule"):
        wrong = f"Wrong: {', '.join(block['wrong'])}." if block["wrong"] else "No subject is on the wrong side."
        text = [f"Pooled by the {pooling(block['rule'])}; judged on {block['judged_on']}.", wrong]
        yield Section("One prediction for a subject", text, tables.subject_rule_table(block))
        yield Section("One prediction from fewer cells", table=tables.fewer_cells_table(block))
    if block := metrics.get("calibration"):
        text = [f"Estimates: {block['estimates']}; judged on {block['judged_on']}."]
        if block["temperature"] == 1 and block.get("fitted_temperature"):
            text.append("The temperature was left out: it did not help; the release gives the scores as trained.")
        picture = plot_picture(reliability_diagram(block), "Reliability diagram: accuracy against confidence")
        yield Section("Are its probabilities calibrated?", text, tables.calibration_table(block, unit), [picture])
    if first.get("shortcut_baselines"):
        text = ["Logistic regression on features that do not show what a cell looks like, on the same cells."]
        yield Section("Baselines without a network", text, tables.baselines_table(first, unit))
    if block := metrics.get("heat_maps"):
        passed = (
            "These maps passed our tests: a map turns with its cell, differs from other cells' maps, and marks what "
            "the prediction depends on."
            if passes_map_checks(block)
            else "A map shows where the network reacts; these maps failed our tests, or were not put to them."
        )
        text = [f"{block['cells']} cells of {block['subjects']} {unit}s; estimates: {block['estimates']}.", passed]
        terms = {name.replace("_", " "): meaning for name, meaning in block["definitions"].items()}
        yield Section("Are its Grad-CAM maps faithful?", text, tables.explanation_table(block), terms=terms)
    if block := metrics.get("views"):
        text = [f"The mean prediction of {block['definition']}; estimates: {block['estimates']}."]
        yield Section("What does test-time augmentation gain?", text, tables.tta_table(block, unit))
    if metrics.get("training"):
        yield Section("What it was trained on", table=_training_table(metrics))
    yield Section("Limits", _limits(metrics))


def _training_table(metrics: Metrics) -> Table:
    training, data, recipe = metrics["training"], metrics["data"], metrics.get("recipe", {})
    unit = data["unit"]
    rows = [
        ("data", data["title"]),
        ("licence", data["licence"]),
        ("cite", data["citation"]),
        (f"cells and {unit}s", f"{count(training['cells'])} cells of {len(training['subjects'])} {unit}s"),
        ("split", training["split"]),
        ("network", f"{recipe.get('architecture', '–')}, {recipe.get('image_size', '–')} px"),
        ("started from", training["start_weights"]),
        ("trained", f"{training['epochs_run']} epochs, {minutes(training['seconds'])}, {training['hardware']}"),
    ]
    return Table(("what", "which"), rows, text_columns=2)


def _limits(metrics: Metrics) -> list[str]:
    unit = metrics["data"]["unit"]
    lines = [
        "Its metrics hold for the stain, the microscope and the framing of its training data only.",
        "A Grad-CAM map shows where the network's evidence lies, not whether that evidence is medically sound.",
    ]
    if subjects := metrics.get("decisions", {}).get("fitted_on", {}).get("subjects", {}):
        people = ", ".join(f"{number} {label}" for label, number in subjects.items())
        few = "few subjects" if unit == "subject" else "it is not known of how many people"
        lines.append(f"Thresholds and intervals rest on {people} {unit}s: {few}.")
    ood = metrics.get("ood", {})
    if worst := ood.get("held_out", {}).get("worst_subject"):
        lines.append(
            f"The OOD detector accepts {share(ood['held_out']['kept_share'])} of true cells, but only "
            f"{share(worst['kept_share'])} of {unit} {worst['subject']}'s {worst['cells']}."
        )
    return [*lines, *(f"Not measured: {one}." for one in ood.get("not_measured", ()))]


@dataclass(frozen=True)
class Scores:
    """Calibrated probabilities of the positive class for unseen subjects' cells, each class sorted."""

    positives: np.ndarray
    negatives: np.ndarray

    def at_sensitivity(self, wanted: float) -> Rates:
        """The highest threshold that still finds the wanted share of positive cells."""
        missed = int(np.floor((1 - wanted) * len(self.positives) + 1e-9))
        threshold = float(self.positives[min(missed, len(self.positives) - 1)])
        found = float((self.positives >= threshold).mean())
        return Rates(threshold, found, float((self.negatives < threshold).mean()))


@dataclass(frozen=True)
class Rates:
    """A threshold and the shares of positive and negative cells that it gets right."""

    threshold: float
    sensitivity: float
    specificity: float

    def predictive_values(self, prevalence: float) -> tuple[float | None, float | None]:
        """Positive and negative predictive value where that share of cells is positive; None where nothing is so."""
        true, false = self.sensitivity * prevalence, (1 - self.specificity) * (1 - prevalence)
        spared, missed = self.specificity * (1 - prevalence), (1 - self.sensitivity) * prevalence
        return (
            true / (true + false) if true + false else None,
            spared / (spared + missed) if spared + missed else None,
        )


def scores_of(release: ReleaseInfo) -> Scores | None:
    """The committed predictions of a two-class release, scaled as the release scales them; None where it has none."""
    metrics = release.metrics
    points = metrics.get("decisions", {}).get("operating_points")
    tested = tables.detailed_evaluation(metrics) if metrics.get("evaluations") else None
    path = release.folder and tested and release.folder / PREDICTIONS / f"{tested['name']}.parquet"
    if not points or not path or not path.is_file():
        return None
    cells = calibrated(CellPredictions.load(path), metrics["calibration"]["temperature"])
    positive = cells.label_names.index(points["positive_label"])
    shares, true = cells.probabilities[:, positive], cells.references == positive
    return Scores(np.sort(shares[true]), np.sort(shares[~true]))
