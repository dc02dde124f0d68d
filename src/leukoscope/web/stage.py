"""The stage as HTML: a picture on the left, the answer beside it, for a cell, a smear and a batch alike.

Pictures travel inside the page (data URIs): a visitor's cell is never written to disk to be shown. All text is escaped
here: a file name or a Hub model's labels may hold anything. A click does what `data-act` says, by `page.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.prediction import REFUSED
from leukoscope.inference.smear import CLASS_COLOURS, OTHER_COLOURS
from leukoscope.reports import text
from leukoscope.reports.formatting import data_uri, encoded
from leukoscope.reports.text import percent
from leukoscope.web.answer import Answer, Picture, Row, example, views_of

VIEWS = {"map": "Map", "turned": "Turned", "covered": "Covered"}
NOTICE = f'<p class="lk-notice" role="note">{escape(RESEARCH_NOTICE)}</p>'
REFUSED_COLOUR = "#85858b"
_WITHOUT = {
    "nucleus": "Without its nucleus",
    "cytoplasm": "Without its cytoplasm",
    "outside": "Without its surroundings",
}
_ORIENTATIONS = ("as given", "90°", "180°", "270°", "mirrored", "mirrored, 90°", "mirrored, 180°", "mirrored, 270°")


def message(title: str, said: str) -> str:
    """Something the visitor should act on: what is wrong, and the fix."""
    return f'<div class="lk-message" role="alert"><strong>{escape(title)}</strong>{escape(said)}</div>'


def note(said: str) -> str:
    """A quiet remark; "" for none."""
    return f'<p class="lk-note">{escape(said)}</p>' if said else ""


def waiting(said: str) -> str:
    """What stands where an answer will be."""
    return f'<div class="lk-empty" role="status">{escape(said)}</div>'


def details(summary: str, html: str, *, is_open: bool = False) -> str:
    """Something to unfold; `html` is markup, already escaped."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{html}</details>"


def act(name: str, label: str, *, title: str = "", classes: str = "lk-button", state: str = "", **is_: bool) -> str:
    """A button that does something; `label` is markup, already escaped, `state` an attribute, `is_` others of ARIA."""
    state += "".join(f' aria-{one}="{str(value).lower()}"' for one, value in is_.items())
    about = f' aria-label="{escape(title)}" title="{escape(title)}"' if title else ""
    return f'<button type="button" class="{classes}" data-act="{escape(name)}"{about}{state}>{label}</button>'


def short_name(model: str) -> str:
    """A model's name without what all of ours share."""
    return model.removeprefix("leukoscope-")


def colour(outcome: str, labels: Sequence[str]) -> str:
    """The colour of a class, the same in boxes, bars, dots and plots, or of what is none."""
    if outcome in labels:
        return CLASS_COLOURS[list(labels).index(outcome) % len(CLASS_COLOURS)]
    # Seen on dark as well, where the black of a saved picture is not.
    return REFUSED_COLOUR if outcome in REFUSED else OTHER_COLOURS.get(outcome, OTHER_COLOURS["abstain"])


def picture(image: Image.Image, alt: str, side: int = 0) -> str:
    """A picture that travels within the page, at most `side` pixels wide and high unless that is 0."""
    if side:
        image = image.copy()
        image.thumbnail((side, side))
    source = data_uri("image/webp", encoded(image, "WEBP", quality=88))
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="{source}" alt="{escape(alt)}" {size} draggable="false">'


def _choices(attributes: str, side: int, pictures: Iterable[tuple[str, Image.Image, str, str]]) -> str:
    """Pictures that can be picked: the act, the picture, the label below it and the title of each."""
    shown = "".join(
        f"<li>{act(name, picture(image, '', side) + escape(label), title=title, classes='')}</li>"
        for name, image, label, title in pictures
    )
    return f"<ul {attributes}>{shown}</ul>"


def given_choices(*, smears: bool) -> str:
    """The synthetic pictures that can be picked, and what else can be tried."""
    known = [example(number, smear=smears) for number in range(1, (4 if smears else 6) + 1)]
    shown = [(f"example:{one.example}", one.image, one.caption.rsplit(" ", 1)[-1], one.caption) for one in known]
    others = "" if smears else act("smear", "A smear")
    others += act("people", "Two people") + act("real", "Real cells", title="Real cells, downloaded from the Hub")
    pictures = _choices('class="lk-cells" id="examples"', 88, shown)
    return f'{note("Or try a synthetic one:")}{pictures}<div class="lk-acts">{others}</div>'


def real_choices(cells: Sequence[tuple[Image.Image, str]], about: str) -> str:
    """Real cells that can be picked."""
    shown = ((f"real:{at}", image, label, f"Real {label}") for at, (image, label) in enumerate(cells))
    return _choices('class="lk-cells" id="real-cells"', 88, shown) + note(about)


