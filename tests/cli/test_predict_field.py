"""`leukoscope field` must show counts, write its overlay whole, and name every field it cannot read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli import app
from leukoscope.data.images import is_cut_out, open_image
from leukoscope.synthetic import draw_cell, draw_field

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fields") / "smear.png"
    Image.fromarray(draw_field(size=(300, 380), um_per_pixel=0.2).image).save(path)
    return path


def test_table_shows_counts_scale_and_notice(tiny_release: Path, smear: Path) -> None:
    result = run("field", tiny_release, smear, "--um_per_pixel", 0.2)

    assert result.exit_code == 0, result.output
    assert "0.200" in result.stdout and "scale: given" in result.stdout.splitlines()
    assert "3 nucleated cell(s), 3 of them whole" in " ".join(result.stdout.split())
    assert RESEARCH_NOTICE in result.stdout


def test_json_and_overlay_agree_with_the_field(tiny_release: Path, smear: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "overlay.png"

    result = run("field", tiny_release, smear, "--um_per_pixel", 0.2, "--output", out, "--json")

    (told,) = json.loads(result.stdout)
    assert len(told["cells"]) == sum(told["counts"].values()) == 3
    assert list(told["counts"]) == ["ALL", "HEM", "abstain", "out of distribution", "not a cell", "cut by the edge"]
    assert {cell["outcome"] for cell in told["cells"]} <= {"ALL", "HEM"}, "a release without detector and thresholds"
    with Image.open(out) as overlay:
        assert overlay.width == 800
        assert overlay.text["Disclaimer"] == RESEARCH_NOTICE  # type: ignore[attr-defined]
    assert [path.name for path in out.parent.iterdir()] == ["overlay.png"]


def test_a_bad_field_is_named_and_the_others_are_still_read(tiny_release: Path, smear: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.open(smear).convert("L").save(grey)

    result = run("field", tiny_release, grey, smear, tmp_path / "none.png", "--json", "--output", tmp_path / "o.png")

    assert result.exit_code == 1
    assert [reading["source"] for reading in json.loads(result.stdout)] == [str(smear)]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"{grey}: the picture is grey" in errors[0] and "no such file" in errors[1]
    assert (tmp_path / "o-smear.png").exists()


def test_fields_of_one_name_have_overlays_of_their_own(tiny_release: Path, smear: Path, tmp_path: Path) -> None:
    names = ("one/a.png", "two/a.png", "A-2.png")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(smear, tmp_path / name)

    flags = ("--um_per_pixel", 0.2, "--output", tmp_path / "o.png")
    result = run("field", tiny_release, *(tmp_path / name for name in names), *flags)

    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.glob("o*.png")) == ["o-A-2-2.png", "o-a-2.png", "o-a.png"]


@pytest.mark.parametrize("fields", [("o.png",), ("a.png", "o-a.png")], ids=["one", "several"])
def test_an_overlay_never_replaces_a_field(
    tiny_release: Path, smear: Path, tmp_path: Path, fields: tuple[str, ...]
) -> None:
    for name in fields:
        shutil.copy(smear, tmp_path / name)

    result = run("field", tiny_release, *(tmp_path / name for name in fields), "--output", tmp_path / "o.png")

    replaced, out = tmp_path / fields[-1], tmp_path / "o.png"
    said = f"error: --output {out}: the overlay would replace the field {replaced}; name another file\n"
    assert (result.exit_code, result.stderr) == (1, said)
    assert replaced.read_bytes() == smear.read_bytes()


def test_an_overlay_is_a_png_by_its_name_too(tiny_release: Path, smear: Path, tmp_path: Path) -> None:
    result = run("field", tiny_release, smear, "--output", tmp_path / "o.jpg")

    said = f"error: --output {tmp_path / 'o.jpg'}: overlays are PNG files; name a file that ends in .png\n"
    assert (result.exit_code, result.stderr) == (1, said)


@pytest.mark.skipif(sys.platform != "linux", reason="such names cannot exist on Windows or macOS")
def test_a_name_that_is_no_utf8_does_not_end_the_run(tiny_release: Path, smear: Path, tmp_path: Path) -> None:
    odd = shutil.copy(smear, os.fsdecode(os.fsencode(tmp_path) + b"/odd-\xff.png"))
    flags = ("--um_per_pixel", 0.2, "--output", tmp_path / "o.png")

    result = run("field", tiny_release, odd, *flags)

    assert result.exit_code == 0, result.output
    assert "odd-\ufffd.png" in "".join(result.stdout.split())
    with Image.open(tmp_path / "o.png") as overlay:
        assert "odd-\ufffd.png read by" in overlay.text["Title"]  # type: ignore[attr-defined]


def test_predict_sends_a_smear_here_instead_of_giving_it_a_class(smear: Path) -> None:
    result = run("predict", RELEASE, smear, "--json")

    (answer,) = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert answer["outcome"] == "not a cell"
    assert answer["reasons"][0]["code"] == "field_of_view"
    shown = " ".join(run("predict", RELEASE, smear).stdout.split())
    assert f"leukoscope field {RELEASE} {smear}" in shown


def test_a_field_in_another_stain_gets_no_class_at_all(tmp_path: Path) -> None:
    drawn = draw_field(("ALL", "HEM", "ALL", "HEM"), size=(480, 640), um_per_pixel=0.12, scale_bar=False, seed=5).image
    known, warm = tmp_path / "known.png", tmp_path / "warm.png"
    Image.fromarray(drawn).save(known)
    Image.fromarray((drawn * np.array([1.0, 0.86, 0.74])).astype(np.uint8)).save(warm)

    result = run("field", RELEASE, known, warm, "--um_per_pixel", 0.12, "--json")
    shown = run("field", RELEASE, warm, "--um_per_pixel", 0.12)

    inside, outside = json.loads(result.stdout)
    assert inside["in_distribution"] >= 0.5 > outside["in_distribution"]
    assert inside["counts"]["ALL"] > 0
    assert outside["counts"]["ALL"] == outside["counts"]["HEM"] == 0
    for cell in outside["cells"]:
        assert cell["outcome"] in ("out of distribution", "cut by the edge")
        assert all(reason["text"] for reason in cell["reasons"])
        assert bool(cell["reasons"]) == bool(cell["probabilities"]) == (cell["ood_score"] is not None)
    assert "no cell gets a class" in " ".join(shown.stdout.split())
    assert shown.exit_code == 0


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of two fields each, one of them with a cut-out cell beside its fields."""
    root = tmp_path_factory.mktemp("lab") / "slides"
    for slide in ("first", "second"):
        (root / slide / "cells").mkdir(parents=True)
        for number in range(2):
            image = draw_field(size=(300, 380), um_per_pixel=0.2, seed=number).image
            Image.fromarray(image).save(root / slide / f"a-field-{number}.png")
    Image.fromarray(draw_cell("ALL", subject=1).image).save(root / "first" / "cells" / "one.png")
    return root


