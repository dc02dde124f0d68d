"""The tab "Guess first": ten cells, a visitor's guesses against the model and against the size of the cell alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from secrets import randbelow
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.evaluation.morphology import measure_cell
from leukoscope.synthetic import PHANTOM_LABELS, draw_cell
from leukoscope.web import panels
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.page import PRIVATE, QUIET, SESSION_SECONDS, Updates
from leukoscope.web.tabs.evidence import lead_sentences
from leukoscope.web.text import localised, meaning, t

CELLS, ROUNDS = 10, 10_000


@dataclass(frozen=True)
class GuessCell:
    """A cell whose class is known, and what its size alone says."""

    image: Image.Image
    label: str
    size: str


@dataclass(frozen=True)
class Round:
    """Ten cells and the guesses so far; lives in a visitor's session.

    `measured` says how good the model, which guesses too, and size alone are on real cells; `seed` draws the same
    cells again, and is -1 for real ones; `rival` is how many whoever shared the round knew, -1 without one.
    """

    cells: tuple[GuessCell, ...]
    labels: tuple[str, ...]
    model: str
    measured: str
    seed: int = -1
    rival: int = -1
    guesses: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    def guessed(self, models: ModelCache, label: str) -> Round:
        """The round after one guess more, the model's among them."""
        cell = self.cells[len(self.guesses)]
        (predicted,) = models.predict(models.predictor(self.model), [cell.image])
        answers = (*self.answers, predicted.most_probable)
        return replace(self, guesses=(*self.guesses, label), answers=answers)

    def told(self, number: int) -> str:
        """The class of a cell that was guessed, and who knew it."""
        cell = self.cells[number]
        said = {"guess_you": self.guesses[number], "guess_model": self.answers[number], "guess_size": cell.size}
        marks = ", ".join(f"{t(name)} {'✓' if label == cell.label else '✗'}" for name, label in said.items())
        return f"{cell.label}: {marks}"

    def right(self, of: Sequence[str]) -> int:
        """How many of some answers are right."""
        return sum(one == cell.label for one, cell in zip(of, self.cells, strict=False))


def phantoms(seed: int) -> list[tuple[Image.Image, str]]:
    """Ten synthetic cells, five of each class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation([label for label in PHANTOM_LABELS for _ in range(CELLS // len(PHANTOM_LABELS))])
    subjects = rng.integers(20, 2000, CELLS)
    return [
        (Image.fromarray(draw_cell(str(label), subject=int(subject), cell=number).image), str(label))
        for number, (label, subject) in enumerate(zip(labels, subjects, strict=True))
    ]


def shared_round(address: Mapping[str, str]) -> tuple[int, int]:
    """The seed of the round that a page's address shares, and how many its sender knew; -1 for what is not there."""
    asked = (address.get("round", ""), address.get("right", ""))
    seed, right = (int(one) if re.fullmatch("[0-9]{1,9}", one) else -1 for one in asked)
    return (seed % ROUNDS, right if right <= CELLS else -1) if seed >= 0 else (-1, -1)


def new_round(
    models: ModelCache, choice: str | None, cells: Sequence[tuple[Image.Image, str]], seed: int, rival: int = -1
) -> Round:
    """A round of cells whose class is known, for a model that tells just these classes apart."""
    predictor = models.predictor(choice)
    if not {label for _, label in cells} <= set(predictor.labels) or len(predictor.labels) != 2:
        raise LeukoscopeError(f"{choice}: tells {', '.join(predictor.labels)} apart; choose a model of ALL and HEM")
    metrics = predictor.release.metrics
    positive = metrics.get("positive_label") or predictor.labels[0]
    negative = next(label for label in predictor.labels if label != positive)
    areas = [one.area if (one := measure_cell(image)) else 0.0 for image, _ in cells]
    # Larger than half of the training cells; of a release that does not carry their sizes, than half of these.
    known = (metrics.get("morphology") or {}).get("area") or areas
    return Round(
        tuple(
            GuessCell(image, label, positive if area > np.median(known) else negative)
            for (image, label), area in zip(cells, areas, strict=True)
        ),
        predictor.labels,
        str(choice),
        next(iter(lead_sentences(metrics)), ""),
        seed,
        rival,
    )


def hint(visit: gr.Request) -> str:
    """What the tab begins with, as HTML: what there is to guess, or whose score to beat in a round that is shared."""
    _, right = shared_round(visit.query_params)
    return panels.placeholder(t("guess_hint") if right < 0 else t("guess_shared", right=right, of=CELLS))


