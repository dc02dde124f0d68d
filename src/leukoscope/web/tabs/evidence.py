"""The tab "Evidence": how far a release is to be trusted, from its own metrics.json, and two releases side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from html import escape
from threading import Lock
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.models.release_files import PREDICTIONS, ReleaseInfo
from leukoscope.web import panels
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.panels import details, notice, table
from leukoscope.web.result_tab import PRIVATE
from leukoscope.web.text import percent, point_name
from leukoscope.web.upload import gradio_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SENSITIVITY, PREVALENCE = 0.95, 0.5
NO_OTHER = "no other release"


def build_tab(models: ModelCache, model: gr.Dropdown) -> None:
    """Add the tab to the Blocks being built."""
    load = lru_cache(maxsize=8)(partial(evidence_of, models))
    with gr.Tab("Evidence", id="evidence") as tab:
        other = gr.Dropdown(
            [NO_OTHER, *models.names], value=NO_OTHER, allow_custom_value=True, label="Compare with", elem_id="compare"
        )
        with gr.Row():
            sensitivity = gr.Slider(0.5, 1, SENSITIVITY, step=0.01, label="Sensitivity wanted", min_width=220)
            prevalence = gr.Slider(
                0.01, 0.99, PREVALENCE, step=0.01, label="Share of cells that are positive where it is used",
                min_width=220,
            )  # fmt: skip
        # One below the other: side by side, the tables would not fit.
        points = gr.HTML(elem_id="evidence-points", padding=False)
        other_points = gr.HTML(elem_id="compare-points", padding=False)
        about = gr.HTML(panels.placeholder("Loading the release's metrics …"), elem_id="evidence", padding=False)
        other_about = gr.HTML(elem_id="compare-evidence", padding=False)
        _add_endpoint(models, model)

    def on_choice(choice: str | None, compared: str | None, wanted: float, share: float) -> tuple[str, ...]:
        first = _shown(load, choice, wanted, share)
        if compared in (None, "", NO_OTHER):
            return first[0], "", first[1], ""
        second = _shown(load, compared, wanted, share)
        titles = [f"<h2>{escape(name or '')}</h2>" for name in (choice, compared)]
        return first[0], second[0], titles[0] + first[1], titles[1] + second[1]

    def on_point(choice: str | None, compared: str | None, wanted: float, share: float) -> tuple[str, ...]:
        return on_choice(choice, compared, wanted, share)[:2]

    inputs = [model, other, sensitivity, prevalence]
    outputs = [points, other_points, about, other_about]
    # "always_last": a release chosen while another is still being read must not be passed over.
    gr.on(
        [tab.select, other.change, model.change], on_choice, inputs, outputs, show_progress_on=[about],
        trigger_mode="always_last", **PRIVATE,
    )  # fmt: skip
    for slider in (sensitivity, prevalence):
        slider.input(
            on_point, inputs, [points, other_points], show_progress="hidden", trigger_mode="always_last", **PRIVATE
        )


def evidence_of(models: ModelCache, choice: str) -> tuple[dict[str, Any], Scores | None, str]:
    """A release's metrics, its scores of unseen subjects' cells, and all its evidence as HTML.

    Raises:
        LeukoscopeError: the model cannot be used.
    """
    release = models.predictor(choice).release
    return dict(release.metrics), scores_of(release), evidence_sections(choice, release.metrics)


def _shown(load: Callable[[str], Any], choice: str | None, sensitivity: float, prevalence: float) -> tuple[str, str]:
    """The operating points and all other evidence of a release, as HTML; or why there is none."""
    try:
        metrics, scores, about = load(choice or "")
        points = points_table(metrics, scores, sensitivity, prevalence)
    except LeukoscopeError as error:
        return panels.message("This model cannot be used", str(error)), ""
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # A stranger's metrics.json may hold less than a whole report.
        problem = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        text = f"{choice}: its metrics.json {problem}; restore it from the release"
        return panels.message("These measurements cannot be shown", text), ""
    return f"<h2>{escape(choice or '')}</h2>{points}", about


def _add_endpoint(models: ModelCache, model: gr.Dropdown) -> None:
    """The named endpoint /evidence: model → its metrics.json."""

    def evidence(model: str | None) -> dict[str, Any]:
        """Everything a release measured of itself: its metrics.json."""
        with gradio_errors():
            return dict(models.predictor(model).release.metrics)

    with gr.Group(visible=False):
        gr.Button("evidence").click(evidence, [model], gr.JSON(label="metrics"), api_name="evidence")


Metrics = Mapping[str, Any]

_SIDES = {"subject": "no", "cell": "yes", "block": "not known; no block of neighbouring images"}
# matplotlib's fonts are not made for two threads.
_drawing = Lock()


def evidence_sections(name: str, metrics: Metrics) -> str:
    """All that a release measured of itself, as HTML; one section a question."""
    if not metrics.get("evaluations"):
        return f'<p class="lk-note">{escape(name)} has no measurements of its own (metrics.json).</p>{notice()}'
    return "".join(block(metrics) for block in _BLOCKS) + notice()


def _section(title: str, html: str, text: Sequence[str] = ()) -> str:
    paragraphs = "".join(f'<p class="lk-note">{escape(line)}</p>' for line in text if line)
    return f"<section><h3>{escape(title)}</h3>{paragraphs}{html}</section>"


def _unit(metrics: Metrics) -> str:
    """What the test sets are disjoint by: "subject", or "block" where a data set has no patient ids."""
    return "block" if metrics.get("data", {}).get("unit") == "block" else "subject"


def _evaluations(metrics: Metrics) -> str:
    from leukoscope.reports.formatting import count, new_aliases, share, with_interval
    from leukoscope.reports.release_tables import RESULT_METRICS

    unit = _unit(metrics)
    names = (f"AUROC by {unit}", "AUROC at equal size", f"balanced accuracy by {unit}", "AUROC", "weighted F1")
    heads = ("tested on", "patients in training and test?", "cells", *names, "size alone")
    joined = new_aliases(metrics)
    rows = []
    for block in metrics["evaluations"]:
        side = _SIDES.get(block["split"]["disjoint_by"], "not known")
        shown = [with_interval(block, key) for key in RESULT_METRICS]
        alone = share((block.get("size_only_baseline") or {}).get("auroc_by_subject"))
        side = "a few, found since" if joined and side == "no" else side
        rows.append((block["split"]["detail"], side, count(block["metrics"]["cells"]), *shown, alone))
    text = [
        f"By {unit}: every {unit} weighs the same. At equal size: among cells of similar area. In brackets 95 % "
        f"intervals from bootstrap samples of {unit}s. “Size alone”: AUROC by {unit} of nothing but the cell's area. "
        "With patients in training and test, metrics are too good.",
        f"Found since to be one person each: {', '.join(joined)}." if joined else "",
    ]
    unseen = "patients" if unit == "subject" else "blocks"
    return _section(f"Unseen {unseen} beside the random split", table(heads, rows, "Evaluations"), text)


def _subjects(metrics: Metrics) -> str:
    from leukoscope.evaluation.plots import subject_strip

    subjects = metrics["evaluations"][0]["metrics"].get("subjects")
    if not subjects:
        return ""
    # A data set without patient ids is split by blocks of neighbouring images, which stand under the same key.
    unit = _unit(metrics)
    worst = min(subjects.items(), key=lambda item: item[1]["accuracy"])
    alt = (
        f"Accuracy of each of {len(subjects)} {unit}s by class; the worst is {worst[0]} ({worst[1]['label']}) with "
        f"{worst[1]['accuracy']:.2f} of {worst[1]['cells']} cells right"
    )

    def draw() -> Figure:
        figure = subject_strip(subjects, metrics["labels"])
        figure.supxlabel(figure.get_supxlabel().replace("subject", unit), fontsize=9)
        for axes in figure.axes:
            title = axes.get_title(loc="left").replace("subject", unit)
            if len(metrics["labels"]) > 2:  # over narrow panels, titles of one line run into each other
                title = title.replace(" · ", "\n")
            axes.set_title(title, loc="left", fontsize=9)
        return figure

    return _section(f"{unit.capitalize()} by {unit}", _picture(draw, alt), [f"{alt}."])


def _patients(metrics: Metrics) -> str:
    from leukoscope.evaluation.plots import patients_curve
    from leukoscope.reports.formatting import count, pooling, share, span

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
        f"Pooled by the {pooling(block['rule'])}. Each person is predicted with pooling and threshold chosen and "
        "fitted on other persons. In brackets 95 % intervals, exact for shares.",
        f"Wrong: {', '.join(block['wrong'])}." if block["wrong"] else "No person is on the wrong side.",
        f"{measured['persons']} persons of one laboratory, each of one class only: nothing here is about mixed "
        "marrow, of minimal residual disease, or of another stain.",
    ]
    drawn = _picture(lambda: patients_curve(block), alt)
    return _section("One prediction for a person", table(("persons", ""), rows, "Persons") + drawn, text)


def _calibration(metrics: Metrics) -> str:
    from leukoscope.evaluation.plots import reliability_diagram

    block = metrics.get("calibration")
    if not block:
        return ""
    before, after = (block[side]["ece"] for side in ("before", "after"))
    alt = (
        f"Reliability diagram: expected calibration error {before:.3f} as trained, {after:.3f} when temperature-scaled"
    )
    text = [f"{alt}. Estimates: {block['estimates']}; judged on {block['judged_on']}."]
    return _section("Are its probabilities calibrated?", _picture(lambda: reliability_diagram(block), alt), text)


def _shortcuts(metrics: Metrics) -> str:
    from leukoscope.reports.formatting import share

    first = metrics["evaluations"][0]
    baselines = first.get("shortcut_baselines")
    if not baselines:
        return ""
    keys = ("balanced_accuracy", "f1_weighted", "auroc")
    rows = [(name, *(share(values[key]) for key in keys)) for name, values in baselines.items()]
    rows.append(("the network", *(share(first["metrics"][key]) for key in keys)))
    heads = ("model", "balanced accuracy", "weighted F1", "AUROC")
    text = ["Logistic regression on features that have nothing to do with what a cell looks like, on the same cells."]
    return _section("Baselines without a network", table(heads, rows, "Shortcut baselines"), text)


def _explanations(metrics: Metrics) -> str:
    from leukoscope.reports.formatting import share, span

    block = metrics.get("heat_maps")
    if not block:
        return ""
    rows = [
        (check.replace("_", " "), name.replace("_", " "), f"{share(one['mean'])} ({span(one)})")
        for check, values in block.items()
        if isinstance(values, Mapping) and check != "definitions"
        for name, one in values.items()
    ]
    meanings = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(meaning)}</dd>"
        for name, meaning in block["definitions"].items()
    )
    text = [f"{block['cells']} cells of {block['subjects']} {_unit(metrics)}s; estimates: {block['estimates']}."]
    html = table(("check", "of", "mean (interval)"), rows, "Checks of Grad-CAM maps")
    html += details("What each check means", f"<dl>{meanings}</dl>")
    return _section("Are its Grad-CAM maps faithful?", html, text)


def _tta(metrics: Metrics) -> str:
    from leukoscope.reports.formatting import count, gain, share, span

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
        f"agree on {count(agreeing['cells'])} cells ({share(agreeing['accuracy'])} right) and differ on "
        f"{count(others['cells'])} ({share(others['accuracy'])})."
    ]
    html = table(("metric", "one view", "eight views", "difference"), rows, "Test-time augmentation")
    return _section("What does test-time augmentation gain?", html, text)


def _training(metrics: Metrics) -> str:
    from leukoscope.reports.formatting import count, minutes

    training, data, recipe = metrics.get("training"), metrics.get("data", {}), metrics.get("recipe", {})
    unit = _unit(metrics)
    if not training:
        return ""
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
    return _section("What it was trained on", table(("what", "which"), rows, "Training data"))


def _limits(metrics: Metrics) -> str:
    subjects: dict[str, int] = metrics.get("decisions", {}).get("fitted_on", {}).get("subjects", {})
    ood = metrics.get("ood", {})
    worst = ood.get("held_out", {}).get("worst_subject")
    lines = [
        "Its metrics hold for the stain, the microscope and the framing of its training data only.",
        "A Grad-CAM map shows where the network's evidence lies, not whether that evidence is medically sound.",
    ]
    if subjects:
        people = ", ".join(f"{count} {label}" for label, count in subjects.items())
        few = "few people" if _unit(metrics) == "subject" else "it is not known of how many people"
        lines.append(f"Thresholds and intervals rest on {people} {_unit(metrics)}s: {few}.")
    if worst:
        lines.append(
            f"The OOD detector lets {ood['held_out']['kept_share']:.0%} of true cells pass, but only "
            f"{worst['kept_share']:.0%} of {_unit(metrics)} {worst['subject']}'s {worst['cells']}."
        )
    lines += [f"Not measured: {one}." for one in ood.get("not_measured", ())]
    return _section("Limits", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")


def _picture(draw: Callable[[], Figure], alt: str) -> str:
    from leukoscope.reports.html import plot_picture

    with _drawing:
        picture = plot_picture(draw(), alt)
    return f'<img class="lk-figure" src="{picture.source}" alt="{escape(alt)}">'


_BLOCKS = (_evaluations, _subjects, _patients, _calibration, _shortcuts, _explanations, _tta, _training, _limits)


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
    from leukoscope.evaluation.calibration import calibrated
    from leukoscope.evaluation.metrics import CellPredictions
    from leukoscope.reports.release_tables import detailed_evaluation

    metrics = release.metrics
    points = metrics.get("decisions", {}).get("operating_points")
    tested = detailed_evaluation(metrics) if metrics.get("evaluations") else None
    path = release.folder and tested and release.folder / PREDICTIONS / f"{tested['name']}.parquet"
    if not points or not path or not path.is_file():
        return None
    cells = calibrated(CellPredictions.load(path), metrics["calibration"]["temperature"])
    positive = cells.label_names.index(points["positive_label"])
    shares, true = cells.probabilities[:, positive], cells.references == positive
    return Scores(np.sort(shares[true]), np.sort(shares[~true]))


def points_table(metrics: Mapping[str, Any], scores: Scores | None, sensitivity: float, prevalence: float) -> str:
    """The named operating points and, where the predictions are there, the one with the wanted sensitivity."""
    named = metrics.get("decisions", {}).get("operating_points", {}).get("points", {})
    if not named:
        return '<p class="lk-note">This release names no operating points: they need two classes.</p>'
    rows = [_row(point_name(name), _named(point), prevalence) for name, point in named.items()]
    if scores:
        rows.insert(
            0, _row(f"{percent(sensitivity)} sensitivity, chosen", scores.at_sensitivity(sensitivity), prevalence)
        )
    heads = ("operating point", "threshold", "sensitivity", "specificity", "PPV", "NPV")
    note = (
        "The chosen one is fitted to and judged on the same cells of unseen subjects; the named ones are cross-fitted."
        if scores
        else "This copy of the release has no predictions of its own, so only its named points can be shown."
    )
    return table(heads, rows, "Operating points") + f'<p class="lk-note">{note}</p>'


def _named(point: Mapping[str, Any]) -> Rates:
    judged = point["cross_fitted"]
    return Rates(point["threshold"], judged["sensitivity"], judged["specificity"])


def _row(name: str, rates: Rates, prevalence: float) -> tuple[str, ...]:
    values = (rates.threshold, rates.sensitivity, rates.specificity, *rates.predictive_values(prevalence))
    return (name, *("–" if value is None else f"{value:.3f}" for value in values))
