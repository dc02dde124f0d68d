"""One picture, one decision: nineteen pictures get the same outcome from whichever way they are asked about.

Python, `predict`, `score`, the demo's batch and its one cell through its API, and for fields `smear`, Python and the
demo: all with one committed release.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter, ImageOps
from typer.testing import CliRunner

from leukoscope import Predictor
from leukoscope.cli import app
from leukoscope.data.images import open_image, open_smear
from leukoscope.data.smear import cut_out, find_cells
from leukoscope.inference.prediction import ABSTAIN, NOT_A_CELL, OUT_OF_DISTRIBUTION, Decision
from leukoscope.inference.smear import AT_EDGE, read_smear
from leukoscope.synthetic import example_smear, smear_picture
from leukoscope.synthetic_smears import draw_smear
from leukoscope.web import smear as web_smear
from leukoscope.web.answer import Picture, ask
from leukoscope.web.app import Endpoints
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import FIELD_LIMIT, read_upload

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
PITCH = 0.12
Said = tuple[str, tuple[str, ...], float]
"""Outcome, codes of the reasons that decided it, OOD score."""


def phantom(label: str, subject: int, cell: int) -> Image.Image:
    """One whose outcome is known, kept as a lossless file."""
    return open_image(Path(__file__).parent / "drawn" / f"{label}-{subject}-{cell}.webp")


def smear() -> Image.Image:
    drawn = draw_smear(("ALL", "HEM", "ALL"), size=(480, 640), um_per_pixel=PITCH, seed=3)
    return Image.fromarray(drawn.image)


def first_cell_of(image: Image.Image, um_per_pixel: float | None = None) -> Image.Image:
    field = find_cells(image, um_per_pixel=um_per_pixel)
    assert field.scale is not None
    return cut_out(image, next(cell for cell in field.cells if cell.whole), field.scale.um_per_pixel)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))


REFUSED = f"{OUT_OF_DISTRIBUTION} or {NOT_A_CELL}"
# File → how to draw it, and what the release must say of it; "" where it may say anything.
DRAWN: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "phantom-ALL.bmp": (lambda: phantom("ALL", 11, 1), "ALL"),
    "phantom-ALL-unsure.png": (lambda: phantom("ALL", 2, 12), ABSTAIN),
    "phantom-HEM.png": (lambda: phantom("HEM", 7, 3), "HEM"),
    "phantom-HEM-unsure.png": (lambda: phantom("HEM", 1, 4), ""),
    "smear.png": (smear, NOT_A_CELL),
    "smear-ball4.jpg": (lambda: Image.fromarray(smear_picture("Pre", 0)), NOT_A_CELL),
    "cell-of-the-smear.png": (lambda: first_cell_of(smear(), PITCH), ""),
    "noise.png": (noise, REFUSED),
    "white.jpg": (lambda: Image.new("RGB", (450, 450), "white"), OUT_OF_DISTRIBUTION),
    "black.png": (lambda: Image.new("RGB", (450, 450)), OUT_OF_DISTRIBUTION),
    "inverted.png": (lambda: ImageOps.invert(phantom("ALL", 11, 1)), OUT_OF_DISTRIBUTION),
    "blurred.png": (lambda: phantom("ALL", 11, 1).filter(ImageFilter.GaussianBlur(22)), OUT_OF_DISTRIBUTION),
}
CNMC = ("UID_11_22_2_all.bmp", "UID_1_1_1_all.bmp", "UID_H24_17_9_hem.bmp", "UID_H6_1_1_hem.bmp")
PBC = "lymphocyte/LY_106354.jpg"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, str]]:
    """Twelve drawn pictures, and what is known of their outcomes."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, (draw, _) in DRAWN.items():
        draw().save(folder / name)
    return sorted(folder.iterdir()), {name: outcome for name, (_, outcome) in DRAWN.items()}


@pytest.fixture(scope="module")
def real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, str]]:
    """Seven made from true cells: four of C-NMC, one of them inverted, and one of PBC whole and cut out."""
    folder = tmp_path_factory.mktemp("real")
    for name in CNMC:
        shutil.copy(real_data / "cnmc2019" / "samples-bmp" / name, folder / name)
    ImageOps.invert(open_image(folder / CNMC[0])).save(folder / "inverted.png")
    shutil.copy(real_data / "pbc" / PBC, folder / "pbc.jpg")
    first_cell_of(open_image(folder / "pbc.jpg")).save(folder / "pbc-cut-out.png")
    known = {"inverted.png": OUT_OF_DISTRIBUTION, "pbc.jpg": REFUSED, "pbc-cut-out.png": OUT_OF_DISTRIBUTION}
    return sorted(folder.iterdir()), known


def said(decision: Decision, ood_score: float | None) -> Said:
    assert ood_score is not None
    # A caution beside a decision stands only where a heat map was asked for, and decides nothing.
    codes = tuple(reason.code for reason in decision.reasons if reason.code != "explanation_off_cell")
    return decision.outcome, codes, ood_score