def kept_choices(pictures: Sequence[Picture]) -> str:
    """The cells of a visit, each a button that shows its answer again."""
    if len(pictures) < 2:
        return ""
    shown = ((f"kept:{at}", one.image, "", f"Show again: {one.caption}") for at, one in enumerate(pictures))
    return note("In this visit:") + _choices('class="lk-cells lk-small"', 64, shown)


def cell_picture(
    row: Row, *, view: str = "map", label: str = "", forms: Mapping[str, Row] | None = None, back: str = ""
) -> str:
    """The left of the stage: the cell with its map, its orientations, or its covered parts.

    `label` is the class whose map is shown ("": the called one), `forms` what the model says without each part, and
    `back` what the cell was opened from.
    """
    top, caption = act("back", f"← Back to the {escape(back)}") if back else "", escape(row.picture.caption)
    top = f'<div class="lk-top">{top}<span title="{caption}">{caption}</span></div>'
    if row.prediction is None:
        return f"{top}{_slider(row, '')}"
    tabs = ""
    if not row.refused:
        tabs = "".join(
            act(f"view:{name}", escape(said), classes="lk-tab", pressed=name == view) for name, said in VIEWS.items()
        )
        tabs = f'<div class="lk-tabs" role="group" aria-label="What of the cell is shown">{tabs}</div>'
    if row.pending and view == "turned":
        return f"{top}{tabs}{waiting('The eight orientations are being computed …')}"
    if row.refused or view == "map":
        return f"{top}{tabs}{_slider(row, label or row.called())}"
    return f"{top}{tabs}{_turned(row) if view == 'turned' else _covered(row, forms or {})}"


def _slider(row: Row, label: str) -> str:
    """The cell over its map, with a divider between them; for an element with `view.js`."""
    original, overlaid = row.pictures(label)
    style = f"aspect-ratio:{original.width}/{original.height};--wide:{original.width / original.height:.3f}"
    cell, over, below = picture(original, f"The picture as given: {row.picture.caption}"), "", ""
    if overlaid is not None:
        title = "Where its colours are unusual" if row.foreign is not None else f"Map for {label}"
        over = f"<div>{picture(overlaid, title)}</div>"
        below = (
            '<div class="lk-tools"><span aria-hidden="true">cell</span><input type="range" min="0" max="100" '
            'value="50" aria-label="How much of the map is shown"><span aria-hidden="true">map</span></div>'
        )
        ends = ("0", f"{row.peak:.3g}") if row.maps else ("2 σ", "6 σ")
        weak, strong, chip = row.thresholds.weak_evidence, row.thresholds.strong_evidence, ""
        if row.maps and weak is not None and strong is not None:
            chip = "weak map" if row.peak < weak else "strong map" if row.peak > strong else "typical strength"
        colours = f'<span>{ends[0]} <i aria-hidden="true"></i> {ends[1]}</span>{f"<b>{chip}</b>" if chip else ""}'
        others = "".join(
            act(f"label:{one}", escape(one), title=f"Map for {one}", pressed=one == label) for one in row.maps
        )
        below += f'<div class="lk-scale">{others or escape(title)} {colours}</div>'
        below += note(text.MAP_CAVEAT) if row.maps else ""
    return (
        f'<figure class="lk-view"><div class="lk-stage{"" if over else " alone"}" tabindex="0" role="group" '
        f'style="{style}" aria-label="Cell and map; + and − zoom, arrow keys move">{cell}{over}</div>{below}</figure>'
    )


def _form(image: Image.Image, side: int, ink: str, said: str, about: str) -> str:
    """A form of the cell, with what the model says of it."""
    return f'<li style="--c:{ink}">{picture(image, about, side)}<b>{escape(said)}</b><span>{about}</span></li>'


def _turned(row: Row) -> str:
    """The cell in its eight orientations, each with what the model says."""
    shown, images = "", views_of(row.picture.image)
    for about, image, shares, decided in zip(_ORIENTATIONS, images, row.known.views, row.orientations, strict=True):
        label = max(shares, key=shares.__getitem__)
        said = label if decided.label else f"{label}, {text.outcome_text(decided.outcome)}"
        ink = colour(label if decided.label else decided.outcome, list(row.known.probabilities))
        shown += _form(image, 150, ink, f"{said} {percent(shares[label])}", about)
    return f'{note(row.agreement())}<ul class="lk-cells lk-forms lk-wide">{shown}</ul>'


def _covered(row: Row, forms: Mapping[str, Row]) -> str:
    """The cell without its nucleus, its cytoplasm or its surroundings, and what the called class loses without each."""
    shown, said, label, labels = "", [], row.called(), list(row.known.probabilities)
    before = percent(row.known.probabilities[label])
    for name, one in {"": row, **forms}.items():
        now, about = percent(one.known.probabilities[label]), _WITHOUT.get(name, "As given")
        shown += _form(one.picture.image, 220, colour(one.known.outcome, labels), f"{label} {now}", about)
        unsure = "" if one.gives_a_class else ", which leaves it unsure"
        unsure = ", which it would refuse" if one.refused else unsure
        said += [f"{about}: {label} {before} → {now}{unsure}."] * bool(name)
    lines = " ".join(said) or "No nucleus is told apart in this picture."
    return f'{note(lines)}<ul class="lk-cells lk-forms lk-two lk-wide">{shown}</ul>'


