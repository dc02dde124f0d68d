"""A smear: every white cell found and classified by the chosen model; each can be opened as a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from typing_extensions import TypedDict

from leukoscope import RESEARCH_NOTICE, DataError
from leukoscope.data.registry import EMPTY_SLIDE_RGB, cells_of
from leukoscope.data.smear import IMPLAUSIBLE_SCALE, SmearCell, cut_out
from leukoscope.demo import pictures
from leukoscope.demo.answers import Card, Part, as_csv, ask, called, colour, other_line, trusted
from leukoscope.demo.components import SmearStage, VerdictCard
from leukoscope.demo.models import Models
from leukoscope.demo.page import (
    PRIVATE_EVENT,
    STARTING_EVENT,
    Page,
    Update,
    add_pressed_cells,
    add_question,
    chosen_model,
    pressed,
)
from leukoscope.demo.pictures import SMEAR_NAME, Picture, Row, examples
from leukoscope.demo.uploads import SMEAR_PIXELS, Chosen, Visit, as_example
from leukoscope.inference.prediction import ABSTAIN, FIELD_NEEDS, REFUSED
from leukoscope.inference.smear import AT_EDGE, SmearReading, read_smear
from leukoscope.models.release import ReleaseInfo
from leukoscope.reports import words
from leukoscope.reports.words import outcome_text

# Of one smear: half a minute of a small machine; a visitor's cell waits until a batch of its cells is computed.
LIMITS: dict[str, Any] = {"most_cells": 500, "seconds": 60, "batch_size": 2}
MARKS = {ABSTAIN: "?"}  # what a box without a class says, unless "no class"
FEWEST_NUCLEI = 3  # whole cells on whose nuclei a scale may be measured
SOURCES = {"given": "as given", "red cells": "from its red cells", "nuclei": "from its nuclei"}
NO_SCALE = (
    "It has too few plausible red cells or nuclei to measure its scale on. Give its scale in micrometres per pixel on "
    "the picture."
)
SMEAR_WAITING = Card(waiting="Finding its cells …")


class SmearView(TypedDict, total=False):
    """A smear as its stage shows it."""

    picture: str
    width: int
    height: int
    name: str
    scale: str
    boxes: list[Row]  # places are pixels of the picture
    um_per_pixel: float


class Reading(NamedTuple):
    """A smear and what a model reads in it; in a visitor's session, in memory only."""

    picture: Picture
    reading: SmearReading
    release: ReleaseInfo

    @property
    def whole(self) -> list[int]:
        """Numbers of the cells that can be opened."""
        return [number for number, cell in enumerate(self.reading.cells) if cell.prediction]

    def cell_picture(self, number: int) -> Picture | None:
        """A cell, alone on black; None where there is no whole one of that number."""
        scale = self.reading.smear.scale
        if scale is None or number not in self.whole:
            return None
        image = cut_out(self.picture.image, self.reading.cells[number].cell, scale.um_per_pixel)
        name = f"Cell {number + 1} of {self.picture.name}"
        return Picture(image, name, field_share=self.reading.in_distribution, back="smear")

    @property
    def counts(self) -> dict[str, int]:
        """Outcome → number of whole cells, where there are some."""
        return {outcome: count for outcome, count in self.reading.counts.items() if count and outcome != AT_EDGE}

    @property
    def is_foreign(self) -> bool:
        """Whether too few of its cells are like the training cells for any to get a class."""
        share = self.reading.in_distribution
        return share is not None and share < FIELD_NEEDS

    @property
    def has_scale(self) -> bool:
        """Whether its scale is given, or measured on enough plausible cells."""
        scale = self.reading.smear.scale
        if scale is None or scale.source == "given":
            return scale is not None
        if any(note.endswith(IMPLAUSIBLE_SCALE) for note in self.reading.smear.notes):
            return False
        return len(self.whole) >= (1 if scale.source == "red cells" else FEWEST_NUCLEI)


