"""The picture that a visitor saves, in the page's look: cell and map, or a smear, above, what the page says below."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import gradio
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.images import SHOWN_BRIGHTER
from leukoscope.data.registry import cells_of
from leukoscope.data.smear import IMPLAUSIBLE_SCALE, PASSED_OVER
from leukoscope.inference.prediction import REFUSED
from leukoscope.inference.smear import AT_EDGE, CLASS_COLOURS, colour_place, drawing_font
from leukoscope.reports import text, trust
from leukoscope.web import smear_page
from leukoscope.web.answer import Row, scale_colours, with_rim
from leukoscope.web.smear import Smear, scale_text
from leukoscope.web.stage import ABOUT_MAPS, facts, missed_limit
from leukoscope.web.views import FINER_MAP, closer, enlarged

# The page's light colours, and its sizes doubled, in pixels.
SHEET_WIDTH = 1120
SIDE = 500  # of cell and map
MARGIN = 40
GAP = 28
TEXT = 20
VERDICT = 40
LINE = 28
BAR = 18
LEAST_PART = 8  # pixels of the length of a bar
DOT = 12  # across the dot of a class
SMOOTH = 4  # as how many times as large a round form is drawn, whose edge is then smooth
INK = "#18141f"
QUIET = "#5d5868"
RULE = "#e3e0ea"
NO_CLASS = "#6d6877"
LESS_PROBABLE = "#bdb8c8"
ACCENT = "#5a2d97"
FACTS_AT = MARGIN + 170  # where what is said of a topic begins
WARNING = "#7a4b00"
WARNING_FILL = "#fff3d6"
STAGE = "#000000"
ON_STAGE = "#d5d3da"
MOST_CAPTION = 46  # letters of a file's name


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The page's font, which Gradio brings; without it, that of a smear's boxes."""
    fonts = Path(gradio.__file__).parent / "templates" / "frontend" / "static" / "fonts" / "IBMPlexSans"
    file = fonts / f"IBMPlexSans-{'Bold' if bold else 'Regular'}.woff2"
    if file.is_file():
        return ImageFont.truetype(file, size)
    return drawing_font(size)


def row_image(row: Row, label: str, *, with_map: bool = True) -> Image.Image:
    """One model's answer as RGB: the cell, the map of a class beside it, and the answer below them."""
    sheet = _Sheet(_stage(row, label, with_map=with_map))
    labels = list(row.known.probabilities)
    decided = row.decision_text()
    sheet.text(text.short_name(row.model), QUIET)
    sheet.verdict(row.verdict(), _colour(row.called(), labels) if decided.has_class else NO_CLASS)
    sheet.note(row.caveats())
    limit = missed_limit(row)
    if decided.has_class or limit is not None:
        sheet.shares(row, limit)
    if row.orientations:
        colours = [_outcome_colour(decision.outcome, labels) for decision in row.orientations]
        sheet.dots(colours, row.agreement(), WARNING if row.is_class_lost_by_turning else QUIET)
    if row.known.changed:
        sheet.top += 6
        colours = [_outcome_colour(answer.decision.outcome, labels) for answer in row.known.changed]
        borderline = row.borderline()
        sheet.dots(colours, borderline or text.unchanged_text(row.known), WARNING if borderline else QUIET)
    if not row.refused:
        sheet.recalls(trust.trust_rows(row.metrics), labels)
    sheet.rule()
    for topic, sentences in facts(row, label).items():
        if with_map or topic not in ABOUT_MAPS:
            sheet.fact(topic, sentences)
    return sheet.finished()


def smear_image(smear: Smear) -> Image.Image:
    """A smear as RGB: a box round each of its cells, and below it how many have each outcome."""
    reading = smear.reading
    sheet = _Sheet(_boxed(smear))
    sheet.text(f"{text.short_name(reading.model)} · {smear_page.summary(smear)}", QUIET)
    sheet.text(smear_page.verdict(smear), size=VERDICT, bold=True)
    sheet.top += 8
    sheet.note(smear_page.caveats(smear))
    sheet.counts(smear)
    if smear.whole and not smear.is_foreign:
        sheet.recalls(trust.trust_rows(smear.metrics), reading.labels)
    sheet.rule()
    for note in reading.smear.notes:
        if not note.endswith((IMPLAUSIBLE_SCALE, PASSED_OVER)):  # said above
            sheet.text(note, QUIET)
    sheet.text(f"{reading.source}: {scale_text(smear)}. {text.about_model(reading.model, reading.revision)}.", QUIET)
    return sheet.finished()