def test_a_folder_is_read_slide_by_slide_with_one_scale_and_crops(
    tiny_release: Path, slides: Path, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        app, [str(a) for a in ("field", tiny_release, slides, "--crops", crops)]
    )

    assert result.exit_code == 0, result.output
    tables = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert max(map(len, tables)) <= 80
    fields = [line for line in tables if "a-field-" in line]
    assert len(fields) == 4 and len({line.split("│")[-2] for line in fields}) == 1, "one scale for the folder"
    assert "scale: guessed from red cells of the series" in result.stdout.splitlines()
    # A long temporary path is folded, so a field's first line may end in the folder's name too.
    (row,) = (cells for line in tables if (cells := line.strip("│").split("│"))[0].strip() == "slides/second")
    counts = [int(cell) for cell in row[1:]]
    readings = json.loads(run("field", tiny_release, slides, "--json").stdout)
    assert {reading["scale_from"] for reading in readings} == {"red cells of the series"}
    cells = [reading["cells"] for reading in readings if "second" in reading["source"]]
    assert counts[:2] == [2, sum(map(len, cells))]
    whole = sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.png"))
    assert whole == sorted(
        f"slides/{Path(reading['source']).parent.name}/{Path(reading['source']).stem}-{number}.png"
        for reading in readings
        for number, cell in enumerate(reading["cells"])
        if cell["outcome"] != "cut by the edge"
    )
    assert is_cut_out(open_image(crops / whole[0]))
    tasks = json.loads((crops / "label_studio.json").read_text(encoding="utf-8"))
    assert [task["data"]["file"] for task in tasks] == whole
    assert tasks[0]["data"] == {"image": f"/data/local-files/?d={whole[0]}", "file": whole[0], "subject": "first"}
    assert "passed over: 1 picture(s) of single cut-out cells" in result.stderr and "one.png" in result.stderr


