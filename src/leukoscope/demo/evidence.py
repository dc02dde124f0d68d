"""How good the models are: their measurements, the people behind them, and the card of the chosen one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata

import gradio as gr
import pandas as pd

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.registry import cells_of
from leukoscope.demo.answers import colour
from leukoscope.demo.components import PeoplePlot
from leukoscope.demo.models import Models
from leukoscope.demo.page import PRIVATE_EVENT, Page
from leukoscope.demo.people import Plot
from leukoscope.demo.pictures import Row
from leukoscope.models.metrics import SubjectFigures
from leukoscope.models.release import CARD_FILE, ReleaseInfo
from leukoscope.reports import words
from leukoscope.reports.tables import Table, as_text, hundred

INTRODUCTION = """
## How good are they?
Of 100 cells of each class, for how many the most probable class is right, with
95 % intervals over people. **Further people** come first:
people whose cells no weights were trained on.
"""
MAX_CARD = 100_000  # characters; a stranger's card may be of any length
NO_CARD = "This release comes without a card."
_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_IMAGE = re.compile(r"!\[[^\[\]]*\](\([^()]*\)|\[[^\[\]]*\])")
# An image in another notation, such as ![name] with its address elsewhere: without the mark it is a link.
_IMAGE_MARK = re.compile(r"!+(?=\[)")
# Gradio draws such a block as a diagram, whose labels may be HTML.
_DIAGRAM = re.compile(r"^([ \t]*(?:```+|~~~+))[ \t]*mermaid", re.IGNORECASE | re.MULTILINE)


def evidence_tab(page: Page, opened: gr.Tab) -> None:
    """Build the tab."""
    with gr.Column(elem_id="evidence"):
        facts = gr.Markdown(INTRODUCTION, container=False)
        people = PeoplePlot(Plot(), elem_id="tested-people")
        card = gr.Markdown(container=False, elem_id="model-card")

    def show(model: str) -> tuple[str, Plot, str]:
        """The measurements of all models, and all of the chosen one."""
        text = f"{INTRODUCTION}\n{measurements(page.models)}\n\n"
        try:
            release = page.models.release(model)
        except LeukoscopeError as error:
            return text + str(error), Plot(), ""
        return text + facts_of(release), people_of(release), card_of(release)

    gr.on(
        [opened.select, page.model.change],
        show,
        page.model,
        [facts, people, card],
        trigger_mode="always_last",
        **PRIVATE_EVENT,
    )


def measurements(models: Models) -> str:
    """A table of every model's two measurements, further people first."""
    lines = []
    for name in models.names:
        model = as_text(words.short_name(name))
        try:
            release = models.release(name)
        except LeukoscopeError as error:
            lines.append({"tested on": f"**{model}**: {as_text(str(error))}"})
            continue
        further, own = words.trust_rows(release.metrics)
        for row, cells in ((further, cells_per_person(release)), (own, "")):
            people = f"{row.name}{cells}" if row.meters else row.caveat
            line = {"tested on": f"**{model}**: {as_text(people)}"}
            for meter in row.meters:
                line[f"{as_text(meter.label)} of 100"] = f"{meter.share} ({meter.low}–{meter.high})"
            lines.append(line)
    table = pd.DataFrame(lines).fillna("–")
    return str(Table(list(table.columns), table.to_numpy().tolist()))


def cells_per_person(release: ReleaseInfo) -> str:
    """How many cells the people of an outside check have."""
    further = release.metrics.further_subjects
    if further is None:
        return ""
    mean = round(further.cells / further.subjects)
    few = further.subjects_with_at_most_3_cells
    return f", {further.cells} cells: {mean} of a person in the mean{f', at most 3 of {few} people' if few else ''}"


def facts_of(release: ReleaseInfo) -> str:
    """What must be known of the chosen model's measurements, and where the code is."""
    lines = [
        f"### {as_text(words.short_name(release.name))}",
        words.about_further_people(release.metrics),
        words.robustness_text(release.metrics),
        f"{words.model_text(release.metrics)}.",
        release.map_check.text,
        repository_link(),
    ]
    return clean_card("\n\n".join(line for line in lines if line.strip(".")))


def repository_link() -> str:
    """A link to the code, once the package names its repository."""
    try:
        links = metadata("leukoscope").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    named = [link.split(", ", 1) for link in links]
    return " · ".join(f"[{title}]({address})" for title, address in named)


def people_of(release: ReleaseInfo) -> Plot:
    """For each class the people who were tested: of 100 of their cells, how many are recognised."""
    evaluation = release.metrics.unseen_evaluation
    subjects = evaluation.metrics.subjects if evaluation else {}
    rows = [people_of_class(release.labels, label, subjects) for label in release.labels] if subjects else []
    return Plot(people=rows, axis="each dot a person of the cross-validation: share of its cells that is recognised")


def people_of_class(labels: Sequence[str], label: str, subjects: Mapping[str, SubjectFigures]) -> Row:
    """The people of one class, worst first."""
    tested = sorted((person.accuracy, name) for name, person in subjects.items() if person.label == label)
    mean = sum(accuracy for accuracy, _ in tested) / max(1, len(tested))
    dots = []
    for accuracy, name in tested:
        title = f"{name}: {hundred(accuracy)} of 100 of {subjects[name].cells} cells"
        dots.append({"share": accuracy, "colour": colour(label, labels), "title": title})
    return {
        "name": label,
        "cells": f"{len(tested)} people",
        "dots": dots,
        "words": f"{hundred(mean)} of 100 {cells_of(label)}",
        "detail": "the mean over people",
        "colour": colour(label, labels),
    }


def card_of(release: ReleaseInfo) -> str:
    """The card of a release, cleaned; the line on top of the page says the notice already."""
    try:
        card = (release.folder / CARD_FILE).read_text(encoding="utf-8") if release.folder else ""
    except OSError:
        card = ""
    return clean_card(card).replace(f"**{RESEARCH_NOTICE}**", "") or NO_CARD


def clean_card(markdown: str) -> str:
    """A model card for the page: without its header, its pictures and all HTML; links stay.

    The card of a Hub model is written by strangers: a picture in it would tell them who looks at the page and when.
    """
    card = _HEADER.sub("", markdown[:MAX_CARD])
    card = _IMAGE_MARK.sub("", _IMAGE.sub("", card))
    card = _DIAGRAM.sub(r"\1text", card.replace("<", "&lt;"))
    if len(markdown) > MAX_CARD:
        card += f"\n\nOnly the first {MAX_CARD} characters of this card are shown."
    return card