def _boxed(smear: Smear) -> Image.Image:
    """The smear over the whole width, with the boxes and numbers of the page; of many cells without their class."""
    reading = smear.reading
    image = smear.picture.image
    scale = SHEET_WIDTH / image.width
    drawn = image.resize((SHEET_WIDTH, round(scale * image.height)))
    pen = ImageDraw.Draw(drawn)
    font = _font(TEXT, bold=True)
    crowded = len(reading.cells) > smear_page.MOST_BOXES_WITH_CLASS
    for number, cell in enumerate(reading.cells):
        left, top, right, bottom = (scale * edge for edge in cell.cell.box)
        ink = _outcome_colour(cell.outcome, reading.labels)
        pen.rectangle((left, top, right, bottom), outline=ink, width=2 if crowded else 4)
        if cell.outcome == AT_EDGE and crowded:
            continue
        words = str(number + 1) if crowded else f"{number + 1} {smear_page.mark(cell, reading.labels)}"
        if cell.outcome == AT_EDGE:
            words = AT_EDGE
        width = font.getlength(words) + 16
        at = min(left, drawn.width - width)
        above = top - LINE if top >= LINE else bottom
        pen.rectangle((at, above, at + width, above + LINE), ink)
        pen.text((at + 8, above + LINE / 2), words, "white", font, anchor="lm")
    return drawn


def _outcome_colour(outcome: str, labels: Sequence[str]) -> str:
    return _colour(outcome, labels) if outcome in labels else NO_CLASS


def _colour(label: str, labels: Sequence[str]) -> str:
    return CLASS_COLOURS[colour_place(label, labels)]


def _stage(row: Row, label: str, *, with_map: bool) -> Image.Image:
    """The cell on black with the colours of the file; beside it its map with its scale, or a dark cell brighter."""
    zoom = enlarged(row.picture)
    cell, drawn_map = row.pictures(label if with_map else "", finer=FINER_MAP)
    has_map = drawn_map is not None
    beside = drawn_map
    if not has_map and row.picture.is_dark:
        shown = cell
        if row.picture.rim is not None:
            shown = with_rim(cell, row.picture.rim)
        beside = ImageEnhance.Brightness(shown).enhance(SHOWN_BRIGHTER)
    pictures = [ImageOps.contain(closer(picture, zoom), (SIDE, SIDE)) for picture in (cell, beside) if picture]
    height = max(picture.height for picture in pictures)
    failed = has_map and trust.maps_passed(row.metrics) is False
    lines = 2 if failed else 1
    stage = Image.new("RGB", (SHEET_WIDTH, MARGIN + height + MARGIN + lines * LINE), STAGE)
    pen = ImageDraw.Draw(stage)
    captions_at = MARGIN + height + GAP / 2
    middles = [SHEET_WIDTH / 4, 3 * SHEET_WIDTH / 4] if len(pictures) == 2 else [SHEET_WIDTH / 2]
    for middle, picture in zip(middles, pictures, strict=True):
        stage.paste(picture, (round(middle - picture.width / 2), MARGIN))
    caption = row.picture.caption
    if len(caption) > MOST_CAPTION:
        caption = f"…{caption[1 - MOST_CAPTION :]}"
    if row.picture.is_dark:
        caption += ", as in the file"
    pen.text((middles[0], captions_at), caption, ON_STAGE, _font(TEXT), anchor="ma")
    if has_map:
        _scale(stage, label, middles[-1], captions_at)
    elif beside:
        pen.text((middles[-1], captions_at), "shown brighter", ON_STAGE, _font(TEXT), anchor="ma")
    if failed:
        warning = "this model's maps failed our checks"
        pen.text((middles[-1], captions_at + LINE), warning, ON_STAGE, _font(TEXT, bold=True), anchor="ma")
    return stage


