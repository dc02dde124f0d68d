"""The tab "Evidence": how far a release is to be trusted, from its own metrics.json, and two releases side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from html import escape
from threading import Lock
from typing import Any

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.inference.prediction import passes_map_checks
from leukoscope.reports.evidence import Rates, Scores, evidence_sections, scores_of
from leukoscope.reports.html import Section
from leukoscope.web import panels
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.page import LAST, PRIVATE
from leukoscope.web.text import LocalisedChoices, language, local_number, localised, percent, point_name, t
from leukoscope.web.upload import gradio_errors

SENSITIVITY, PREVALENCE = 0.95, 0.5


def build_tab(models: ModelCache, model: gr.Dropdown) -> None:
    """Add the tab to the Blocks being built."""
    # The second argument is the language of the HTML that is kept.
    load = lru_cache(maxsize=8)(lambda choice, language: evidence_of(models, choice))
    with gr.Tab(localised("tab_evidence"), id="evidence") as tab:
        lead = gr.HTML(elem_id="evidence-lead", padding=False)
        other = gr.Dropdown(
            LocalisedChoices(lambda: [(t("no_other_release"), ""), *((name, name) for name in models.names)]), value="",
            allow_custom_value=True, label=localised("compare_with"), elem_id="compare",
        )  # fmt: skip
        with gr.Row() as sliders:
            sensitivity = gr.Slider(
                0.5, 1, SENSITIVITY, step=0.01, label=localised("sensitivity_wanted"), min_width=220
            )
            prevalence = gr.Slider(0.01, 0.99, PREVALENCE, step=0.01, label=localised("prevalence"), min_width=220)
        # One below the other: side by side, the tables would not fit.
        points = gr.HTML(elem_id="evidence-points", padding=False)
        other_points = gr.HTML(elem_id="compare-points", padding=False)
        about = gr.HTML(panels.placeholder("…"), elem_id="evidence", padding=False)
        other_about = gr.HTML(elem_id="compare-evidence", padding=False)
        _add_endpoint(models, model)

    def read(choice: str | None, compared: str | None, wanted: float, share: float) -> tuple[str, ...]:
        first = _shown(load, choice, wanted, share)
        if not compared:
            return first[0], "", first[1], ""
        second = _shown(load, compared, wanted, share)
        return first[0], second[0], _title(choice) + first[1], _title(compared) + second[1]

    def on_choice(choice: str | None, compared: str | None, wanted: float, share: float) -> tuple[Any, ...]:
        shown = read(choice, compared, wanted, share)
        # Without operating points there is nothing to move.
        return *shown, gr.Row(visible=any("<table" in one for one in shown[:2]))

    def on_lead(choice: str | None) -> str:
        try:
            said = lead_sentences(models.predictor(choice).release.metrics)
            return "".join(f'<p class="lk-lead">{escape(one)}</p>' for one in said)
        except LeukoscopeError:
            return ""  # said below

    inputs = [model, other, sensitivity, prevalence]
    outputs = [points, other_points, about, other_about, sliders]
    # "always_last": a release chosen while another is still being read must not be passed over.
    gr.on(
        [tab.select, other.change, model.change], on_choice, inputs, outputs, show_progress_on=[about],
        trigger_mode="always_last", **PRIVATE,
    )  # fmt: skip
    gr.on([tab.select, model.change], on_lead, model, lead, **LAST)
    for slider in (sensitivity, prevalence):
        slider.input(lambda *chosen: read(*chosen)[:2], inputs, [points, other_points], **LAST)


def evidence_of(models: ModelCache, choice: str) -> tuple[dict[str, Any], Scores | None, str]:
    """A release's metrics, its scores of unseen subjects' cells, and all its evidence as HTML."""
    release = models.predictor(choice).release
    return dict(release.metrics), scores_of(release), evidence_page(choice, release.metrics)


def _shown(
    load: Callable[[str, str], Any], choice: str | None, sensitivity: float, prevalence: float
) -> tuple[str, str]:
    """The operating points and all other evidence of a release, as HTML; or why there is none."""
    try:
        metrics, scores, about = load(choice or "", language())
        points = points_table(metrics, scores, sensitivity, prevalence)
    except LeukoscopeError as error:
        return panels.message(t("model_unusable"), str(error)), ""
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # A stranger's metrics.json may hold less than a whole report.
        key = "metrics_lack" if isinstance(error, KeyError) else "metrics_damaged"
        return panels.message(t("measurements_unusable"), t(key, model=choice, what=error, error=error)), ""
    return _title(choice) + points, about


def _title(name: str | None) -> str:
    return f"<h2>{escape(name or '')}</h2>"


def _add_endpoint(models: ModelCache, model: gr.Dropdown) -> None:
    """The named endpoint /evidence: model → its metrics.json."""

    def evidence(model: str | None) -> dict[str, Any]:
        """Everything a release measured of itself: its metrics.json.

        Args:
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
        """
        with gradio_errors():
            return dict(models.predictor(model).release.metrics)

    with gr.Group(visible=False):
        gr.Button("evidence").click(evidence, [model], gr.JSON(label="metrics"), api_name="evidence")


# matplotlib's fonts are not made for two threads.
_drawing = Lock()


def evidence_page(name: str, metrics: Mapping[str, Any]) -> str:
    """All that a release measured of itself, as HTML; one section a question."""
    with _drawing:
        sections = list(evidence_sections(metrics))
    if not sections:
        return panels.note(t("no_measurements", model=name))
    return "".join(map(_section, sections))


def lead_sentences(metrics: Mapping[str, Any]) -> list[str]:
    """How good a release is on people it has not seen, how often it gives no class, and whether its maps hold."""
    said, evaluations = [], metrics.get("evaluations") or []
    unit = (metrics.get("data") or {}).get("unit")
    if evaluations and (evaluations[0].get("split") or {}).get("disjoint_by") in ("subject", "block"):
        of, baselines = "accuracy_by_subject", evaluations[0].get("shortcut_baselines") or {}
        right = evaluations[0]["metrics"].get(of)
        if right is not None:
            said.append(t("lead_block" if unit == "block" else "lead_subject", right=round(100 * right)))
        for name, key in (("size", "lead_size"), ("mean colour", "lead_colour")):
            alone = baselines.get(name, {}).get(of, baselines.get(name, {}).get("accuracy"))
            if said and alone is not None:
                said[0] += f" {t(key, alone=round(100 * alone))}"
                break
    held_out = (metrics.get("ood") or {}).get("held_out")
    abstention = (metrics.get("decisions") or {}).get("abstention")
    if held_out and abstention:
        refused = 1 - held_out.get("kept_share_by_subject", held_out["kept_share"])
        unclear = 1 - abstention["default"].get("coverage_by_subject", abstention["default"]["coverage"])
        said.append(t("lead_refused", refused=round(100 * refused), unclear=round(100 * unclear)))
    if metrics.get("heat_maps"):
        said.append(t("lead_maps_hold" if passes_map_checks(metrics["heat_maps"]) else "lead_maps_fail"))
    return said


def _section(section: Section) -> str:
    html = "".join(map(panels.note, section.text))
    if section.table:
        html += panels.table(section.table.columns, section.table.rows, label=section.heading)
    if section.terms:
        terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(about)}</dd>" for term, about in section.terms.items())
        html += panels.details(t("what_checks_mean"), f"<dl>{terms}</dl>")
    for picture in section.pictures:
        html += f'<img class="lk-figure" src="{picture.source}" alt="{escape(picture.alt)}">'
    return f'<section lang="en">{panels.details(section.heading, html)}</section>'


def points_table(metrics: Mapping[str, Any], scores: Scores | None, sensitivity: float, prevalence: float) -> str:
    """The named operating points and, where the predictions are there, the one with the wanted sensitivity."""
    named = metrics.get("decisions", {}).get("operating_points", {}).get("points", {})
    if not named:
        return panels.note(t("no_points"))
    rows = {}
    if scores:
        rows[t("chosen_point", share=percent(sensitivity))] = scores.at_sensitivity(sensitivity)
    for name, point in named.items():
        judged = point["cross_fitted"]
        rows[point_name(name)] = Rates(point["threshold"], judged["sensitivity"], judged["specificity"])
    heads = [t(key) for key in ("operating_point", "threshold", "sensitivity", "specificity")]
    heads += [t(key, share=percent(prevalence)) for key in ("ppv", "npv")]
    note = t("chosen_note" if scores else "only_named")
    shown = []
    for name, rates in rows.items():
        values = (rates.threshold, rates.sensitivity, rates.specificity, *rates.predictive_values(prevalence))
        shown.append((name, *("–" if value is None else local_number(f"{value:.3f}") for value in values)))
    return panels.table(heads, shown, t("operating_points")) + panels.note(note)
