"""`leukoscope smear` must show counts, write its pictures whole, and name every smear it cannot read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from command import run
from leukoscope import RESEARCH_NOTICE
from leukoscope.data.images import is_cut_out, open_image
from leukoscope.synthetic import draw_smear

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of two smears each."""
    root = tmp_path_factory.mktemp("lab") / "slides"
    for slide in ("first", "second"):
        (root / slide).mkdir(parents=True)
        for number in range(2):
            image = draw_smear(size=(300, 380), um_per_pixel=0.2, seed=number).image
            Image.fromarray(image).save(root / slide / f"smear-{number}.png")
    return root


@pytest.fixture
def smear(slides: Path) -> Path:
    return slides / "first" / "smear-0.png"


def test_a_line_a_smear_shows_counts_and_scale_and_the_notice_is_last(tiny_release: Path, smear: Path) -> None:
    result = run("smear", tiny_release, smear, "--um_per_pixel", 0.2)
    assert result.exit_code == 0, result.output
    assert f"{smear} at 0.200 µm per pixel (given): 3 nucleated cell(s): " in result.stdout
    assert result.stdout.endswith(f"{RESEARCH_NOTICE}\n")
    assert "(red cells)" in run("smear", tiny_release, smear).stdout


def test_transparent_parts_of_a_smear_are_read_as_an_empty_slide_and_this_is_said(
    tiny_release: Path, smear: Path
) -> None:
    with Image.open(smear) as opaque:
        transparent = opaque.convert("RGBA")
    transparent.paste((0, 0, 0, 0), (0, 0, 9, 9))
    transparent.save(smear)
    table = run("smear", tiny_release, smear, "--um_per_pixel", 0.2)
    assert "Its transparent parts were read as an empty slide." in " ".join(table.stdout.split())
    (reading,) = json.loads(run("smear", tiny_release, smear, "--um_per_pixel", 0.2, "--json").stdout)
    assert "Its transparent parts were read as an empty slide." in reading["notes"]


def test_json_and_overlay_agree_with_the_smear(tiny_release: Path, smear: Path, tmp_path: Path) -> None:
    result = run("smear", tiny_release, smear, "--um_per_pixel", 0.2, "--output", tmp_path / "new", "--json")
    (told,) = json.loads(result.stdout)
    assert len(told["cells"]) == sum(told["counts"].values()) == 3
    assert {cell["outcome"] for cell in told["cells"]} <= {"ALL", "HEM"}, "a release without detector and thresholds"
    (out,) = (path for path in (tmp_path / "new").rglob("*") if path.is_file())
    assert out == tmp_path / "new" / "first" / "smear-0.png"
    with Image.open(out) as overlay:
        assert overlay.width == 800
        assert overlay.text["Disclaimer"] == RESEARCH_NOTICE  # type: ignore[attr-defined]


def test_a_bad_smear_is_named_and_the_others_are_still_read(tiny_release: Path, smear: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.open(smear).convert("L").save(grey)
    result = run("smear", tiny_release, grey, smear, tmp_path / "none.png", "--json", "--output", tmp_path / "o")
    assert result.exit_code == 1
    assert [reading["source"] for reading in json.loads(result.stdout)] == [str(smear)]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"{grey}: the picture is grey" in errors[0] and "no such file" in errors[1]
    assert (tmp_path / "o" / "first" / "smear-0.png").exists()


def test_a_folder_is_read_smear_by_smear_into_crops(tiny_release: Path, slides: Path, tmp_path: Path) -> None:
    crops = tmp_path / "crops"
    result = run("smear", tiny_release, slides, "--crops", crops)
    assert result.exit_code == 0, result.output
    assert result.stdout.count(" nucleated cell(s): ") == 4
    readings = json.loads(run("smear", tiny_release, slides, "--json").stdout)
    assert {reading["scale_from"] for reading in readings} == {"red cells"}
    whole = sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.png"))
    assert whole == sorted(
        f"slides/{Path(reading['source']).parent.name}/{Path(reading['source']).stem}-{number}.png"
        for reading in readings
        for number, cell in enumerate(reading["cells"], start=1)
        if cell["outcome"] != "cut by the edge"
    )
    assert is_cut_out(open_image(crops / whole[0]))
    tasks = json.loads((crops / "label_studio.json").read_text(encoding="utf-8"))
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d={name}" for name in whole]
    assert tasks[0]["data"] == {"image": f"/data/local-files/?d={whole[0]}", "subject": "first"}


def test_pictures_of_smears_of_one_name_stand_beside_each_other(
    tiny_release: Path, smear: Path, tmp_path: Path
) -> None:
    twins = [tmp_path / "a.png", tmp_path / "A.tif", tmp_path / "other" / tmp_path.name / "a.png"]
    for twin in twins:
        twin.parent.mkdir(parents=True, exist_ok=True)
        Image.open(smear).save(twin)
    assert run("smear", tiny_release, *twins, "--crops", tmp_path / "c", "--output", tmp_path / "o").exit_code == 0
    of_smear = Counter(path.stem.rpartition("-")[0] for path in (tmp_path / "c" / tmp_path.name).iterdir())
    assert set(of_smear) == {"a", "A-2", "a-3"} and len(set(of_smear.values())) == 1
    assert {path.stem for path in (tmp_path / "o" / tmp_path.name).iterdir()} == {"a", "A-2", "a-3"}


@pytest.mark.parametrize("given", ["../smear-0.png", "smear-0.png", "..", "."])
def test_crops_stay_in_their_folder_however_a_smear_is_named(
    tiny_release: Path, smear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    home = tmp_path / "slide"
    (home / "inner").mkdir(parents=True)
    shutil.copy(smear, home)
    monkeypatch.chdir(home / "inner" if ".." in given else home)
    result = run("smear", tiny_release, given, "--crops", tmp_path / "crops")
    assert result.exit_code == 0, result.output
    assert {path.name for path in home.rglob("*.png")} == {"smear-0.png"}
    assert {path.parent for path in tmp_path.rglob("smear-0-*.png")} == {tmp_path / "crops" / "slide"}


@pytest.mark.parametrize("flag", ["--crops", "--output"])
def test_pictures_never_lie_among_the_smears(
    tiny_release: Path, smear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    home = tmp_path / "smears" / "slide"
    home.mkdir(parents=True)
    shutil.copy(smear, home / "f.png")
    monkeypatch.chdir(tmp_path / "smears")
    result = run("smear", tiny_release, "slide", flag, ".")
    assert result.exit_code == 1
    assert f"{flag} .: would write pictures among the smears of slide; name another" in result.stderr
    assert (home / "f.png").read_bytes() == smear.read_bytes() and len(list(home.iterdir())) == 1


def test_a_picture_to_pass_on_names_no_folder(tiny_release: Path, smear: Path, tmp_path: Path) -> None:
    result = run("smear", tiny_release, smear, "--crops", tmp_path / "crops", "--output", tmp_path / "overlays")
    assert result.exit_code == 0, result.output
    titles = [Image.open(path).info["Title"] for path in sorted(tmp_path.rglob("*.png"))]
    assert len(titles) > 1 and all(title.startswith("smear-0.png") for title in titles)
    assert not any(str(part) in title for title in titles for part in (smear.parent, tiny_release))
    assert f"read by {tiny_release.name}: " in titles[-1]
