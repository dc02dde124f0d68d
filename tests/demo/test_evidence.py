"""Evidence: every release's two measurements, the people behind them, and a card that loads nothing."""

from __future__ import annotations

import pytest

from asked import ROOT, release
from leukoscope.demo.evidence import (
    INTRODUCTION,
    MAX_CARD,
    card_of,
    changes_of,
    clean_card,
    facts_of,
    measurements,
    people_of,
)  # fmt: skip
from leukoscope.demo.models import Models, find_releases


def test_further_people_come_first_with_their_cells() -> None:
    table = measurements(Models(find_releases(ROOT / "model_card")))
    assert len(table) == 6 and list(table)[:2] == ["model", "ALL of 100"]
    people = "34 further people, 211 cells: 6 of a person in the mean, at most 3 of 20 people"
    assert table["tested on"][0] == people
    assert "cross-validation" in table["tested on"][1] and "(" in table["ALL of 100"][0]
    assert "not measured" in table["tested on"][2]


def test_every_person_is_a_dot_and_every_kind_of_change_a_line() -> None:
    plot = people_of(release())
    assert [row["name"] for row in plot["people"]] == ["ALL", "HEM"]
    assert sum(len(row["dots"]) for row in plot["people"]) == 41
    changes = changes_of(release())
    assert list(changes) == ["shown", "another class", "not sure", "refused"] and len(changes) > 5
    other = release("leukoscope-densenet201-ball4")
    assert changes_of(other).empty


def test_at_most_250_words_stand_before_the_card() -> None:
    models = Models(find_releases(ROOT / "model_card"))
    for name in models.names:
        shown = [INTRODUCTION, facts_of(models.release(name)), " ".join(measurements(models)["tested on"])]
        plot = people_of(models.release(name))
        shown += [plot["axis"], *(f"{row['cells']} {row['words']} {row['detail']}" for row in plot["people"])]
        shown += [str(word) for word in changes_of(models.release(name)).get("shown", [])]
        assert len(" ".join(shown).split()) <= 250, name


@pytest.mark.parametrize(
    "attack",
    [
        "![a](https://evil/a.png)",
        "![a][b]\n[b]: https://evil/a.png",
        "[![a](https://evil/a.png)](https://x)",
        "<img src=https://evil/a.png>",
        "<scr<script>ipt>alert(1)</script>",
        "<style>@import 'https://evil'",
        "```mermaid\ngraph TD; a[<img src=x>]\n```",
        "!!![a](https://evil/a.png)",
    ],
)
def test_a_strangers_card_loads_nothing(attack: str) -> None:
    card = clean_card(f"---\nx: 1\n---\n# Card\n{attack}")
    assert "<" not in card and "![" not in card and "mermaid" not in card and "x: 1" not in card
    assert clean_card("a" * (MAX_CARD + 1)).endswith("characters of this card are shown.")


def test_a_card_stands_without_header_and_notice() -> None:
    card = card_of(release())
    assert card.lstrip().startswith("# leukoscope-densenet169-cnmc") and "**For research only" not in card