def build_tab(
    demo: gr.Blocks,
    models: ModelCache,
    model: gr.Dropdown,
    real_cells: Callable[[str | None], list[tuple[Image.Image, str]]],
) -> None:
    """Add the tab; `real_cells` gives a few cells of the data set that a model was trained on, each with its class."""
    with gr.Tab(localised("tab_guess"), id="guess"):
        played = gr.State(None, time_to_live=SESSION_SECONDS)
        shown = gr.HTML(elem_id="guess", padding=False)
        with gr.Row(visible=False, elem_id="guesses") as row:
            buttons = [gr.Button("", variant="secondary") for _ in range(2)]
        with gr.Row() as starts:
            start = gr.Button(localised("guess_start"), variant="primary", elem_id="guess-start")
            real = gr.Button(localised("guess_real"), elem_id="guess-real")

    def show(found: Round) -> Updates:
        number = len(found.guesses)
        if number == len(found.cells):
            return {played: found, shown: score(found), row: gr.Row(visible=False), starts: gr.Row(visible=True)}
        step = t("guess_cell", number=number + 1, of=len(found.cells))
        if found.seed >= 0:
            step += f", {t('guess_phantom')}"
        told = f'<p class="lk-headline" role="status">{escape(found.told(number - 1))}</p>' if number else ""
        names = [f"{label} ({meaning(label)})" if meaning(label) else label for label in found.labels]
        return {
            played: found,
            shown: (
                f'<figure class="lk-guess">{told}{panels.picture(found.cells[number].image, step, 360)}'
                f'<figcaption role="status">{escape(step)}</figcaption></figure>'
            ),
            row: gr.Row(visible=True),
            starts: gr.Row(visible=False),
            **{button: gr.Button(name) for button, name in zip(buttons, names, strict=True)},
        }

    def attempt(begin: Callable[[], Round]) -> Updates:
        try:
            return show(begin())
        except LeukoscopeError as error:
            failed = panels.message(t("failed"), str(error))
            return {played: None, shown: failed, row: gr.Row(visible=False), starts: gr.Row(visible=True)}

    def on_start(choice: str | None, before: Round | None, visit: gr.Request) -> Updates:
        # A link's cells first, then others.
        seed, rival = shared_round(visit.query_params) if before is None else (-1, -1)
        seed = seed if seed >= 0 else randbelow(ROUNDS)
        return attempt(lambda: new_round(models, choice, phantoms(seed), seed, rival))

    def on_real(choice: str | None) -> Updates:
        return attempt(lambda: new_round(models, choice, real_cells(choice), -1))

    def on_guess(which: int, found: Round | None) -> Updates:
        if found is None:
            return {shown: panels.placeholder(t("result_deleted"))}
        return attempt(lambda: found.guessed(models, found.labels[which]))

    demo.load(hint, None, shown, **QUIET)
    outputs = [played, shown, row, starts, *buttons]
    quiet: dict[str, Any] = {**PRIVATE, "show_progress_on": [shown]}
    asked = real.click(on_real, model, outputs, **quiet)
    # Real cells are downloaded for minutes; once they are here, they would replace the round begun meanwhile.
    start.click(on_start, [model, played], outputs, cancels=asked, **quiet)
    for which, button in enumerate(buttons):
        button.click(partial(on_guess, which), played, outputs, **quiet)


def score(found: Round) -> str:
    """Who was right how often, every cell with its class, and the address of these cells, as HTML."""
    of, sizes = len(found.cells), [one.size for one in found.cells]
    rows = [
        (t(name), f"{found.right(answers)} / {of}")
        for name, answers in (("guess_you", found.guesses), ("guess_model", found.answers), ("guess_size", sizes))
    ]
    if found.rival >= 0:
        rows.append((t("guess_rival"), f"{found.rival} / {of}"))
    notes, link, cells = t("guess_lesson"), "", ""
    if found.seed >= 0:  # the same cells can be drawn again
        notes = f"{notes} {t('guess_phantoms')} {found.measured}"
        asked = f"?tab=guess&amp;round={found.seed}&amp;right={found.right(found.guesses)}"
        link = f'<p><a href="{asked}" target="_blank">{t("guess_link")}</a></p>'
    for number, cell in enumerate(found.cells):
        told = found.told(number)
        cells += f"<li>{panels.picture(cell.image, told, 128)}<span>{escape(told)}</span></li>"
    table = panels.table((t("guess_who"), t("guess_right")), rows)
    return f'{table}{panels.note(notes)}{link}<ul class="lk-cells">{cells}</ul>'
