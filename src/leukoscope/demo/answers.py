"""What the models say of one cell, as plain data: the card draws it, and programs and assistants get the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
from typing_extensions import TypedDict

from leukoscope import LeukoscopeError
from leukoscope.demo.models import Models
from leukoscope.demo.pictures import Picture, Row
from leukoscope.inference.prediction import ABSTAIN, NOT_A_CELL, REFUSED, Decision, Prediction, Thresholds
from leukoscope.inference.scoring import safe_cell
from leukoscope.inference.smear import colour_place
from leukoscope.models.release import ReleaseInfo
from leukoscope.reports import words
from leukoscope.reports.words import data_uri

LEAST_ORIENTATIONS = 7  # of eight that agree with a class that is called stable


class Part(TypedDict, total=False):
    """A class, or another outcome, and its share of a bar."""

    label: str
    words: str
    percent: str
    share: float
    colour: str


class Card(TypedDict, total=False):
    """One model's answer, as the card shows it."""

    waiting: str
    problem: str
    model: str
    maps: str
    verdict: str
    colour: str
    checking: bool
    unstable: bool
    caveats: list[str]
    knows: Row  # as one of `others`
    parts: list[Part]
    checks: list[Row]  # rows of dots: `colours` and `words`
    tiles: list[Row]  # of a smear
    people: str
    meters: list[Row]  # of 100 cells of a class, how many are recognised
    others: list[Row]  # `name` and `model`, and `words` or `part`; `has_map` where it has one that passed its check
    measured: list[Row]  # `name`, `caveat` and `meters`
    more: list[str]
    saved: str  # a data URI of what can be saved
    saved_name: str


@dataclass(frozen=True)
class Answer:
    """What a model says of a picture, which is on its own ground; `model` is the name by which it was asked."""

    picture: Picture
    model: str
    release: ReleaseInfo
    thresholds: Thresholds
    known: Prediction

    @property
    def outcome(self) -> str:
        """A class, or why there is none."""
        return self.known.outcome

    @property
    def refused(self) -> bool:
        """Whether the picture is foreign to the model."""
        return self.outcome in REFUSED

    @property
    def gives_class(self) -> bool:
        """Whether the model decides for a class."""
        return self.known.decision.label is not None

    @property
    def called(self) -> str:
        """The class decided on; where there is none, the most probable one."""
        return self.known.decision.label or self.known.most_probable

    @property
    def labels(self) -> list[str]:
        """The model's classes."""
        return list(self.known.probabilities)

    @property
    def maps_passed(self) -> bool | None:
        """Whether the release's maps passed their checks; None where they were not checked."""
        return self.release.map_check.passed

    @property
    def orientations(self) -> list[Decision]:
        """The decision in each of eight orientations, as given first; none before they are known."""
        checks = replace(self.known.checks, on_cell=None)
        return [self.thresholds.decide(shares, checks) for shares in self.known.views]

    @property
    def is_stable(self) -> bool | None:
        """Whether turned, mirrored or slightly changed the cell keeps its class; None where it has none, or not yet."""
        if not self.gives_class or not self.known.views or not self.known.changed:
            return None
        turned = [decision.outcome == self.outcome for decision in self.orientations]
        changed = [answer.decision.outcome == self.outcome for answer in self.known.changed]
        return sum(turned) >= LEAST_ORIENTATIONS and all(changed)


def ask(models: Models, picture: Picture, name: str, *, explain: bool = True) -> Answer:
    """Ask one model; with `explain`, for orientations and maps as well.

    Raises:
        LeukoscopeError: the model cannot be loaded, or the picture not be predicted.
    """
    name = models.checked(name)
    predictor = models.predictor(name)
    picture = picture.on(predictor.release.blank_rgb)
    (prediction,) = predictor([picture.image], explain=explain)
    if picture.field_share is not None:
        prediction = prediction.in_field(picture.field_share, predictor.thresholds)
    return Answer(picture, name, predictor.release, predictor.thresholds, prediction)