def cell_answer(answer: Answer, opened: int) -> str:
    """The right of the stage: a row for each model, one of them opened."""
    shown = "".join(_row(row, number, is_open=number == opened) for number, row in enumerate(answer.rows))
    for name in answer.waiting:
        shown += f'<li class="lk-row lk-wait"><span class="lk-name">{escape(short_name(name))}</span> reading …</li>'
    row = answer.rows[opened] if opened < len(answer.rows) else None
    # The page's address follows what is open.
    state = f' data-model="{escape(row.model)}" data-example="{answer.picture.example or ""}"' if row else ""
    can_save = row is not None and row.prediction is not None and not row.pending
    saves = f'<div class="lk-acts">{act("save:png", "Save PNG")}</div>' if can_save else ""
    if not answer.rows and not answer.waiting:
        return waiting(f"Reading {answer.picture.caption} …")
    remark = note(answer.picture.remark)
    return f'<div{state}><ol class="lk-rows">{shown}</ol>{remark}{saves}</div>'


def readers(others: Sequence[str]) -> str:
    """Models that can read the same smear or batch, one click away."""
    buttons = "".join(act(f"read:{name}", f"Read by {escape(short_name(name))}") for name in others)
    return f'<div class="lk-acts">{buttons}</div>' if buttons else ""


def _row(row: Row, number: int, *, is_open: bool) -> str:
    """One model's answer; opened with what it rests on."""
    name = f'<span class="lk-name">{escape(short_name(row.model))}</span>'
    if row.prediction is None:
        return f'<li class="lk-row"><div class="lk-head-row">{name}</div>{note(row.error)}</li>'
    said, labels = row.decision_text(), list(row.known.probabilities)
    kind = "none" if not said.has_class else "soft" if said.soft else ""
    called = row.called()
    share = f"<data>{percent(row.known.probabilities[called])}</data>" if said.has_class else ""
    pill = f'<b class="lk-pill {kind}">{escape(said.short)}</b>'
    head = act(f"row:{number}", f"{name}{pill}{share}", classes="lk-head-row", expanded=is_open)
    bar = "".join(
        f'<i style="width:{value:.2%};background:{colour(label, labels)}"></i>' for label, value in row.shares().items()
    )
    bar = f'<div class="lk-track" aria-hidden="true">{bar}</div>' if said.has_class else ""
    under = note(row.agreement()) + note(text.recall_text(row.metrics))
    more = _opened(row) if is_open else ""
    style = f' style="--c:{colour(row.known.outcome, labels)}"'
    state = f"{' open' if is_open else ''}{' lk-wait' if row.pending else ''}"
    return f'<li class="lk-row{state}"{style}>{head}{bar}{under}{more}</li>'


def _opened(row: Row) -> str:
    """What an opened row says: the reasons, how often it was right, and what it is foreign by."""
    said = row.decision_text()
    soft = f"{said.headline} " if said.soft else ""
    lines = [f"{soft}{said.because}".strip(), text.trust_text(row.known.decision, row.metrics)]
    lines += text.warnings(row.metrics, has_detector=row.known.checks.ood_score is not None)
    html = "".join(map(note, lines))
    bars = "".join(
        f"<li><b>{escape(label)}</b> {escape(text.MEANINGS.get(label, ''))} <data>{percent(share)}</data></li>"
        for label, share in row.shares().items()
    )
    bars = f'<ul class="lk-bars">{bars}</ul>'
    if not said.has_class:
        bars = details("Probabilities: no result for this picture", bars)
    (left, top, right, bottom), whole = row.known.view_box, row.picture.image.size
    about = {
        "Model": f"{row.model}, {row.known.revision[:12] or 'local files'}",
        "Trained on": text.model_text(row.metrics).removeprefix("Trained on ") or "not told",
        "Seen by the model": f"{right - left:.0f} × {bottom - top:.0f} of {whole[0]} × {whole[1]} pixels",
    }
    more = details("Map and model", note(row.map_text(row.called())) + facts(about))
    return f'<div role="status">{bars}{html}</div>{more}'


def counts(numbers: Mapping[str, int], labels: Sequence[str]) -> str:
    """How many cells have each outcome, in its colour."""
    rows = "".join(
        f'<div style="--c:{colour(one, labels)}"><dt>{escape(text.outcome_text(one))}</dt><dd>{count}</dd></div>'
        for one, count in numbers.items()
    )
    return f'<dl class="lk-counts">{rows}</dl>'


def facts(values: Mapping[str, str]) -> str:
    """Names and their values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items())
    return f'<dl class="lk-facts">{rows}</dl>'