def of_json(prediction: dict[str, Any]) -> Said:
    codes = tuple(reason["code"] for reason in prediction["reasons"] if reason["code"] != "explanation_off_cell")
    return prediction["outcome"], codes, prediction["ood_score"]


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def every_way(paths: list[Path], tmp_path: Path) -> dict[str, dict[str, Said]]:
    """Way of asking → file → what is said of it."""
    found: dict[str, dict[str, Said]] = {}
    predictor = Predictor.from_pretrained(RELEASE)
    ways: dict[str, dict[str, Any]] = {"Python": {}, "Python, explained": {"explain": True}}
    for way, options in ways.items():
        predictions = predictor(paths, **options)
        found[way] = {Path(one.source).name: said(one.decision, one.checks.ood_score) for one in predictions}
    opened = {path.name: predictor(np.asarray(open_image(path))) for path in paths}
    found["Python, one array at a time"] = {
        name: said(one.decision, one.checks.ood_score) for name, one in opened.items()
    }

    told = json.loads(command("predict", RELEASE, "--json", *paths))
    found["predict --json"] = {Path(prediction["source"]).name: of_json(prediction) for prediction in told}
    table = tmp_path / "scores.parquet"
    command("score", RELEASE, "--input", paths[0].parent, "--output", table)
    found["score"] = {
        row["cell_id"]: (row["outcome"], tuple(row["reasons"].split()), row["ood_score"])
        for row in pq.read_table(table).to_pylist()
    }

    demo = Endpoints(ModelCache({"released": RELEASE}))
    returned = {path.name: demo.predict(str(path), "released") for path in paths}
    assert all(outcome == decision["outcome"] for outcome, *_, decision in returned.values())
    found["the demo's one cell"] = {name: of_json(decision) for name, (*_, decision) in returned.items()}
    cells = demo.batch([str(path) for path in paths], "released")["cells"]
    found["the demo's batch"] = {
        cell["file"]: (cell["outcome"], tuple(cell["reasons"].split()), cell["ood_score"]) for cell in cells
    }
    return found


@pytest.mark.slow
@pytest.mark.parametrize("which", ["drawn", "real"])
def test_a_picture_gets_one_outcome_whichever_way_it_is_asked_about(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    paths, known = request.getfixturevalue(which)
    assert len(paths) == {"drawn": 12, "real": 7}[which]
    found = every_way(paths, tmp_path)
    first = found["Python"]
    assert set(first) == {path.name for path in paths}
    for name, wanted in known.items():
        assert first[name][0] in wanted.split(" or ") or not wanted, name
    for way, predictions in found.items():
        assert {name: one[:2] for name, one in predictions.items()} == {name: one[:2] for name, one in first.items()}, (
            way
        )
        assert {name: one[2] for name, one in predictions.items()} == pytest.approx(
            {name: one[2] for name, one in first.items()}, rel=1e-6
        ), way
    if which == "drawn":
        assert {outcome for outcome, *_ in first.values()} == {"ALL", "HEM", ABSTAIN, OUT_OF_DISTRIBUTION, NOT_A_CELL}
    for name, (outcome, reasons, ood_score) in first.items():
        assert (ood_score > 1) == (outcome in (OUT_OF_DISTRIBUTION, NOT_A_CELL)), name
        assert bool(reasons) == (outcome not in ("ALL", "HEM")), name


def field_of(stain: tuple[float, float, float]) -> Image.Image:
    return Image.fromarray((example_smear() * np.asarray(stain)).astype(np.uint8))


@pytest.mark.parametrize(
    ("stain", "known"), [((1.0, 1.0, 1.0), True), ((1.0, 0.86, 0.74), False)], ids=["its stain", "another stain"]
)
def test_a_smear_s_cells_get_one_outcome_whichever_way_it_is_read(
    stain: tuple[float, float, float], known: bool, tmp_path: Path
) -> None:
    path, shelf = tmp_path / "field.png", ModelCache({"released": RELEASE})
    field_of(stain).save(path)
    image = open_smear(path)
    ours = read_smear(Predictor.from_pretrained(RELEASE), image, um_per_pixel=PITCH)
    seen = web_smear.read_smear(shelf, Picture(*read_upload(path, FIELD_LIMIT), um_per_pixel=PITCH), "released")
    (told,) = json.loads(command("smear", RELEASE, path, "--um-per-pixel", PITCH, "--json"))
    reading, _ = Endpoints(shelf).field(str(path), "released", PITCH)

    outcomes = [cell.outcome for cell in ours.cells]
    assert len(outcomes) >= 4
    assert [cell.outcome for cell in seen.reading.cells] == outcomes
    for cells in (told["cells"], reading["cells"]):
        for cell, expected in zip(cells, ours.to_dict()["cells"], strict=True):
            # The demo predicts four at a time; sums are ordered otherwise in batches of other sizes.
            almost = {"probabilities": pytest.approx(expected["probabilities"], abs=1e-4), "reasons": cell["reasons"]}
            assert cell == expected | almost
            for reason, wanted in zip(cell["reasons"], expected["reasons"], strict=True):
                assert reason["code"] == wanted["code"]
                assert reason["value"] == pytest.approx(wanted["value"], abs=1e-4)
    assert told["counts"] == reading["counts"] == ours.counts == seen.reading.counts
    assert told["in_distribution"] == reading["in_distribution"] == ours.in_distribution
    if known:
        assert "ALL" in outcomes and (ours.in_distribution or 0) >= 0.5
    else:
        assert set(outcomes) <= {OUT_OF_DISTRIBUTION, AT_EDGE} and (ours.in_distribution or 0) < 0.5
    for number in seen.whole:
        # Opened from its smear, it is asked about anew.
        opened = ask(web_smear.open_cell(seen, number).picture, shelf, "released")
        assert opened.known.outcome == ours.cells[number].outcome
