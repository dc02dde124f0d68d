"""The public API: /predict, /field and /batch, which Gradio describes under “Use via API” and offers to assistants."""

from __future__ import annotations

from typing import Any

import gradio as gr

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.smear import draw_reading
from leukoscope.web import upload
from leukoscope.web.answer import Picture, ask
from leukoscope.web.batch import BATCHES_AT_ONCE, columns, label_metrics, predict_files
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.smear import read_smear


class Endpoints:
    """What is answered to programs; the signatures and docstrings are what they are told."""

    def __init__(self, models: ModelCache) -> None:
        self.models = models

    def predict(
        self, image: str | None, model: str | None
    ) -> tuple[str, dict[str, float], str | None, str, dict[str, Any]]:
        """Classify one white blood cell, with a Grad-CAM map of the most probable class. For research only.

        Args:
            image: the picture of one cell, cut out or from a smear; PNG, JPEG, BMP, TIFF or WebP.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
        """
        with upload.gradio_errors():
            row = ask(Picture(*upload.read_upload(image)), self.models, model or "")
            summary, (_, overlaid) = row.summary(), row.pictures(row.known.most_probable)
            decision = {**row.known.decision.to_dict(), "ood_score": row.known.checks.ood_score}
            grad_cam = upload.png_answer(overlaid) if overlaid else None
        return decision["outcome"], row.known.probabilities, grad_cam, summary, decision

    def field(
        self, image: str | None, model: str | None, um_per_pixel: float | None = None
    ) -> tuple[dict[str, Any], str]:
        """Find and classify the white blood cells of a field of view. For research only.

        Args:
            image: the picture of a stained smear; PNG, JPEG, BMP, TIFF or WebP.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
            um_per_pixel: micrometres per pixel; 0 has the scale guessed from its red cells or nuclei.
        """
        with upload.gradio_errors():
            given = Picture(*upload.read_upload(image, upload.FIELD), um_per_pixel=um_per_pixel)
            found = read_smear(self.models, given, model)
            boxes = upload.png_answer(draw_reading(found.picture.image, found.reading))
        return found.reading.to_dict(), boxes

    def batch(self, files: list[str] | None, model: str | None) -> dict[str, Any]:
        """Classify many cells, with one prediction for each subject where subjects are known. For research only.

        Args:
            files: pictures of single cells, or zips of them, whose folders may name classes and subjects.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
        """
        with upload.gradio_errors():
            result = predict_files(self.models, files, model)
            measured, notes = label_metrics(result)
        named = columns(result)
        return {
            "cells": [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)],
            "subject_predictions": [one.to_dict() for one in result.subject_predictions],
            "figures": [list(row) for row in measured],
            "notes": [note for note in (result.too_good, *notes, *result.problems) if note],
            "notice": RESEARCH_NOTICE,
        }


def add_endpoints(models: ModelCache) -> None:
    """Add the named endpoints to the Blocks being built."""
    asked = Endpoints(models)
    with gr.Group(visible=False):
        chosen = gr.Dropdown(models.names, value=next(iter(models.names), None), allow_custom_value=True, label="model")
        answers = [
            gr.Textbox(label="outcome"), gr.JSON(label="probabilities"), gr.Image(label="grad_cam", format="png"),
            gr.Textbox(label="text"), gr.JSON(label="decision"),
        ]  # fmt: skip
        cell, picture = (upload.cell_upload(label="image") for _ in range(2))
        gr.Button("predict").click(asked.predict, [cell, chosen], answers, api_name="predict")
        inputs = [picture, chosen, gr.Number(0, label="um_per_pixel")]
        boxes = [gr.JSON(label="reading"), gr.Image(label="boxes", format="png")]
        gr.Button("field").click(asked.field, inputs, boxes, api_name="field")
        given = [upload.files_upload(label="files"), chosen]
        gr.Button("batch").click(
            asked.batch, given, gr.JSON(label="answers"), api_name="batch", concurrency_id="batch",
            concurrency_limit=BATCHES_AT_ONCE,
        )  # fmt: skip