def steps(models: Models, picture: Picture, name: str) -> Iterator[Answer]:
    """What a model says as it becomes known: the decision, orientations and maps, small changes.

    Raises:
        LeukoscopeError: as of `ask`.
    """
    answer = ask(models, picture, name, explain=False)
    yield answer
    if not answer.refused:
        answer = ask(models, picture, name)
        yield answer
        yield replace(answer, known=models.predictor(name).with_small_changes(answer.known))


def other_lines(models: Models, picture: Picture, name: str) -> Iterator[Row]:
    """What every other model says of a picture, in a line each, or why it says nothing."""
    for other in models.names:
        if other != name:
            try:
                yield other_line(ask(models, picture, other, explain=False))
            except LeukoscopeError as error:
                yield {"name": other, "model": words.short_name(other), "words": str(error)}


def cell_card(answer: Answer, others: Sequence[Row] = ()) -> Card:
    """A model's answer about a cell as data; what is still checked cannot be saved."""
    card = trusted(answer.release) | Card(
        model=words.short_name(answer.model),
        maps="its maps passed our checks" if answer.maps_passed else "",
        verdict=verdict(answer),
        colour=colour(answer.outcome, answer.labels),
        checking=answer.gives_class and answer.is_stable is None,
        unstable=answer.is_stable is False,
        caveats=caveats(answer),
        others=list(others),
        more=more(answer),
    )
    if answer.refused:
        for line in others:
            if "part" in line:
                card["knows"] = line
                break
    else:
        # The class decided on comes first, then the others, most probable first.
        shares = sorted(answer.known.probabilities.items(), key=lambda share: (share[0] != answer.called, -share[1]))
        card["parts"] = [part(label, share, answer.labels) for label, share in shares]
        card["checks"] = checks(answer)
    if not card["checking"]:
        saved = {**answer.known.to_dict(), "verdict": verdict(answer), "caveats": caveats(answer)}
        content = json.dumps(saved, indent=1, ensure_ascii=False).encode()
        card["saved"] = data_uri("application/json", content)
        card["saved_name"] = "leukoscope-answer.json"
    return card


def verdict(answer: Answer) -> str:
    """The answer in a few words: firm only once it is known to be stable."""
    if answer.refused:
        if answer.picture.holds_no_cell:
            return words.NOTHING_FOUND
        is_smear = answer.outcome == NOT_A_CELL
        return "No class: a smear, not one cell" if is_smear else words.FOREIGN_VERDICT
    share = answer.known.probabilities[answer.called]
    if answer.outcome == ABSTAIN:
        return "Not sure"
    if answer.is_stable is None:
        return f"{answer.called} {words.percent(share)}, checking …"
    if answer.is_stable:
        return f"Looks like {words.one(answer.called)}"
    return f"Leans towards {words.one(answer.called)}, not stable"


def caveats(answer: Answer) -> list[str]:
    """What must be known before the answer is used, most important first."""
    metrics = answer.release.metrics
    lines = list(words.warnings(metrics, has_detector=answer.known.checks.ood_score is not None))
    subject = words.training_subject(metrics, answer.picture.name)
    if subject:
        lines.append(words.in_training_text(subject))
    if answer.refused and answer.picture.holds_no_cell:
        lines.append("Nothing in this picture is stained as the nucleus of a white blood cell is.")
        return lines
    reasons = answer.known.decision.reasons
    for reason in reasons:
        if reason.code in words.FOREIGN_PARTS:
            lines.append(f"Its {words.FOREIGN_PARTS[reason.code]} is unlike that of the training cells.")
        elif reason.code != "explanation_off_cell" or answer.maps_passed is not False:
            lines.append(words.brief_reason(reason, answer.known.most_probable))
    return lines


