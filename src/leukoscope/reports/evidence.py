"""The blocks of a release's metrics.json as sections of text, tables and plots: the Evidence tab of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leukoscope.evaluation.plots import reliability_diagram, subjects_curve
from leukoscope.inference.gradcam import passes_map_checks
from leukoscope.reports.formatting import Table, count, gain, metric_name, minutes, new_aliases, pooling, share
from leukoscope.reports.html import Section, plot_picture, subjects_section
from leukoscope.reports.release_tables import (
    RESULT_METRICS,
    baselines_table,
    evaluation_row,
    explanation_table,
    subject_rule_table,
    tta_table,
)

Metrics = Mapping[str, Any]


def evidence_sections(metrics: Metrics) -> list[Section]:
    """Everything that the Evidence tab shows of a release, one section for each question.

    Args:
        metrics: the content of metrics.json.

    Returns:
        sections for each block that was measured; none without evaluations. Plots are drawn with matplotlib, so only
        one thread may call this at a time.

    Raises:
        AttributeError, IndexError, KeyError, TypeError, ValueError: metrics.json is damaged or lacks a value.
    """
    if not metrics.get("evaluations"):
        return []
    first = metrics["evaluations"][0]
    # What the test sets are disjoint by: blocks of neighbouring images where subjects are unknown.
    unit = "block" if metrics.get("data", {}).get("unit") == "block" else "subject"
    sections = [_evaluations(metrics, unit)]
    if subjects := first["metrics"].get("subjects"):
        sections.append(subjects_section(subjects, metrics["labels"], unit))
    if block := metrics.get("subject_rule"):
        sections.append(_one_prediction(block))
    if block := metrics.get("calibration"):
        sections.append(_calibration(block))
    if first.get("shortcut_baselines"):
        about = "Logistic regression on features that do not show what a cell looks like, on the same cells."
        sections.append(Section("Baselines without a network", [about], baselines_table(first, unit)))
    if block := metrics.get("heat_maps"):
        sections.append(_maps(block, unit))
    if block := metrics.get("views"):
        sections.append(_tta(block, unit))
    if metrics.get("training"):
        sections.append(_training(metrics, unit))
    return [*sections, Section("Limits", _limits(metrics, unit))]


def _evaluations(metrics: Metrics, unit: str) -> Section:
    keys = ("detail", "both_sides", "cells", *RESULT_METRICS, "size_aurocs")
    names = [metric_name(key, unit) for key in RESULT_METRICS]
    rows = [[evaluation_row(metrics, block)[key] for key in keys] for block in metrics["evaluations"]]
    text = [
        f"By {unit}: every {unit} weighs the same. At equal size: among cells of similar area. In brackets 95 % "
        f"intervals from bootstrap samples of {unit}s. “Size alone”: AUROC by {unit} and at equal size of nothing "
        f"but the cell's area. Where the same {unit}s are in training and test, metrics are too good.",
    ]
    if aliases := new_aliases(metrics):
        text.append(f"Found since to be one subject each: {', '.join(aliases)}.")
    columns = ("tested on", f"same {unit}s in training and test?", "cells", *names, "size alone")
    return Section(f"Unseen {unit}s beside the random split", text, Table(columns, rows, text_columns=2))


def _calibration(block: Metrics) -> Section:
    before, after = (share(block[side]["ece"]) for side in ("before", "after"))
    alt = f"Reliability diagram: expected calibration error {before} as trained, {after} when temperature-scaled"
    text = [f"{alt}. Estimates: {block['estimates']}; judged on {block['judged_on']}."]
    if block["temperature"] == 1 and block.get("fitted_temperature"):
        text.append("The temperature was left out: it did not help; the release gives the scores as trained.")
    return Section("Are its probabilities calibrated?", text, pictures=[plot_picture(reliability_diagram(block), alt)])


def _tta(block: Metrics, unit: str) -> Section:
    agreeing, others = block["agreeing_cells"], block["disagreeing_cells"]
    gained = (
        f"The mean prediction of {block['definition']}; {count(block['cells'])} cells; estimates: "
        f"{block['estimates']}. The predictions agree on {count(agreeing['cells'])} cells "
        f"({share(agreeing['accuracy'])} correct) and differ on {count(others['cells'])} "
        f"({share(others['accuracy'])})."
    )
    return Section("What does test-time augmentation gain?", [gained], tta_table(block, unit))


def _one_prediction(block: Metrics) -> Section:
    few, many = block["curve"][0], block["curve"][-1]
    alt = (
        f"Balanced accuracy over subjects against the number of cells used: {share(few['balanced_accuracy'])} with "
        f"{few['cells']}, {share(many['balanced_accuracy'])} with {many['cells']}"
    )
    text = [
        f"Pooled by the {pooling(block['rule'])}. Each subject is judged with pooling and threshold chosen and fitted "
        "on other subjects. In brackets 95 % intervals, exact for shares.",
        f"Wrong: {', '.join(block['wrong'])}." if block["wrong"] else "No subject is on the wrong side.",
        f"{block['measured']['subjects']} subjects of one laboratory, each of one class only: nothing here applies to "
        "mixed marrow, to minimal residual disease, or to another stain.",
    ]
    pictures = [plot_picture(subjects_curve(block), alt)]
    return Section("One prediction for a subject", text, subject_rule_table(block), pictures)


def _maps(block: Metrics, unit: str) -> Section:
    text = [f"{block['cells']} cells of {block['subjects']} {unit}s; estimates: {block['estimates']}."]
    gains = [(block.get(check) or {}).get("gain_over_random", {}).get("mean") for check in ("deletion", "insertion")]
    if None not in gains:
        removed, shown = ("more" if one > 0 else "no more" for one in gains)
        text.append(
            f"Removing what the map marks lowers the class's probability {removed} than removing random pixels "
            f"({gain(gains[0])}); showing only that raises it {shown} than showing random pixels ({gain(gains[1])})."
        )
    text.append(
        "These maps passed our tests: a map turns with its cell, differs from other cells' maps, and marks what the "
        "prediction depends on."
        if passes_map_checks(block)
        else "A map shows where the network reacts; these maps failed our tests, or were not put to them."
    )
    terms = {name.replace("_", " "): meaning for name, meaning in block["definitions"].items()}
    return Section("Are its Grad-CAM maps faithful?", text, explanation_table(block), terms=terms)


def _training(metrics: Metrics, unit: str) -> Section:
    training, data, recipe = metrics["training"], metrics.get("data", {}), metrics.get("recipe", {})
    rows = [
        ("data", data.get("title", data.get("name", "–"))),
        ("licence", data.get("licence", "–")),
        ("cite", data.get("citation", "–")),
        (f"cells and {unit}s", f"{count(training['cells'])} cells of {len(training['subjects'])} {unit}s"),
        ("split", training["split"]),
        ("network", f"{recipe.get('architecture', '–')}, {recipe.get('image_size', '–')} px"),
        ("started from", training["start_weights"]),
        ("trained", f"{training['epochs_run']} epochs, {minutes(training['seconds'])}, {training['hardware']}"),
    ]
    return Section("What it was trained on", table=Table(("what", "which"), rows, text_columns=2))


def _limits(metrics: Metrics, unit: str) -> list[str]:
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
