"""Evidence: every release's two measurements, the people behind them, and a card that loads nothing."""

from __future__ import annotations

import pytest

from asked import ROOT, release
from leukoscope.demo.evidence import (
    INTRODUCTION,
    MAX_CARD,
    card_of,
    clean_card,
    facts_of,
    measurements,
    people_of,
)  # fmt: skip
from leukoscope.demo.models import Models, find_releases


def test_further_people_come_first_with_their_cells() -> None:
    head, _, *rows = measurements(Models(find_releases(ROOT / "model_card"))).splitlines()
    assert len(rows) == 6 and head == "| tested on | ALL of 100 | HEM of 100 |"
    people = "34 further people, 211 cells: 6 of a person in the mean, at most 3 of 20 people"
    assert people in rows[0] and "(" in rows[0].rpartition(people)[2]
    assert "cross-validation" in rows[1] and "not measured" in rows[2] and rows[2].endswith("| – | – |")


def test_every_person_is_a_dot_and_the_worst_changes_are_a_sentence() -> None:
    plot = people_of(release())
    assert [row["name"] for row in plot["people"]] == ["ALL", "HEM"]
    assert sum(len(row["dots"]) for row in plot["people"]) == 41
    assert "Of 100 cells, 13 change class when shifted by +4° in hue, 9 when 10 % smaller." in facts_of(release())


def test_at_most_250_words_stand_before_the_card() -> None:
    models = Models(find_releases(ROOT / "model_card"))
    for name in models.names:
        plot = people_of(models.release(name))
        shown = [INTRODUCTION, facts_of(models.release(name)), measurements(models).replace("|", ""), plot["axis"]]
        shown += [f"{row['cells']} {row['words']} {row['detail']}" for row in plot["people"]]
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
