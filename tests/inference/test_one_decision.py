"""One picture, one decision: nineteen pictures get the same outcome from whichever way they are asked about.

Python, `predict` and `score`, and for fields `smear` and Python: all with one committed release.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter, ImageOps
from typer.testing import CliRunner

from leukoscope import Predictor
from leukoscope.cli import app
from leukoscope.data.images import open_image, open_smear
from leukoscope.data.smear import cut_out, find_cells
from leukoscope.inference.prediction import ABSTAIN, NOT_A_CELL, OUT_OF_DISTRIBUTION
from leukoscope.inference.smear import AT_EDGE, read_smear
from leukoscope.synthetic import draw_smear, example_smear, smear_picture

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
PITCH = 0.12


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


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("which", ["drawn", "real"])
def test_a_picture_gets_one_outcome_whichever_way_it_is_asked_about(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    paths, known = request.getfixturevalue(which)
    predictor = Predictor.from_pretrained(RELEASE)
    outcomes = {Path(prediction.source).name: prediction.outcome for prediction in predictor(paths)}
    assert len(outcomes) == {"drawn": 12, "real": 7}[which]
    for name, wanted in known.items():
        assert outcomes[name] in wanted.split(" or ") or not wanted, name
    command("score", RELEASE, "--input", paths[0].parent, "--output", tmp_path / "scores.parquet")
    ways = {
        "explained": {Path(cell.source).name: cell.outcome for cell in predictor(paths, explain=True)},
        "one at a time": {path.name: predictor(np.asarray(open_image(path))).outcome for path in paths},
        "predict --json": {
            Path(row["source"]).name: row["outcome"]
            for row in json.loads(command("predict", RELEASE, "--json", *paths))
        },
        "score": {row["cell_id"]: row["outcome"] for row in pq.read_table(tmp_path / "scores.parquet").to_pylist()},
    }
    for way, answers in ways.items():
        assert answers == outcomes, way


def field_of(stain: tuple[float, float, float]) -> Image.Image:
    return Image.fromarray((example_smear() * np.asarray(stain)).astype(np.uint8))


@pytest.mark.parametrize(
    ("stain", "known"), [((1.0, 1.0, 1.0), True), ((1.0, 0.86, 0.74), False)], ids=["its stain", "another stain"]
)
def test_a_smear_s_cells_get_one_outcome_whichever_way_it_is_read(
    stain: tuple[float, float, float], known: bool, tmp_path: Path
) -> None:
    path = tmp_path / "field.png"
    field_of(stain).save(path)
    ours = read_smear(Predictor.from_pretrained(RELEASE), open_smear(path), um_per_pixel=PITCH)
    (told,) = json.loads(command("smear", RELEASE, path, "--um-per-pixel", PITCH, "--json"))
    outcomes = [cell.outcome for cell in ours.cells]
    assert len(outcomes) >= 4
    assert told["cells"] == ours.to_dict()["cells"]
    assert told["counts"] == ours.counts
    assert told["in_distribution"] == ours.in_distribution
    if known:
        assert "ALL" in outcomes and (ours.in_distribution or 0) >= 0.5
    else:
        assert set(outcomes) <= {OUT_OF_DISTRIBUTION, AT_EDGE} and (ours.in_distribution or 0) < 0.5
