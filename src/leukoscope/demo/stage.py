"""A cell as its stage shows it: the picture, its forms and its map, as far as they are known."""

from __future__ import annotations

from collections.abc import Sequence

from leukoscope import RESEARCH_NOTICE
from leukoscope.demo import pictures
from leukoscope.demo.answers import Answer, called, colour
from leukoscope.demo.pictures import Picture, Row, Stage
from leukoscope.reports import words

# Whether a release's maps passed → what the view and the line below it say.
MAP_WORDS = {
    True: ("passed", "This model’s maps passed our checks."),
    False: ("unreliable", "This model’s maps failed our checks: do not read them."),
    None: ("unchecked", "This model’s maps were not checked."),
}


def cell_stage(picture: Picture) -> Stage:
    """A cell before a model has answered."""
    return Stage(
        name=picture.name,
        picture=pictures.full(picture.rgb),
        dark=picture.is_dark,
        zoom=round(picture.zoom(), 2),
        back=picture.back,
        tiles_words="Each turned and changed form is being asked.",
    )


def answered_stage(answer: Answer, others: Sequence[Row] = ()) -> Stage:
    """A cell with its map and its forms, as far as they are known."""
    stage = cell_stage(answer.picture)
    if answer.refused:
        return stage | Stage(
            tiles_words="A picture without a class is not turned or changed.",
            map_words="A picture without a class has no map.",
        )
    stage["map_state"], stage["map_words"] = MAP_WORDS[answer.maps_passed]
    readable = [line for line in others if line.get("has_map")]
    if readable and answer.maps_passed is False:
        stage["map_of"] = readable[0]["name"]
        stage["map_of_name"] = readable[0]["model"]
    if answer.known.heatmaps:
        drawn = pictures.map_over(answer.picture, answer.known, answer.called, pictures.FINER_MAP)
        stage["map"] = pictures.small(drawn, max(drawn.size), quality=92)
        stage["map_label"] = answer.called
        title = f"Map for {answer.called} by {words.short_name(answer.model)}"
        stage["map_saved"] = "\n".join((title, stage["map_words"], RESEARCH_NOTICE))
    elif answer.known.views:
        stage["map_words"] = "This model has no map: its last features are no map of channels."
    else:
        stage["map_words"] = "Its map is being computed."
    if answer.known.views:
        stage["tiles"] = sorted(tiles(answer), key=lambda tile: not tile["differs"])
    return stage


def tiles(answer: Answer) -> list[Row]:
    """The eight orientations of a cell and, once they are known, its eight small changes."""
    picture = answer.picture
    turned = pictures.turned_views(picture.rgb)
    forms = list(zip(turned, words.ORIENTATION_NAMES, answer.orientations, answer.known.views, strict=True))
    for changed in answer.known.changed:
        image = changed.change(picture.rgb, black=picture.on_black)
        name = changed.change.shows[:1].upper() + changed.change.shows[1:]
        forms.append((image, name, changed.decision, changed.probabilities))
    return [
        {
            **pictures.tile(image, picture),
            "name": name,
            "words": called(decision.outcome, shares),
            "colour": colour(decision.outcome, answer.labels),
            "differs": decision.outcome != answer.outcome,
        }
        for image, name, decision, shares in forms
    ]
