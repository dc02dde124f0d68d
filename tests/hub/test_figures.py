"""A card's figures are drawn from the release's own numbers, and the card shows those that are there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from leukoscope.hub.card import render_card, write_card
from leukoscope.hub.figures import SHOWN, draw_figures

EMBEDDED = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


def test_an_assessed_release_gets_every_figure(tmp_path: Path) -> None:
    copy = shutil.copytree(EMBEDDED[0], tmp_path / "copy", ignore=shutil.ignore_patterns("figures", "*.safetensors"))
    files = draw_figures(copy)
    assert [file.stem for file in files] == list(SHOWN)
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 400 and len(set(picture.convert("L").getdata())) > 20, f"{file} shows something"
    card = render_card(copy)
    assert all(f"![{words}](figures/{name}.png)" in card for name, words in SHOWN.items())


def test_a_release_without_calibration_gets_none(release: Path) -> None:
    assert draw_figures(release) == []
    assert "![" not in write_card(release).read_text() and not (release / "figures").exists()


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_embedded_cards_show_their_figures(embedded: Path) -> None:
    assert {file.stem for file in (embedded / "figures").glob("*.png")} == set(SHOWN)
