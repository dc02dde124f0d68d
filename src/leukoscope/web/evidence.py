"""The page of all models in the demo: their measurements beside each other, then the card of the one that is chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.registry import trained_on_fields_of_view
from leukoscope.models.release import CARD_FILE, ReleaseInfo, read_release
from leukoscope.reports import release_tables, text, trust
from leukoscope.reports.conclusion import conclusion
from leukoscope.reports.formatting import count, data_uri, hundred, share, span, with_interval
from leukoscope.web.content_policy import card_text
from leukoscope.web.drawing import colour, render
from leukoscope.web.model_cache import ModelCache

_NOT_MEASURED = "not measured"
# The heads of the table under which `trust.trust_rows` stand, in their order.
_HEADS_OF_PEOPLE = ("further", "inside")
_MAPS = {True: "passed our checks", False: "failed our checks", None: "not checked"}
_MARKS = {True: "✓", False: "✗", None: ""}
# The section of our cards that is open. The page itself shows how good the models are.
_OPEN = "What it is not for"
# What is in those that are closed.
_INSIDE = {
    "How good it is": "each test, with intervals",
    "What it was trained on": "data, licence, first weights",
    "When the picture changes a little": "hue, contrast, size, blur",
    "Use it": "Python and command line",
    "Maps": "their checks and results",
    "More": "all figures and predictions",
    "Cite": "model and data",
}
_HEADING = re.compile(r"#{2,3}\s+(.*)")
_TABLE_BOX = '<div class="lk-scrolls" tabindex="0" role="group" aria-label="Table">'
# A line of a browser may end after a dash, but not beside a word joiner.
_INTERVAL = re.compile(r"(?<=\d)–(?=\d)")
_UNBROKEN_DASH = "\u2060–\u2060"
# A number stays beside its unit: "(σ 1 px)", "15 %".
_WITH_UNIT = re.compile(r"\(σ [^)]*\)|\d %")
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
    """The table of these models with the figures of the chosen one, as HTML, and its card, as `folded_card`.

    Where there is no model of the chosen name, the page says so and shows the first one.
    """
    rows = []
    releases: dict[str, ReleaseInfo] = {}
    for name in names:
        try:
            releases[name] = release_of(models, name)
        except LeukoscopeError as error:
            rows.append({"model": name, "error": str(error), "summary": str(error)})
            continue
        rows.append(_row(name, releases[name].metrics))
    rows.sort(key=lambda row: not row.get("summary_meters"))
    unknown = ""
    if chosen not in names:
        unknown = chosen
        chosen = next(iter(names), "")
    release = releases.get(chosen)
    figures, card = _figures_and_card(release.folder if release else None)
    metrics = release.metrics if release else {}  # its row says what is wrong
    subjects = _subjects_by_class(metrics)
    if subjects:
        figures = []  # the card's plot shows the same people
    evaluation = release_tables.unseen_evaluation(metrics) or {}
    lines = conclusion({text.short_name(name): release.metrics for name, release in releases.items()})
    html = render(
        "evidence.html", rows=rows, size_alone=_size_alone(releases), names=names, chosen=chosen, unknown=unknown,
        figures=figures, subjects=subjects, subjects_test="cross-validation" if evaluation.get("folds") else "the test",
        changes=_small_changes(metrics), conclusion=[_unbroken(line) for line in lines],
    )  # fmt: skip
    return html, card


def _unbroken(words: str) -> str:
    """The words with no line's end in an interval, or between a number and its unit."""
    words = _INTERVAL.sub(_UNBROKEN_DASH, words)
    return _WITH_UNIT.sub(lambda match: match[0].replace(" ", "\u00a0"), words)


def _size_alone(releases: Mapping[str, ReleaseInfo]) -> list[dict[str, str]]:
    """How well cell size alone ranks cells, without a network: once for all models that were tested on the same people.

    metrics.json has no such figure for further people.
    """
    models: dict[tuple[Any, ...], list[str]] = {}
    for name, release in releases.items():
        evaluation = (release.metrics.get("evaluations") or [{}])[0]
        alone = _auroc_of_size(release.metrics)
        if alone is None:
            continue
        people = tuple(sorted(evaluation["metrics"].get("subjects") or ()))
        data = (release.metrics.get("data") or {}).get("name")
        models.setdefault((data, people, share(alone)), []).append(text.short_name(name))
    return [
        {
            "auroc": auroc,
            "compare_with": " and ".join(names),
            "people": f"the same {len(people)} people" if people else "the same people",
        }
        for (_, people, auroc), names in models.items()
    ]