def smear_tab(page: Page, opened: gr.Tab) -> None:
    """Build the tab."""
    with gr.Row(equal_height=True, elem_classes="stage-and-answer"):
        with gr.Column(scale=7, min_width=320):
            stage = SmearStage(SmearView(), elem_id="smear-stage", elem_classes="light")
        with gr.Column(scale=6, min_width=320):
            card = VerdictCard(SMEAR_WAITING, elem_id="smear-card")
    strip = page.strips["smear"]
    strip.render()  # type: ignore[no-untyped-call]

    def start(chosen: Chosen, model: str, visit: Visit) -> Update:
        """Show the smear, and a card that waits; nothing where nothing was given."""
        picture = chosen_smear(chosen, visit)
        if picture is None:
            return {}
        visit.question["smear"] = picture
        return {card: SMEAR_WAITING, stage: smear_view(picture)}

    def find_cells(picture: Picture, model: str, visit: Visit) -> Iterator[tuple[Reading, Update]]:
        """The cells of the smear."""
        number = visit.asked["smear"]
        read = read_cells(page.models, picture, model, lambda: visit.asked["smear"] != number)
        yield read, {card: smear_card(read, page.models), stage: smear_view(picture, read)}

    def set_scale(visit: Visit, event: gr.EventData) -> Update:
        """Read the smear again by the scale that was typed; without one it is measured."""
        picture = visit.question.get("smear")
        if picture is None:
            return {page.visit: visit}
        visit.ask("smear")
        visit.question["smear"] = replace(picture, um_per_pixel=pressed(event, "um", int | float))
        return {card: SMEAR_WAITING, stage: smear_view(picture), page.visit: visit}

    def first_smear(strip: Any, visit: Visit) -> Any:
        """The synthetic smear, where nothing was given here or as a cell."""
        if strip.get("example") or strip.get("files") or "smear" in visit.handed:
            return gr.skip()
        return as_example(SMEAR_NAME)

    opened.select(first_smear, [strip, page.visit], strip, **PRIVATE_EVENT)
    scaled = stage.submit(set_scale, page.visit, [card, stage, page.visit], **STARTING_EVENT)
    changed = [strip.change, page.model.change]
    add_question(page, "smear", card, {stage: SmearView()}, start, find_cells, changed, again=[scaled], at_once=1)
    add_pressed_cells(page, "smear", [stage.select, card.select])
    card.input(chosen_model, page.model, page.model, **PRIVATE_EVENT)


def chosen_smear(chosen: Chosen, visit: Visit) -> Picture | None:
    """The chosen smear: the synthetic one, or an upload; None where nothing was given.

    Raises:
        LeukoscopeError: several files, or an upload that cannot be read.
    """
    if chosen.is_batch:
        raise DataError("Several pictures belong into the tab Batch; give one smear here.")
    if chosen.files:
        return visit.read(chosen.files[0], SMEAR_PIXELS)
    return examples().get(chosen.example)


def read_cells(models: Models, picture: Picture, model: str, stopped: Callable[[], bool] | None = None) -> Reading:
    """Find and classify the cells of a smear; errors as of `read_smear`."""
    model = models.checked(model)
    predictor = models.predictor(model)
    picture = picture.on(EMPTY_SLIDE_RGB)
    reading = read_smear(
        predictor, picture.image, picture.name, um_per_pixel=picture.um_per_pixel, stopped=stopped, **LIMITS
    )
    return Reading(picture, replace(reading, model=model), predictor.release)


def smear_card(read: Reading, models: Models) -> Card:
    """What a model finds in a smear, as data; where its cells are foreign, who knows the whole picture."""
    reading = read.reading
    card = Card(
        model=words.short_name(reading.model),
        maps=whole_words(read),
        verdict=verdict(read),
        caveats=caveats(read),
        more=[words.about_model(reading.model, reading.revision)],
        saved=as_csv(lines_of(read)),
        saved_name="leukoscope-smear.csv",
    )
    if read.has_scale:
        card["parts"] = [
            Part(
                words=outcome_text(outcome),
                percent=counted(count, "cells"),
                share=count,
                colour=colour(outcome, reading.labels),
            )
            for outcome, count in read.counts.items()
        ]
        card["tiles"] = [smear_tile(read, number) for number in read.whole]
    if read.whole and not read.is_foreign:
        return card | trusted(read.release)
    for other in models.names:
        if read.is_foreign and models.release(other).takes_cut_outs is False:
            line = other_line(ask(models, read.picture, other, explain=False))
            if "part" in line:
                card["knows"] = line
    return card


def whole_words(read: Reading) -> str:
    """How many cells are whole, and how many the edge cuts."""
    whole = counted(len(read.whole), "whole white cells")
    cut = len(read.reading.cells) - len(read.whole)
    return f"{whole}, {cut} cut by the edge" if cut else whole