def _scale(stage: Image.Image, label: str, middle: float, top: float) -> None:
    """The scale of a map's colours, in words."""
    pen = ImageDraw.Draw(stage)
    font = _font(TEXT)
    colours = Image.fromarray(scale_colours(160)[None].repeat(12, axis=0))
    before = "weak "
    after = f" strong, for {label}"
    left = middle - (font.getlength(before + after) + colours.width) / 2
    pen.text((left, top), before, ON_STAGE, font)
    left += font.getlength(before)
    stage.paste(colours, (round(left), round(top + LINE / 2 - 8)))
    pen.text((left + colours.width, top), after, ON_STAGE, font)


def _round(size: tuple[int, int], radius: float) -> Image.Image:
    """A filled rectangle with round corners as a mask with smooth edges."""
    width, height = size
    mask = Image.new("L", (SMOOTH * width, SMOOTH * height))
    corners = (0, 0, mask.width - 1, mask.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corners, SMOOTH * radius, 255)
    return mask.resize(size, Image.Resampling.BOX)


class _Sheet:
    """What stands below the stage, drawn from top to bottom on a sheet that is cut where it ends."""

    def __init__(self, stage: Image.Image) -> None:
        self.image = Image.new("RGB", (SHEET_WIDTH, stage.height + 3000), "white")
        self.image.paste(stage)
        self.pen = ImageDraw.Draw(self.image)
        self.top = float(stage.height + MARGIN - 8)
        self.wordmark()

    def wordmark(self) -> None:
        """The page's ring and name at the right of the first line: a saved picture travels alone."""
        font = _font(TEXT, bold=True)
        right = SHEET_WIDTH - MARGIN
        middle = self.top + TEXT * 0.62
        self.pen.text((right, middle), "Leukoscope", INK, font, anchor="rm")
        ring_left = right - font.getlength("Leukoscope") - 34
        self.dot(ring_left, middle, ACCENT, 24)
        self.dot(ring_left + 5, middle, "white", 14)

    def dot(self, left: float, middle: float, ink: str, across: int = DOT) -> None:
        """A filled circle."""
        mask = _round((across, across), across / 2)
        self.image.paste(ink, (round(left), round(middle - across / 2)), mask)

    def bar(self, box: tuple[float, float, float, float], parts: Sequence[tuple[float, str]]) -> None:
        """A bar with round ends: the share of its length that each part has, and its colour; the least part is seen."""
        left, top, right, bottom = (round(edge) for edge in box)
        drawn = Image.new("RGB", (right - left, bottom - top), "white")
        pen = ImageDraw.Draw(drawn)
        lengths = [max(share * drawn.width, LEAST_PART) for share, _ in parts]
        at = 0.0
        for length, (_, ink) in zip(lengths, parts, strict=True):
            end = at + length * drawn.width / sum(lengths)
            pen.rectangle((round(at), 0, round(end) - 1, drawn.height), ink)
            at = end
        self.image.paste(drawn, (left, top), _round(drawn.size, drawn.height / 2))

    def text(self, sentence: str, ink: str = INK, *, size: int = TEXT, bold: bool = False, indent: int = 0) -> None:
        """A sentence over as many lines as it needs; none for ""."""
        font = _font(size, bold=bold)
        for line in _wrapped(sentence, font, SHEET_WIDTH - 2 * MARGIN - 2 * indent):
            self.pen.text((MARGIN + indent, self.top), line, ink, font)
            self.top += 1.4 * size

    def fact(self, topic: str, sentences: str) -> None:
        """A topic, and beside it what is said of it; nothing for ""."""
        if not sentences:
            return
        self.pen.text((MARGIN, self.top), topic, QUIET, _font(TEXT))
        for line in _wrapped(sentences, _font(TEXT), SHEET_WIDTH - MARGIN - FACTS_AT):
            self.pen.text((FACTS_AT, self.top), line, INK, _font(TEXT))
            self.top += LINE
        self.top += 6

    def dots(self, colours: Sequence[str], sentence: str, ink: str) -> None:
        """A dot for the answer in each orientation or under each small change, and in how many it is the same."""
        middle = self.top + TEXT * 0.62
        for place, colour in enumerate(colours):
            self.dot(MARGIN + 26 * place, middle, colour, 18)
        self.text(sentence.rstrip("."), ink, indent=26 * len(colours) + 12)

    def verdict(self, sentence: str, colour: str) -> None:
        """The verdict with a dot in the colour of its class."""
        middle = self.top + VERDICT * 0.62
        self.dot(MARGIN, middle, colour, 22)
        self.text(sentence, size=VERDICT, bold=True, indent=38)
        self.top += 8

    def note(self, sentences: Sequence[str]) -> None:
        """What must be known before the answer is used, in a box of its own; nothing for none."""
        font = _font(TEXT)
        lines = [line for sentence in sentences for line in _wrapped(sentence, font, SHEET_WIDTH - 2 * MARGIN - 40)]
        if not lines:
            return
        box = (MARGIN, self.top, SHEET_WIDTH - MARGIN, self.top + len(lines) * LINE + 20)
        self.pen.rounded_rectangle(box, 16, WARNING_FILL)
        self.top += 10
        for line in lines:
            self.pen.text((MARGIN + 20, self.top), line, WARNING, font)
            self.top += LINE
        self.top += 10 + GAP / 2

    def shares(self, row: Row, limit: float | None) -> None:
        """One bar of all classes, and each with its probability below it.

        Of a cell that gets none, in grey, with a bracket over where its colours meet as long as neither class reaches
        the limit.
        """
        labels = list(row.known.probabilities)
        colours = {label: _colour(label, labels) for label in labels}
        if limit is not None:
            colours = dict.fromkeys(labels, LESS_PROBABLE) | {row.known.most_probable: NO_CLASS}
            self.bracket(limit)
        box = (MARGIN, self.top, SHEET_WIDTH - MARGIN, self.top + BAR)
        self.bar(box, [(row.known.probabilities[label], colours[label]) for label in labels])
        self.top += BAR + 10
        places = len(labels)
        percentages = text.percentages(row.known.probabilities, row.known.decision)
        for place, label in enumerate(labels):
            meaning = text.MEANINGS.get(label)
            words = f"{percentages[label]} {f'{meaning} ({label})' if meaning else label}"
            column = (SHEET_WIDTH - 2 * MARGIN) / places
            at = MARGIN + place * column
            if place and places == 2:  # at the ends of the bar
                at = SHEET_WIDTH - MARGIN - 20 - _font(TEXT).getlength(words)
            middle = self.top + LINE / 2
            self.dot(at, middle, colours[label])
            self.pen.text((at + 20, middle), words, INK, _font(TEXT), anchor="lm")
        self.top += LINE + GAP / 2

    def bracket(self, limit: float) -> None:
        """The part of the bar below it in which its two colours meet where the model is not sure, in words."""
        length = SHEET_WIDTH - 2 * MARGIN
        left = MARGIN + (1 - limit) * length
        right = MARGIN + limit * length
        self.pen.text(((left + right) / 2, self.top), "not sure", QUIET, _font(TEXT), anchor="ma")
        self.top += LINE
        self.pen.line([(left, self.top + 10), (left, self.top), (right, self.top), (right, self.top + 10)], QUIET, 4)
        self.top += 14

    def counts(self, smear: Smear) -> None:
        """One bar of all whole cells, and below it how many have each outcome."""
        labels = smear.reading.labels
        counts = {outcome: count for outcome, count in smear.reading.counts.items() if count and outcome != AT_EDGE}
        left = float(MARGIN)
        at = float(MARGIN)
        font = _font(TEXT)
        for outcome, count in counts.items():
            right = left + count / sum(counts.values()) * (SHEET_WIDTH - 2 * MARGIN)
            ink = _outcome_colour(outcome, labels)
            # Refused cells are grey, too: hollow.
            fill = "white" if outcome in REFUSED else ink
            self.pen.rectangle((left, self.top, right - 3, self.top + BAR), fill, ink, 2)
            left = right
            words = f"{count} {text.outcome_text(outcome)}"
            middle = self.top + BAR + 10 + LINE / 2
            self.dot(at, middle, ink)
            if fill != ink:
                self.dot(at + 2, middle, fill, DOT - 4)
            self.pen.text((at + 20, middle), words, INK, font, anchor="lm")
            at += 20 + font.getlength(words) + GAP
        if counts:
            self.top += BAR + 10 + LINE + GAP / 2

    def recalls(self, rows: Sequence[trust.TrustRow], labels: Sequence[str]) -> None:
        """How far to trust it: of 100 cells of each class, how many are recognised, each with its interval."""
        self.rule()
        first = 440
        column = (SHEET_WIDTH - MARGIN - first) / len(labels)
        self.pen.text((MARGIN, self.top), "How far to trust it", INK, _font(TEXT, bold=True))
        self.pen.text((MARGIN + 190, self.top), "of 100, recognised", QUIET, _font(TEXT))
        if any(row.meters for row in rows):
            for place, label in enumerate(labels):
                self.pen.text((first + place * column, self.top), cells_of(label), QUIET, _font(TEXT))
        self.top += LINE + 8
        for row in rows:
            name = row.name if row.meters else f"{row.name}: {row.caveat}"
            has_caveat = bool(row.meters and row.caveat)
            self.pen.text((MARGIN, self.top), f"{name}," if has_caveat else name, QUIET, _font(TEXT))
            if has_caveat:
                at = MARGIN + _font(TEXT).getlength(f"{name}, ")
                self.pen.text((at, self.top), row.caveat, WARNING, _font(TEXT))
            for place, meter in enumerate(row.meters):
                self._meter(meter, first + place * column, column - GAP, _colour(meter.label, labels))
            self.top += LINE + 6
        for row in rows:
            self.text(row.small_changes, QUIET)
        if any(meter.low is not None for row in rows for meter in row.meters):
            self.text("Thin lines are 95 % intervals.", QUIET)

    def _meter(self, meter: trust.Meter, left: float, width: float, colour: str) -> None:
        """A bar of 0 to 100 with its interval and its figure."""
        bar = width - 40
        middle = self.top + LINE / 2
        share = meter.share / 100
        parts = [(part, ink) for part, ink in ((share, colour), (1 - share, RULE)) if part]
        self.bar((left, middle - 6, left + bar, middle + 6), parts)
        if meter.low is not None and meter.high is not None:
            low = left + bar * meter.low / 100
            high = left + bar * meter.high / 100
            self.pen.line((low, middle, high, middle), INK, 2)
            for end in (low, high):
                self.pen.line((end, middle - 9, end, middle + 9), INK, 2)
        self.pen.text((left + width, self.top), str(meter.share), INK, _font(TEXT, bold=True), anchor="ra")

    def rule(self) -> None:
        """A thin line between two parts."""
        self.top += GAP / 2
        self.pen.line((MARGIN, self.top, SHEET_WIDTH - MARGIN, self.top), RULE, 2)
        self.top += GAP * 0.75

    def finished(self) -> Image.Image:
        """The sheet down to its end, the research notice below everything."""
        self.top += GAP
        self.pen.rectangle((0, self.top, SHEET_WIDTH, self.top + 2 * LINE), WARNING_FILL)
        middle = self.top + LINE
        self.pen.text((SHEET_WIDTH / 2, middle), RESEARCH_NOTICE, WARNING, _font(TEXT, bold=True), anchor="mm")
        return self.image.crop((0, 0, SHEET_WIDTH, round(self.top + 2 * LINE)))


def _wrapped(sentence: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """A sentence in lines of at most so many pixels; a longer word has a line of its own."""
    lines: list[str] = []
    for word in sentence.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        elif word:
            lines.append(word)
    return lines