def _auroc_of_size(metrics: Mapping[str, Any]) -> float | None:
    """The AUROC of cell size alone on the people of a release's first test; None where it was not measured on them."""
    evaluation = (metrics.get("evaluations") or [{}])[0]
    alone: float | None = (evaluation.get("size_only_baseline") or {}).get("auroc_by_subject")
    return alone if text.measured_on_people(metrics) else None


def _row(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One model's measurements."""
    further = metrics.get("further_subjects") or {}
    auroc = further.get("auroc_by_subject")
    evaluation = (metrics.get("evaluations") or [{}])[0]
    cross_validated = "not on people"
    if text.measured_on_people(metrics) and evaluation["metrics"].get("auroc_by_subject") is not None:
        cross_validated = with_interval(evaluation, "auroc_by_subject")
    labels = list(metrics.get("labels") or ())
    trust_rows = trust.trust_rows(metrics)
    unmeasured = _unmeasured(trust_rows)
    summary = unmeasured["words"]
    summary_meters: tuple[trust.Meter, ...] = ()
    summary_head = ""
    for head, row in zip(_HEADS_OF_PEOPLE, trust_rows, strict=True):
        if row.meters:
            whom = ", ".join(part for part in (row.people, row.test, row.caveat) if part)
            summary = f"{whom}: of 100, recognised"
            summary_meters = row.meters
            summary_head = head
            break
    healthy = release_tables.healthy_with_class(metrics)
    maps_passed = trust.maps_passed(metrics)
    maps = _MAPS[maps_passed]
    worst_change = text.worst_change_text(metrics)
    folded = {"cross-validation": bool(trust_rows[1].meters), "small changes": worst_change != _NOT_MEASURED}
    measured = ", ".join(what for what, is_measured in folded.items() if is_measured)
    if not measured and healthy != "–":
        measured = "healthy donors’ cells"
    return {
        "model": name,
        "error": "",
        "summary": summary,
        "summary_meters": summary_meters,
        "summary_head": summary_head,
        "meters_below_summary": [
            head for head, row in zip(_HEADS_OF_PEOPLE, trust_rows, strict=True) if row.meters and head != summary_head
        ],
        "colours": {label: colour(label, labels) for label in labels},
        "trust": trust_rows,
        "unmeasured": unmeasured,
        "needs_one_line": not summary_meters and worst_change == _NOT_MEASURED,
        "outside": f"{share(auroc['value'])} ({span(auroc)})" if auroc else _NOT_MEASURED,
        "cross_validated": cross_validated,
        "size_is_measured": _auroc_of_size(metrics) is not None,
        "worst_change": _unbroken(worst_change),
        "measured": measured,
        "healthy": _NOT_MEASURED if healthy == "–" else f"{healthy}\u00a0of\u00a0100",
        "maps": maps,
        "maps_mark": _MARKS[maps_passed],
        "data": text.training_text(metrics) or "not told",
    }


def _unmeasured(rows: tuple[trust.TrustRow, trust.TrustRow]) -> dict[str, Any]:
    """The heads beside each other for which one sentence says why nothing was measured; none where something was."""
    further, inside = rows
    if inside.meters:
        return {"heads": [], "words": ""}
    heads = ["inside"]
    if not further.meters:
        heads = ["further", *heads]
    return {"heads": heads, "words": inside.caveat}


def _subjects_by_class(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each class the people whose pictures were tested, worst first: share of pictures recognised, 0–100.

    A release whose data name no people has blocks of pictures in their place.
    """
    block = release_tables.unseen_evaluation(metrics) or {}
    subjects = (block.get("metrics") or {}).get("subjects") or {}
    if not subjects:
        return []
    unit = metrics["data"]["unit"].replace("subject", "person")
    units = "people" if unit == "person" else f"{unit}s"
    pictures = "fields of view" if trained_on_fields_of_view(metrics) else "cells"
    labels = list(metrics.get("labels") or ())
    drawn = []
    for label in labels:
        tested = [(name, subject) for name, subject in subjects.items() if subject["label"] == label]
        if not tested:
            continue
        tested.sort(key=lambda named: (named[1]["accuracy"], named[0]))
        dots = []
        for name, subject in tested:
            tested_pictures = f"{count(subject['cells'])} {pictures}"
            title = f"{unit} {name}: {hundred(subject['accuracy'])} of 100 of {tested_pictures}"
            dots.append({"share": round(100 * subject["accuracy"]), "title": title})
        mean = sum(subject["accuracy"] for _, subject in tested) / len(tested)
        drawn.append({"label": label, "people": f"{len(tested)} {units}", "unit": unit, "pictures": pictures,
                      "mean": round(100 * mean), "dots": dots, "colour": colour(label, labels)})  # fmt: skip
    return drawn


def _small_changes(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of each kind of change the worst, that which changes most classes first: of 100 cells, how many change."""
    block = metrics.get("robustness")
    if not block:
        return None
    bars = []
    for change in release_tables.worst_of_families(block, "class_changed"):
        shares = {
            "another class": change["class_changed"], "not sure": change["abstained"], "refused": change["refused"],
        }  # fmt: skip
        numbers = {words: round(100 * share) for words, share in shares.items()}
        numbers["the same answer"] = max(0, 100 - sum(numbers.values()))
        bars.append({"shows": _unbroken(change["shows"]), "numbers": numbers})
    return {"cells": count(block["cells"]), "people": block["subjects"], "bars": bars}


def _figures_and_card(folder: Path | None) -> tuple[list[dict[str, str]], str]:
    """The figures of a release's card, which travel within the page, and the card without metadata and notice."""
    if folder is None:
        return [], NO_CARD
    try:
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
    except OSError:
        return [], NO_CARD
    if not card:
        return [], NO_CARD
    figures = []
    for title, file in re.findall(r"!\[([^\]]*)\]\(([^)\s]*)\)", card):
        path = folder / file
        # Only a file of the release itself: nothing of the page is fetched from elsewhere.
        if re.fullmatch(r"figures/[\w.-]+\.png", file) and path.is_file():
            figures.append({"title": title, "source": data_uri("image/png", Path(path).read_bytes())})
    # The line on top of the page says so already.
    without_notice = card_text(card).replace(f"**{RESEARCH_NOTICE}**", "")
    return figures, folded_card(without_notice)


def folded_card(markdown: str) -> str:
    """A card in two columns below its title, whose sections can be opened and closed: one is open; tables scroll.

    The result is Markdown with HTML of ours: what is given has none, as `card_text` returns it.
    """
    title, *sections = _sections(markdown)
    if not sections:
        return markdown
    opened = [_fold(section) for section in sections if section.heading == _OPEN]
    closed = [_fold(section) for section in sections if section.heading != _OPEN]
    # So both columns of our cards end at about the same height.
    left = opened or closed[:1]
    right = closed if opened else closed[1:]
    return "\n\n".join((title.markdown, "<div>", "<div>", *left, "</div>", "<div>", *right, "</div>", "</div>"))


@dataclass(frozen=True)
class _Section:
    """A part of a card: its heading, "" for what stands before the first one, and what is below it."""

    heading: str
    markdown: str


def _sections(markdown: str) -> list[_Section]:
    """Split a card at its headings below the title; each of its tables becomes a box that scrolls by itself.

    An interval in a table stays on one line, and so does a number with its unit.
    """
    sections = []
    heading = ""
    lines: list[str] = []
    in_code = False
    in_table = False
    for line in [*markdown.splitlines(), ""]:
        in_code = in_code != line.startswith(("```", "~~~"))
        is_row = line.startswith("|") and not in_code
        if is_row and not in_table:
            lines.append(f"{_TABLE_BOX}\n")
        if is_row:
            line = _unbroken(line)
        if in_table and not is_row:
            lines.append("\n</div>\n")
        in_table = is_row
        match = _HEADING.match(line)
        if match and not in_code:
            sections.append(_Section(heading, "\n".join(lines)))
            heading = match[1].strip()
            lines = []
        else:
            lines.append(line)
    if in_code:  # it would hold all that follows
        lines.append("```")
    return [*sections, _Section(heading, "\n".join(lines))]


def _fold(section: _Section) -> str:
    opened = " open" if section.heading == _OPEN else ""
    inside = f"<small>{_INSIDE[section.heading]}</small>" if section.heading in _INSIDE else ""
    return f"<details{opened}><summary>{section.heading}{inside}</summary>\n\n{section.markdown}\n\n</details>"
