"""The tab "Evidence": how far a release is to be trusted, from its own metrics.json, and two releases side by side."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr

from leukoscope import LeukoscopeError
from leukoscope.web import panels
from leukoscope.web.evidence_blocks import what_it_says
from leukoscope.web.operating_points import Scores, points_table, scores_of
from leukoscope.web.shelf import Shelf

SENSITIVITY, PREVALENCE = 0.95, 0.5
NO_OTHER = "no other release"


def build_tab(shelf: Shelf, model: gr.Dropdown) -> None:
    """Add the tab to the Blocks being built."""
    shown = lru_cache(maxsize=8)(evidence_of)
    with gr.Tab("Evidence", id="evidence") as tab:
        other = gr.Dropdown(
            [NO_OTHER, *shelf.names], value=NO_OTHER, allow_custom_value=True, label="Beside it", elem_id="beside"
        )
        with gr.Row():
            sensitivity = gr.Slider(0.5, 1, SENSITIVITY, step=0.01, label="Sensitivity wanted", min_width=220)
            prevalence = gr.Slider(
                0.01, 0.99, PREVALENCE, step=0.01, label="Share of cells that are positive where it is used",
                min_width=220,
            )  # fmt: skip
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                points, about = _column("evidence")
            with gr.Column(min_width=300, visible=False) as second:
                other_points, other_about = _column("evidence-beside")
        _add_endpoint(shelf, model)

    def on_choice(choice: str | None, beside: str | None, wanted: float, share: float) -> dict[Any, Any]:
        pair = beside not in (None, "", NO_OTHER)
        left = _shown(shown, shelf, choice, wanted, share)
        right = _shown(shown, shelf, beside, wanted, share) if pair else ("", "")
        updates = zip((points, about, other_points, other_about), (*left, *right), strict=True)
        return {second: gr.Column(visible=pair), **dict(updates)}

    def on_point(choice: str | None, beside: str | None, wanted: float, share: float) -> tuple[str, str]:
        pair = beside not in (None, "", NO_OTHER)
        right = _shown(shown, shelf, beside, wanted, share)[0] if pair else ""
        return _shown(shown, shelf, choice, wanted, share)[0], right

    inputs = [model, other, sensitivity, prevalence]
    hidden: dict[str, Any] = {"api_visibility": "private"}
    outputs = [points, about, other_points, other_about, second]
    gr.on([tab.select, other.change, model.change], on_choice, inputs, outputs, show_progress_on=[about], **hidden)
    for slider in (sensitivity, prevalence):
        slider.input(
            on_point, inputs, [points, other_points], show_progress="hidden", trigger_mode="always_last", **hidden
        )


def _column(name: str) -> tuple[gr.HTML, gr.HTML]:
    points = gr.HTML(elem_id=f"{name}-points", padding=False)
    return points, gr.HTML(panels.placeholder("Loading the release's figures …"), elem_id=name, padding=False)


def evidence_of(shelf: Shelf, choice: str) -> tuple[dict[str, Any], Scores | None, str]:
    """A release's metrics, the scores of its committed answers, and everything it says of itself as HTML.

    Raises:
        LeukoscopeError: the model cannot be used.
    """
    release = shelf.predictor(choice).release
    return dict(release.metrics), scores_of(release), what_it_says(choice, release.metrics)


def _shown(load: Any, shelf: Shelf, choice: str | None, sensitivity: float, prevalence: float) -> tuple[str, str]:
    try:
        metrics, scores, about = load(shelf, choice or "")
        points = points_table(metrics, scores, sensitivity, prevalence)
    except LeukoscopeError as error:
        return panels.message("This model cannot be used", str(error)), ""
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # A stranger's metrics.json may hold less than a whole report.
        problem = f"lacks {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        text = f"{choice}: its metrics.json {problem}; restore it from the release"
        return panels.message("These measurements cannot be shown", text), ""
    return f"<h2>{escape(choice or '')}</h2>{points}", about


def _add_endpoint(shelf: Shelf, model: gr.Dropdown) -> None:
    """The named endpoint /evidence: model → its metrics.json."""

    def evidence(model: str | None) -> dict[str, Any]:
        """Everything a release measured of itself: its metrics.json."""
        try:
            return dict(shelf.predictor(model).release.metrics)
        except LeukoscopeError as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Group(visible=False):
        gr.Button("evidence").click(evidence, [model], gr.JSON(label="metrics"), api_name="evidence")
