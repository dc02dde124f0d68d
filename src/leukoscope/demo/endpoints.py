"""What programs and assistants can ask: Gradio offers these functions over HTTP and MCP, as their types describe them.

Gradio reads the types as they stand here, so that they are no texts (annotations from __future__).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import gradio as gr
from gradio import events
from gradio.data_classes import FileData

from leukoscope import RESEARCH_NOTICE, DataError, LeukoscopeError
from leukoscope.demo import pictures, uploads
from leukoscope.demo.answers import Answer, ask, caveats, more, trusted, verdict
from leukoscope.demo.evidence import card_of
from leukoscope.demo.files import read_folder, unpacked
from leukoscope.demo.models import Models
from leukoscope.demo.people import lines_of, predict_batch
from leukoscope.demo.smear import Reading, read_cells
from leukoscope.demo.uploads import CELL_PIXELS, SMEAR_PIXELS, Upload
from leukoscope.inference.smear import draw_reading
from leukoscope.reports import words

# What the outputs of each function are called.
OUTPUTS = {
    "predict": ("outcome", "probabilities", "grad_cam", "text", "decision"),
    "field": ("reading", "boxes"),
    "smear": ("reading",),
    "batch": ("answers",),
    "models": ("models",),
    "model_card": ("card",),
}
QUEUES = {"predict": "cell", "field": "smear", "smear": "smear", "batch": "batch"}


class Api:
    """The functions, which ask these models."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def predict(
        self, image: FileData, model: str = ""
    ) -> tuple[str, dict[str, float], FileData | None, str, dict[str, Any]]:
        """Classify one white blood cell, with the model's map of the most probable class. For research only.

        Args:
            image: the picture of one cell, cut out or from a smear; PNG, JPEG, BMP, TIFF or WebP.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
        """
        picture = uploads.read_picture(_upload(image), CELL_PIXELS)
        answer = ask(self._models, picture, model)
        decision = {**answer.known.decision.to_dict(), "ood_score": answer.known.checks.ood_score, "map_check": None}
        grad_cam = None
        if answer.known.heatmaps and not answer.refused:
            decision["map_check"] = answer.known.map_check.to_dict()
            grad_cam = _sent(pictures.map_over(answer.picture, answer.known, answer.known.most_probable))
        return answer.outcome, answer.known.probabilities, grad_cam, summary(answer), decision

    def field(self, image: FileData, model: str = "", um_per_pixel: float = 0.0) -> tuple[dict[str, Any], FileData]:
        """Find and classify the white blood cells of a stained smear, and draw their boxes. For research only.

        Args:
            image: the picture of a stained smear; PNG, JPEG, BMP, TIFF or WebP.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
            um_per_pixel: micrometres per pixel; 0 measures the scale on its red cells or nuclei.
        """
        read = self._read(image, model, um_per_pixel)
        return read.reading.to_dict(), _sent(draw_reading(read.picture.image, read.reading))

    def smear(self, image: FileData, model: str = "", um_per_pixel: float = 0.0) -> dict[str, Any]:
        """Find and classify the white blood cells of a stained smear. For research only.

        Args:
            image: the picture of a stained smear; PNG, JPEG, BMP, TIFF or WebP.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
            um_per_pixel: micrometres per pixel; 0 measures the scale on its red cells or nuclei.
        """
        return self._read(image, model, um_per_pixel).reading.to_dict()

    def batch(self, files: list[FileData], model: str = "", folders_are_people: bool = False) -> dict[str, Any]:
        """Classify many cells, with one prediction for each person where people are known. For research only.

        Args:
            files: pictures of single cells, or zips of them; a table among them (.csv) may name people and classes.
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
            folders_are_people: whether the innermost folder of a picture names its person.
        """
        sent: Any = files  # as programs send it, which may be one file
        if not isinstance(sent, list):
            sent = [sent]
        with unpacked([_upload(file) for file in sent]) as folder:
            read = partial(read_folder, folder, by_folder=folders_are_people is True)
            *_, result = predict_batch(self._models, model, read)
        predictions = [result.prediction(name) for name in result.by_person]
        return {
            "cells": lines_of(result),
            "subject_predictions": [prediction.to_dict() for prediction in predictions if prediction],
            "notes": [*result.caveats, *result.sentences],
            "notice": RESEARCH_NOTICE,
        }

    def models(self) -> list[dict[str, Any]]:
        """The models that this page offers, the default first, and how far each is to be trusted."""
        rows: list[dict[str, Any]] = []
        for name in self._models.names:
            try:
                release = self._models.release(name)
            except LeukoscopeError as error:
                rows.append({"model": name, "error": str(error)})
                continue
            rows.append({"model": name, "labels": list(release.labels), "measured": trusted(release)["measured"]})
        return rows

    def model_card(self, model: str = "") -> str:
        """The card of a model, in Markdown, without pictures and HTML.

        Args:
            model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
        """
        return card_of(self._models.release(model))

    def _read(self, image: Any, model: str, um_per_pixel: Any) -> Reading:
        if not isinstance(um_per_pixel, int | float):
            raise DataError(f"um_per_pixel: expected a number, got {um_per_pixel!r:.60}")
        picture = uploads.read_picture(_upload(image), SMEAR_PIXELS)
        picture = replace(picture, um_per_pixel=um_per_pixel or None)
        return read_cells(self._models, picture, model)


def add_endpoints(demo: gr.Blocks, models: Models) -> None:
    """Add the functions to the page being built."""
    api = Api(models)
    for name, labels in OUTPUTS.items():
        queue = QUEUES.get(name)
        limit = 1 if queue == "smear" else 2
        events.api(one_line(getattr(api, name)), api_name=name, concurrency_id=queue, concurrency_limit=limit)
        newest = demo.fns[max(demo.fns)]
        for output, label in zip(newest.outputs, labels, strict=True):
            output.label = label  # type: ignore[union-attr]  # its outputs are components, no blocks


def summary(answer: Answer) -> str:
    """An answer as plain text."""
    lines = [verdict(answer)]
    if not answer.refused:
        shares = ", ".join(f"{label} {words.percent(share)}" for label, share in answer.known.probabilities.items())
        lines = [f"{words.outcome_text(answer.outcome)}: {shares}."]
        lines += [row.sentence for row in words.trust_rows(answer.release.metrics)]
    return "\n".join([*lines, *caveats(answer), *more(answer), RESEARCH_NOTICE])


def one_line(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with each `LeukoscopeError` as Gradio's own error, which is sent without a traceback in the log."""

    @wraps(function)
    def wrapped(*values: Any) -> Any:
        try:
            return function(*values)
        except LeukoscopeError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return wrapped


def _upload(image: Any) -> Upload:
    """The upload that a request names."""
    if not isinstance(image, dict) or not isinstance(image.get("path"), str):
        raise DataError('image: expected a file as {"path": …, "meta": {"_type": "gradio.FileData"}}')
    return Upload(image["path"], str(image.get("orig_name") or uploads.file_name(image["path"])))


def _sent(image: Any) -> FileData:
    """A picture as a file that Gradio sends."""
    return FileData(path=uploads.png_answer(image), mime_type="image/png")
