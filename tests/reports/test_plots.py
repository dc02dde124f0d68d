"""A card's figures are drawn from the release's own weights and numbers, and the card shows those that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.models.weights import Release
from leukoscope.models.weights import load_release as load
from leukoscope.reports.card import SHOWN, draw_plots, render_card, write_card
from leukoscope.reports.release_tables import detailed_evaluation

EMBEDDED = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


@pytest.fixture(scope="module")
def assessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of an embedded release without its figures."""
    target = tmp_path_factory.mktemp("assessed") / "copy"
    return shutil.copytree(EMBEDDED[0], target, ignore=shutil.ignore_patterns("figures"))


@pytest.mark.slow
def test_an_assessed_release_gets_every_figure_and_the_same_again(assessed: Path) -> None:
    files = draw_plots(assessed)
    assert [file.stem for file in files] == list(SHOWN)
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 400 and len(set(picture.convert("L").getdata())) > 20, f"{file} shows something"
    card = render_card(assessed)
    assert all(f"![{words}](figures/{name}.png)" in card for name, words in SHOWN.items())
    first = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in draw_plots(assessed)] == first


def test_a_card_that_must_ask_for_maps_loads_the_network_once_and_exports_no_graph(
    tiny_release: Path, tmp_path: Path, release_metrics: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(tiny_release, tmp_path / "copy")
    unmeasured = {key: block for key, block in release_metrics.items() if key != "heat_maps"}
    (copy / "metrics.json").write_text(json.dumps(unmeasured | {"evaluations": []}))
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / "cache"))
    loads: list[Any] = []

    def counted(*args: Any, **more: Any) -> Release:
        loads.append(args)
        return load(*args, **more)

    monkeypatch.setattr("leukoscope.models.weights.load_release", counted)
    write_card(copy)
    assert len(loads) == 1
    assert not (tmp_path / "cache").exists()


def test_figures_alone_give_the_confusion_matrix(release: Path) -> None:
    assert [file.name for file in draw_plots(release)] == ["confusion.png"]
    assert write_card(release).read_text().count("![") == 1


def test_a_folder_that_cannot_be_written_ends_in_one_line(release: Path) -> None:
    (release / "figures").write_text("a file where the folder should be")
    with pytest.raises(LeukoscopeError, match=r"plots cannot be written there \(.*\); check who may write there$"):
        draw_plots(release)


def test_a_card_that_cannot_be_written_ends_in_one_line(release: Path) -> None:
    (release / "README.md").mkdir()
    with pytest.raises(LeukoscopeError, match=r"README.md: cannot be written \(.*\); check who may write there$"):
        write_card(release)


def test_a_recalibrated_release_is_judged_by_its_own_cells(release_metrics: dict[str, Any]) -> None:
    trained = detailed_evaluation(release_metrics)
    recalibrated = detailed_evaluation(release_metrics | {"recalibration": {}})
    assert trained is not None and recalibrated is not None
    assert (trained["name"], recalibrated["name"]) == ("subject_cv", "random")
    assert detailed_evaluation(release_metrics | {"evaluations": []}) is None


def test_a_recalibrated_release_shows_the_subjects_of_its_cross_validation(tmp_path: Path) -> None:
    metrics = json.loads((EMBEDDED[0] / "metrics.json").read_text())
    drawn = []
    for shown in (metrics, metrics | {"recalibration": {}}):
        (tmp_path / "metrics.json").write_text(json.dumps(shown))
        draw_plots(tmp_path)
        drawn.append({file.stem: file.read_bytes() for file in (tmp_path / "figures").iterdir()})
    assert drawn[0].keys() == drawn[1].keys() == {"confusion", "subjects", "reliability"}
    assert {name for name in drawn[0] if drawn[0][name] != drawn[1][name]} == {"confusion"}


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_embedded_cards_show_their_figures(embedded: Path) -> None:
    two_classes = len(json.loads((embedded / "metrics.json").read_text())["labels"]) == 2
    shown = set(SHOWN) - (set() if two_classes else {"roc"})
    assert {file.stem for file in (embedded / "figures").glob("*.png")} == shown
