"""The page of all models in the demo: their measurements beside each other, then the card of the one that is chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from leukoscope import LeukoscopeError
from leukoscope.models.release import CARD_FILE, ReleaseInfo, read_release
from leukoscope.reports import release_tables, text
from leukoscope.reports.formatting import data_uri, share, span
from leukoscope.web import trust
from leukoscope.web.content_policy import card_text
from leukoscope.web.drawing import render
from leukoscope.web.model_cache import ModelCache

_MAPS = {True: "passed our checks", False: "failed our checks", None: "not checked"}
NO_CARD = "This release comes without a card."


def release_of(models: ModelCache, name: str) -> ReleaseInfo:
    """The release of a model, without loading its network where it comes along.

    Raises:
        LeukoscopeError: it cannot be read or loaded.
    """
    folder = models.releases.get(name)
    if folder:
        return read_release(folder, name=name)
    return models.predictor(name).release


def evidence(models: ModelCache, names: list[str], chosen: str) -> tuple[Markup, str]:
    """The table of these models with the figures of the chosen one, as HTML, and its card, as Markdown."""
    rows = []
    for name in names:
        try:
            rows.append(_row(name, release_of(models, name).metrics))
        except LeukoscopeError as error:
            rows.append({"model": name, "error": str(error)})
    if chosen not in names:
        chosen = next(iter(names), "")
    figures, card = _figures_and_card(models, chosen)
    html = render("evidence.html", rows=rows, names=names, chosen=chosen, figures=figures)
    return html, card


def _row(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One model's measurements."""
    further = metrics.get("further_subjects") or {}
    auroc = further.get("auroc_by_subject")
    evaluation = (metrics.get("evaluations") or [{}])[0]
    alone = (evaluation.get("size_only_baseline") or {}).get("auroc_by_subject")
    measured = None
    if text.measured_on_people(metrics):
        measured = (evaluation.get("metrics") or {}).get("auroc_by_subject")
    positive = None
    if metrics.get("positive_label"):
        positive = [metrics["positive_label"]]
    labels = list(metrics.get("labels") or ())
    return {
        "model": name,
        "error": "",
        "labels": labels,
        "trust": trust.trust_rows(metrics),
        "outside": f"{share(auroc['value'])} ({span(auroc)})" if auroc else "not measured",
        "cross_validated": share(measured) if measured is not None else "not on people",
        "size_alone": share(alone) if alone is not None else "–",
        "healthy": release_tables.healthy_given(metrics, positive),
        "maps": _MAPS[trust.maps_passed(metrics)],
        "data": text.model_text(metrics) or "not told",
    }


def _figures_and_card(models: ModelCache, name: str) -> tuple[list[dict[str, str]], str]:
    """The figures of a release's card, which travel within the page, and the card without its metadata."""
    try:
        folder = None
        if name:
            folder = release_of(models, name).folder
        card = ""
        if folder:
            card = (folder / CARD_FILE).read_text(encoding="utf-8")
    except (LeukoscopeError, OSError):
        return [], NO_CARD
    if not folder or not card:
        return [], NO_CARD
    figures = []
    for title, file in re.findall(r"!\[([^\]]*)\]\(([^)\s]*)\)", card):
        path = folder / file
        # Only a file of the release itself: nothing of the page is fetched from elsewhere.
        if re.fullmatch(r"figures/[\w.-]+\.png", file) and path.is_file():
            figures.append({"title": title, "source": data_uri("image/png", Path(path).read_bytes())})
    return figures, card_text(card)
