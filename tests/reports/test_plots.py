"""A card's figures are drawn from the release's own weights and numbers, and the card shows those that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.reports.card import SHOWN, draw_plots, render_card, write_card

EMBEDDED = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


@pytest.fixture(scope="module")
def assessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of an embedded release without its figures."""
    target = tmp_path_factory.mktemp("assessed") / "copy"
    return shutil.copytree(EMBEDDED[0], target, ignore=shutil.ignore_patterns("figures"))


def test_a_card_shows_its_plot_and_the_same_again(assessed: Path) -> None:
    (file,) = draw_plots(assessed)
    assert file.name == "subjects.png"
    with Image.open(file) as picture:
        assert picture.width > 400 and len(set(picture.convert("L").getdata())) > 20, "it shows something"
    assert f"![{SHOWN['subjects']}](figures/subjects.png)" in render_card(assessed)
    first = file.read_bytes()
    assert draw_plots(assessed)[0].read_bytes() == first


def test_without_folds_the_plot_is_the_confusion_matrix(release: Path, release_metrics: dict[str, Any]) -> None:
    by_image = release_metrics | {"evaluations": release_metrics["evaluations"][1:]}
    (release / "metrics.json").write_text(json.dumps(by_image))
    assert [file.name for file in draw_plots(release)] == ["confusion.png"]
    assert write_card(release).read_text().count("![") == 1


def test_a_folder_that_cannot_be_written_ends_in_one_line(release: Path) -> None:
    (release / "figures").write_text("a file where the folder should be")
    with pytest.raises(LeukoscopeError, match=r"plot cannot be written there \(.*\); check who may write there$"):
        draw_plots(release)


def test_a_card_that_cannot_be_written_ends_in_one_line(release: Path) -> None:
    (release / "README.md").mkdir()
    with pytest.raises(LeukoscopeError, match=r"README.md: cannot be written \(.*\); check who may write there$"):
        write_card(release)


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_embedded_cards_show_their_figure(embedded: Path) -> None:
    assert [file.name for file in (embedded / "figures").iterdir()] == ["subjects.png"]
    assert "(figures/subjects.png)" in (embedded / "README.md").read_text()
