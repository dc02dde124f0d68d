"""What a release's metrics.json says, as HTML: how good on unseen patients, how calibrated, from what data, its limits.

Every block is left out where the release did not measure it; nothing here is computed anew but the drawings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from threading import Lock
from typing import TYPE_CHECKING, Any

from leukoscope.web.panels import details, notice, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metrics = Mapping[str, Any]

_SIDES = {"subject": "no", "cell": "yes", "block": "not known; no block of neighbouring images"}
# matplotlib's fonts are not made for two threads.
_drawing = Lock()


def what_it_says(name: str, metrics: Metrics) -> str:
    """Everything about one release, one section a question."""
    if not metrics.get("evaluations"):
        return f'<p class="lk-note">{escape(name)} brings no measurements of its own (metrics.json).</p>{notice()}'
    return "".join(block(metrics) for block in _BLOCKS) + notice()


def _section(title: str, html: str, text: Sequence[str] = ()) -> str:
    paragraphs = "".join(f'<p class="lk-note">{escape(line)}</p>' for line in text if line)
    return f"<section><h3>{escape(title)}</h3>{paragraphs}{html}</section>"


def _evaluations(metrics: Metrics) -> str:
    from leukoscope.hub.tables import RESULT_METRICS
    from leukoscope.hub.wording import count, joined_since, share, with_interval

    names = ("AUROC by subject", "AUROC at equal size", "balanced accuracy by subject", "AUROC", "weighted F1")
    heads = ("tested on", "patients on both sides?", "cells", *names, "size alone")
    joined = joined_since(metrics)
    rows = []
    for block in metrics["evaluations"]:
        side = _SIDES.get(block["split"]["disjoint_by"], "not known")
        shown = [with_interval(block, key) for key in RESULT_METRICS]
        alone = share((block.get("size_only_baseline") or {}).get("auroc_by_subject"))
        side = "a few, found since" if joined and side == "no" else side
        rows.append((block["split"]["detail"], side, count(block["metrics"]["cells"]), *shown, alone))
    text = [
        "By subject: every patient weighs the same. At equal size: among cells of like area. In brackets 95 % "
        "intervals from drawing whole patients anew. “Size alone”: AUROC by subject of nothing but the cell's area. A "
        "random split that has patients on both sides flatters.",
        f"Found since to be one person each: {', '.join(joined)}." if joined else "",
    ]
    return _section("Unseen patients beside the random split", table(heads, rows, "Evaluations"), text)


def _subjects(metrics: Metrics) -> str:
    from leukoscope.evaluation.figures import subject_strip

    subjects = metrics["evaluations"][0]["metrics"].get("subjects")
    if not subjects:
        return ""
    worst = min(subjects.items(), key=lambda item: item[1]["accuracy"])
    alt = (
        f"Accuracy of each of {len(subjects)} subjects by class; the worst is {worst[0]} ({worst[1]['label']}) with "
        f"{worst[1]['accuracy']:.2f} of {worst[1]['cells']} cells answered right"
    )
    drawn = _picture(lambda: subject_strip(subjects, metrics["labels"]), alt)
    return _section("Patient by patient", drawn, [f"{alt}."])


def _patients(metrics: Metrics) -> str:
    from leukoscope.evaluation.figures import patients_curve
    from leukoscope.hub.wording import count, pooling, share, span

    block = metrics.get("patients")
    if not block:
        return ""
    measured, positive = block["measured"], block["positive_label"]
    rows = [("AUROC of persons", f"{share(measured['auroc']['value'])} ({span(measured['auroc'])})")]
    for name, key in ((f"sensitivity for {positive}", "sensitivity"), ("specificity", "specificity")):
        one = measured[key]
        rows.append((name, f"{one['right']} of {one['of']}: {share(one['share'])} ({span(one)})"))
    error = measured["error_rate"]
    rows += [
        ("given a class", f"{measured['given_a_class']} of {measured['persons']}"),
        ("of these wrong", f"{share(error['share'])} ({span(error)})"),
        ("cells needed", count(block["least_cells"])),
    ]
    few, many = block["curve"][0], block["curve"][-1]
    alt = (
        f"Balanced accuracy over persons against the number of cells used: {share(few['balanced_accuracy'])} with "
        f"{few['cells']}, {share(many['balanced_accuracy'])} with {many['cells']}"
    )
    text = [
        f"Pooled by the {pooling(block['rule'])}. Each person is judged with pooling and threshold chosen and fitted "
        "on other persons. In brackets 95 % intervals, exact for shares.",
        f"Wrong: {', '.join(block['wrong'])}." if block["wrong"] else "No person is on the wrong side.",
        f"{measured['persons']} persons of one laboratory, each of one class only: nothing here speaks of mixed "
        "marrow, of minimal residual disease, or of another stain.",
    ]
    drawn = _picture(lambda: patients_curve(block), alt)
    return _section("One prediction for a person", table(("persons", ""), rows, "Persons") + drawn, text)


def _calibration(metrics: Metrics) -> str:
    from leukoscope.evaluation.reliability import reliability_diagram

    block = metrics.get("calibration")
    if not block:
        return ""
    before, after = (block[side]["ece"] for side in ("before", "after"))
    alt = (
        f"Reliability diagram: expected calibration error {before:.3f} as trained, {after:.3f} when temperature-scaled"
    )
    text = [f"{alt}. Estimates: {block['estimates']}; judged on {block['judged_on']}."]
    return _section("Do its probabilities mean what they say?", _picture(lambda: reliability_diagram(block), alt), text)


def _shortcuts(metrics: Metrics) -> str:
    from leukoscope.hub.wording import share

    first = metrics["evaluations"][0]
    baselines = first.get("shortcut_baselines")
    if not baselines:
        return ""
    keys = ("balanced_accuracy", "f1_weighted", "auroc")
    rows = [(name, *(share(figures[key]) for key in keys)) for name, figures in baselines.items()]
    rows.append(("the network", *(share(first["metrics"][key]) for key in keys)))
    heads = ("what answers", "balanced accuracy", "weighted F1", "AUROC")
    text = ["Logistic regression on features that have nothing to do with what a cell looks like, on the same cells."]
    return _section("What needs no network", table(heads, rows, "Shortcut baselines"), text)


def _heat_maps(metrics: Metrics) -> str:
    from leukoscope.hub.wording import share, span

    block = metrics.get("heat_maps")
    if not block:
        return ""
    rows = [
        (check.replace("_", " "), name.replace("_", " "), f"{share(one['mean'])} ({span(one)})")
        for check, figures in block.items()
        if isinstance(figures, Mapping) and check != "definitions"
        for name, one in figures.items()
    ]
    meanings = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(meaning)}</dd>"
        for name, meaning in block["definitions"].items()
    )
    text = [f"{block['cells']} cells of {block['subjects']} subjects; estimates: {block['estimates']}."]
    html = table(("check", "of", "mean (interval)"), rows, "Heat-map checks")
    return _section("Are its heat maps true?", html + details("What each check means", f"<dl>{meanings}</dl>"), text)


def _views(metrics: Metrics) -> str:
    from leukoscope.hub.wording import count, gain, share, span

    block = metrics.get("views")
    if not block:
        return ""
    names = {"f1_weighted": "weighted F1", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
    rows = [
        (name, share(one["b"]), share(one["a"]), f"{gain(one['difference'])} ({span(one)})")
        for name, one in ((name, block["difference"][key]) for key, name in names.items())
    ]
    agreeing, others = block["agreeing_cells"], block["disagreeing_cells"]
    text = [
        f"Averaging {block['definition']}; {count(block['cells'])} cells; estimates: {block['estimates']}. The views "
        f"agree on {count(agreeing['cells'])} cells ({share(agreeing['accuracy'])} answered right) and differ on "
        f"{count(others['cells'])} ({share(others['accuracy'])})."
    ]
    html = table(("figure", "one view", "eight views", "difference"), rows, "Eight views")
    return _section("What do eight views gain?", html, text)


def _training(metrics: Metrics) -> str:
    from leukoscope.hub.wording import count, minutes

    training, data, recipe = metrics.get("training"), metrics.get("data", {}), metrics.get("recipe", {})
    if not training:
        return ""
    rows = [
        ("data", data.get("title", data.get("name", "–"))),
        ("licence", data.get("licence", "–")),
        ("cite", data.get("citation", "–")),
        ("cells and subjects", f"{count(training['cells'])} cells of {len(training['subjects'])} subjects"),
        ("split", training["split"]),
        ("network", f"{recipe.get('architecture', '–')}, {recipe.get('image_size', '–')} px"),
        ("started from", training["start_weights"]),
        ("trained", f"{training['epochs_run']} epochs, {minutes(training['seconds'])}, {training['hardware']}"),
    ]
    return _section("What it was trained on", table(("what", "which"), rows, "Training data"))


def _limits(metrics: Metrics) -> str:
    subjects: dict[str, int] = metrics.get("decisions", {}).get("fitted_on", {}).get("subjects", {})
    ood = metrics.get("ood", {})
    worst = ood.get("held_out", {}).get("worst_subject")
    lines = [
        "It knows the stain, the microscope and the cutting-out of its training data; elsewhere its figures fail.",
        "A heat map shows where the network's evidence lies, not whether that evidence is medically sound.",
    ]
    if subjects:
        people = ", ".join(f"{count} {label}" for label, count in subjects.items())
        lines.append(f"Thresholds and intervals rest on {people} subjects: few people.")
    if worst:
        lines.append(
            f"The OOD detector lets {ood['held_out']['kept_share']:.0%} of true cells pass, but only "
            f"{worst['kept_share']:.0%} of subject {worst['subject']}'s {worst['cells']}."
        )
    lines += [f"Not measured: {one}." for one in ood.get("not_measured", ())]
    return _section("Limits", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")


def _picture(draw: Callable[[], Figure], alt: str) -> str:
    from leukoscope.evaluation.pages import figure_picture

    with _drawing:
        picture = figure_picture(draw(), alt)
    return f'<img class="lk-figure" src="{picture.source}" alt="{escape(alt)}">'


_BLOCKS = (_evaluations, _subjects, _patients, _calibration, _shortcuts, _heat_maps, _views, _training, _limits)