def more(answer: Answer) -> list[str]:
    """What is folded: how far a foreign picture is, what helps, what the map is, training and revision."""
    metrics = answer.release.metrics
    lines = []
    if answer.refused:
        lines = [words.foreign_text(answer.known.decision), help_text(answer)]
    elif answer.known.heatmaps:
        lines = [words.MAP_CAVEAT, answer.known.map_check.text]
    lines += [words.about_further_people(metrics), words.model_text(metrics)]
    lines.append(words.about_model(answer.model, answer.known.revision))
    return [line for line in lines if line]


def help_text(answer: Answer) -> str:
    """What to do about a picture that is foreign to a model."""
    source = answer.release.metrics.dataset
    cell = "a picture of a stained smear"
    if source is not None and source.background == "black":
        cell = f"a cell cut out on black, stained as those of {source.title}"
    elif source is not None:
        cell = f"a smear stained as those of {source.title}"
    if answer.picture.holds_no_cell:
        return f"Give {cell}."
    return f"Train or recalibrate a model on such cells; or give {cell}."


def checks(answer: Answer) -> list[Row]:
    """The eight orientations and the eight small changes as rows of dots; grey ones while they are computed."""
    forms = {
        "turned and mirrored": answer.orientations,
        "slightly changed": [changed.decision for changed in answer.known.changed],
    }
    agree = "agree" if answer.gives_class else "are not sure either"
    rows = []
    for form, decisions in forms.items():
        colours = [colour(decision.outcome, answer.labels) for decision in decisions]
        agreeing = sum(decision.outcome == answer.outcome for decision in decisions)
        caption = f"{agreeing} of {len(decisions)} {agree}, {form}" if decisions else f"{form} …"
        rows.append({"colours": colours or ["unknown"] * 8, "words": caption})
    return rows


def other_line(answer: Answer) -> Row:
    """What another model says, in a line."""
    line: Row = {
        "name": answer.model,
        "model": words.short_name(answer.model),
        "has_map": answer.maps_passed is True and not answer.refused,
    }
    if answer.gives_class:
        return line | {"part": part(answer.called, answer.known.probabilities[answer.called], answer.labels)}
    return line | {"words": "not sure" if answer.outcome == ABSTAIN else "no class"}


def part(label: str, share: float, labels: Sequence[str]) -> Part:
    """A class with its probability."""
    return Part(
        label=label, words=words.named(label), percent=words.percent(share), share=share, colour=colour(label, labels)
    )


def colour(outcome: str, labels: Sequence[str]) -> str:
    """The CSS class of an outcome's colour, the same in boxes, bars, dots and plots."""
    return f"class-{colour_place(outcome, labels)}" if outcome in labels else "no-class"


def called(outcome: str, shares: Mapping[str, float]) -> str:
    """An outcome in words, with its probability where it is a class."""
    if outcome not in shares:
        return words.outcome_text(outcome)
    return f"{outcome} {words.percent(shares[outcome])}"


def trusted(release: ReleaseInfo) -> Card:
    """How far a model is to be trusted: on further people first."""
    measured = [measurement(row, release.labels) for row in words.trust_rows(release.metrics) if row.meters]
    if not measured:
        return Card(people="Not measured on people whom it had not seen.", meters=[], measured=[])
    people = f"Of 100 cells of each class of {measured[0]['name']}, most probable class right:"
    return Card(people=people, meters=measured[0]["meters"], measured=measured)


def measurement(row: words.TrustRow, labels: Sequence[str]) -> Row:
    """A measurement in full, with its intervals."""
    meters = [{**asdict(meter), "name": meter.name, "colour": colour(meter.label, labels)} for meter in row.meters]
    return {"name": row.name, "caveat": row.caveat, "meters": meters}


def as_csv(lines: Sequence[Row]) -> str:
    """Lines of a table as a file that a link holds, in which a spreadsheet takes no text for a formula."""
    quoted = pd.json_normalize(lines).map(lambda entry: safe_cell(entry) if isinstance(entry, str) else entry)
    return data_uri("text/csv", quoted.to_csv(index=False).encode())