def counted(count: int, things: str) -> str:
    """A number of things, which are given in the plural."""
    return f"{count} {things.removesuffix('s') if count == 1 else things}"


def verdict(read: Reading) -> str:
    """What the cells look like, in one sentence."""
    labels = read.reading.labels
    if not read.whole:
        return "No whole white cell found" if read.reading.cells else words.NOTHING_FOUND
    if not read.has_scale:
        return "No class: its scale is not known"
    if read.is_foreign or set(read.counts) <= set(REFUSED):
        return words.FOREIGN_VERDICT
    parts = []
    for outcome, count in read.counts.items():
        if outcome in labels:
            parts.append(counted(count, cells_of(outcome)))
        else:
            parts.append(f"{counted(count, 'cells')} {outcome_text(outcome)}")
    return ", ".join(parts)


def caveats(read: Reading) -> list[str]:
    """What must be known before the answer is used."""
    reading = read.reading
    lines = [*reading.smear.notes]
    if not read.has_scale:
        lines = [NO_SCALE]
    elif read.is_foreign:
        alike = round((reading.in_distribution or 0) * len(read.whole))
        lines.append(
            f"{alike} of {len(read.whole)} cells are like the training cells; below {words.percent(FIELD_NEEDS)}, none "
            "gets a class. Another stain, microscope or kind of cell does that, or a wrong scale."
        )
    has_detector = not read.whole or reading.in_distribution is not None
    return [*lines, *words.warnings(read.release.metrics, has_detector=has_detector)]


def cell_size(cell: SmearCell) -> tuple[float, float]:
    """The area of a whole cell in µm² and its nucleus's share, 0–1, by both outlines."""
    share = np.count_nonzero(cell.nucleus) / max(1, int(np.count_nonzero(cell.mask | cell.nucleus)))
    return cell.nucleus_area / max(share, 1e-6), share


def smear_tile(read: Reading, number: int) -> Row:
    """A whole cell of a smear, beside its stage."""
    cell = read.reading.cells[number]
    picture = read.cell_picture(number)
    assert cell.prediction is not None and picture is not None
    area, nucleus = cell_size(cell.cell)
    caption = called(cell.outcome, cell.prediction.probabilities)
    return {
        **pictures.tile(picture.image, picture),
        "number": number,
        "name": f"{caption}, {area:.0f} µm², nucleus {words.percent(nucleus)} of it",
        "words": f"{number + 1} {caption}",
        "colour": colour(cell.outcome, read.reading.labels),
    }


def smear_view(picture: Picture, read: Reading | None = None) -> SmearView:
    """A smear with a box for each cell; before it is read, without."""
    image = picture.on(EMPTY_SLIDE_RGB).image
    view = SmearView(
        picture=pictures.small(image, pictures.SMEAR_SIDE),
        width=image.width,
        height=image.height,
        name=picture.name,
        scale="scale not known" if read else "its scale is read …",
    )
    if read is None:
        return view
    view["boxes"] = [box(read, number) for number in range(len(read.reading.cells))]
    scale = read.reading.smear.scale
    if read.has_scale and scale is not None:
        view["scale"] = f"{scale.um_per_pixel:.4g} µm per pixel, {SOURCES[scale.source]}"
        view["um_per_pixel"] = scale.um_per_pixel
    return view


def box(read: Reading, number: int) -> Row:
    """Where a cell lies, and what it is."""
    cell = read.reading.cells[number]
    labels = read.reading.labels
    left, top, right, bottom = cell.cell.box
    outcome = cell.outcome if read.has_scale else AT_EDGE
    mark = outcome if outcome in labels else MARKS.get(outcome, "no class")
    return {
        "number": number,
        "words": f"{number + 1} {mark}",
        "colour": colour(outcome, labels),
        "whole": number in read.whole,
        "left": left,
        "top": top,
        "width": right - left,
        "height": bottom - top,
    }


def lines_of(read: Reading) -> list[Row]:
    """A line for each cell, as it is saved."""
    lines = []
    for cell in read.reading.cells:
        line = cell.to_dict()
        del line["reasons"]
        line["probabilities"] = line["probabilities"] or {}
        line["area_um2"] = cell_size(cell.cell)[0] if cell.prediction else None
        lines.append({**line, "model": read.reading.model, "notice": RESEARCH_NOTICE})
    return lines