def test_fields_on_black_are_named_with_their_fix_and_not_passed_over(
    tiny_release: Path, slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "slide").mkdir()
    field = Image.open(slides / "first" / "a-field-0.png").convert("RGB")
    pixels = np.array(field)
    y, x = np.ogrid[: field.height, : field.width]
    pixels[np.hypot(x - field.width / 2, y - field.height / 2) > field.height / 2] = 0
    Image.fromarray(pixels).save(tmp_path / "slide" / "round.png")
    ImageOps.expand(field, 40, "black").save(tmp_path / "slide" / "border.png")
    result = run("field", tiny_release, tmp_path / "slide", "--um_per_pixel", 0.2, "--json")
    assert json.loads(result.stdout) == [] and result.exit_code == 1 and "passed over" not in result.stderr
    for name in ("round.png", "border.png"):
        assert name in result.stderr
    assert " ".join(result.stderr.split()).count("crop it to the field") == 2


def test_crops_of_fields_of_one_name_stand_beside_each_other(tiny_release: Path, slides: Path, tmp_path: Path) -> None:
    twins = [tmp_path / "a.png", tmp_path / "A.tif", tmp_path / "other" / tmp_path.name / "a.png"]
    for twin in twins:
        twin.parent.mkdir(parents=True, exist_ok=True)
        Image.open(slides / "first" / "a-field-0.png").save(twin)
    assert run("field", tiny_release, *twins, "--crops", tmp_path / "crops").exit_code == 0
    names = [path.stem for path in (tmp_path / "crops" / tmp_path.name).iterdir()]
    of_field = Counter(name.rpartition("-")[0] for name in names)
    assert set(of_field) == {"a", "A-2", "a-3"} and len(set(of_field.values())) == 1


@pytest.mark.parametrize("given", ["../a-field-0.png", "a-field-0.png", "..", "."])
def test_crops_stay_in_their_folder_however_a_field_is_named(
    tiny_release: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    home = tmp_path / "slide"
    (home / "inner").mkdir(parents=True)
    shutil.copy(slides / "first" / "a-field-0.png", home)
    monkeypatch.chdir(home / "inner" if ".." in given else home)
    result = run("field", tiny_release, given, "--crops", tmp_path / "crops")
    assert result.exit_code == 0, result.output
    assert {path.name for path in home.rglob("*.png")} == {"a-field-0.png"}
    assert {path.parent for path in tmp_path.rglob("a-field-0-*.png")} == {tmp_path / "crops" / "slide"}


def test_crops_never_lie_among_the_fields(
    tiny_release: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "fields" / "slide"
    home.mkdir(parents=True)
    for name in ("f.png", "f-0.png"):
        shutil.copy(slides / "first" / "a-field-0.png", home / name)
    before = (home / "f-0.png").read_bytes()
    monkeypatch.chdir(tmp_path / "fields")
    result = run("field", tiny_release, "slide", "--crops", ".")
    assert result.exit_code == 1
    assert "--crops .: crops would lie among the fields of slide; name another folder" in result.stderr
    assert (home / "f-0.png").read_bytes() == before and len(list(home.iterdir())) == 2


def test_a_picture_to_pass_on_names_no_folder(tiny_release: Path, slides: Path, tmp_path: Path) -> None:
    field = slides / "first" / "a-field-0.png"
    result = run("field", tiny_release, field, "--crops", tmp_path / "crops", "--output", tmp_path / "overlay.png")
    assert result.exit_code == 0, result.output
    written = [tmp_path / "overlay.png", *(tmp_path / "crops").rglob("*.png")]
    titles = [Image.open(path).info["Title"] for path in written]
    assert len(titles) > 1 and all(title.startswith("a-field-0.png") for title in titles)
    assert not any(str(part) in title for title in titles for part in (slides, tiny_release))
    assert f"read by {tiny_release.name}: " in titles[0]


def test_fields_given_one_by_one_keep_their_own_scales(tiny_release: Path, slides: Path) -> None:
    fields = sorted(slides.rglob("a-field*.png"))
    readings = json.loads(run("field", tiny_release, *fields, "--json").stdout)
    assert all(reading["scale_from"] == "red cells" for reading in readings)


def test_a_folder_without_a_field_is_one_line(tiny_release: Path, tmp_path: Path) -> None:
    result = run("field", tiny_release, tmp_path)
    assert result.exit_code == 1 and "this folder holds no image" in result.stderr


def test_a_full_disk_is_named_whatever_is_written(
    tiny_release: Path, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = next(slides.rglob("a-field*.png"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # The last step of every file that is written whole or not at all.
    monkeypatch.setattr(Path, "replace", full)
    for flags in (("--output", tmp_path / "overlay.png"), ("--crops", tmp_path / "crops")):
        result = run("field", tiny_release, field, *flags)
        assert result.exit_code == 1
        assert "cannot write there (No space left on device); free some space or name another folder" in result.stderr
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
