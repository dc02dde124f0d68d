"""The command line must answer for the good files, name the bad ones, and never show a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from command import run
from drawn import save_cell
from leukoscope import RESEARCH_NOTICE
from leukoscope.cli.smear import TASKS
from leukoscope.inference.prediction import NO_MAP
from leukoscope.models.metrics import METRICS_FILE, Metrics
from leukoscope.reports.words import warnings
from leukoscope.synthetic import draw_smear, smear_picture

HEAVY = {"torch", "datasets", "gradio", "transformers", "timm", "numpy", "PIL", "scipy", "sklearn", "matplotlib"}
RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


def error_lines(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two cells and a file that is none."""
    folder = tmp_path_factory.mktemp("cells")
    save_cell(folder / "a.png")
    save_cell(folder / "inner" / "b.bmp", "HEM", subject=1)
    (folder / "notes.txt").write_text("not a picture, and not called one")
    return folder


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('leukoscope', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('loaded:', {HEAVY} & set(sys.modules))"
    )
    for flag, expected in (("--help", "never use it for diagnosis"), ("--version", "leukoscope 0.1.0")):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=True)
        assert expected in done.stdout
        assert done.stdout.endswith("loaded: set()\n")


def test_the_table_and_the_json_of_a_folder_show_each_image_with_every_class_and_the_notice(
    tiny_release: Path, cells: Path
) -> None:
    result = run("predict", tiny_release, cells / "a.png", cells / "inner" / "b.bmp")
    told = run("predict", tiny_release, cells, "--json")

    assert (result.exit_code, result.stderr, told.exit_code) == (0, "", 0)
    assert RESEARCH_NOTICE in result.stdout
    header = next(line for line in result.stdout.splitlines() if "file" in line)
    columns = [part.strip() for part in header.replace("┃", "|").split("|")[1:-1]]
    assert columns == ["file", "outcome", "ALL", "HEM", "ms"]
    answers = json.loads(told.stdout)
    assert [answer["source"] for answer in answers] == [str(cells / "a.png"), str(cells / "inner" / "b.bmp")]
    for answer in answers:
        row = next(line for line in result.stdout.splitlines() if Path(answer["source"]).name in line)
        assert answer["outcome"] in row and all(f" {one:.4f} " in row for one in answer["probabilities"].values())
        # A release without detector and thresholds gives every picture its most probable class.
        assert answer["outcome"] == max(answer["probabilities"], key=answer["probabilities"].get)
        assert (answer["reasons"], answer["ood_score"], answer["notice"]) == ([], None, RESEARCH_NOTICE)
        assert "overlay" not in answer


def test_a_release_that_refuses_nothing_says_so_below_the_table(
    tiny_release: Path, cells: Path, tmp_path: Path
) -> None:
    phantoms, out = tmp_path / "phantoms", tmp_path / "out.csv"
    shutil.copytree(tiny_release, phantoms)
    metrics = json.loads((phantoms / METRICS_FILE).read_text())
    (phantoms / METRICS_FILE).write_text(json.dumps(metrics | {"data": {"synthetic": True}}))
    Image.fromarray(draw_smear(size=(300, 380), um_per_pixel=0.2).image).save(tmp_path / "smear.png")
    for words in (
        ("predict", phantoms, cells / "a.png"),
        ("smear", phantoms, tmp_path / "smear.png", "--um_per_pixel", 0.2),
        ("score", phantoms, "--input", cells / "inner", "--output", out),
    ):
        shown = run(*words)
        assert shown.exit_code == 0, shown.output
        said = warnings(Metrics.model_validate({"data": {"synthetic": True}}), has_detector=False)
        assert len(said) == 3 and shown.stdout.splitlines()[-4:] == [*said, RESEARCH_NOTICE]
        out.unlink(missing_ok=True)
        assert "This model" not in run(*words, "--quiet").stdout
        out.unlink(missing_ok=True)


def test_many_files_show_how_far_it_is(tiny_release: Path, cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leukoscope.progress.EVERY", 0.001)
    assert "predicting cells: " in run("predict", tiny_release, cells).stderr
    assert run("predict", tiny_release, cells, "--quiet").stderr == ""


def test_a_lower_precision_is_said(tiny_release: Path, cells: Path) -> None:
    result = run("predict", tiny_release, cells / "a.png", "--json", "--backend", "torch", "--precision", "bf16")
    assert result.stderr.startswith("computed in bfloat16: probabilities differ from those in float32")


def test_bad_files_are_named_and_the_good_ones_answered(tiny_release: Path, cells: Path, tmp_path: Path) -> None:
    text = tmp_path / "text[1].png"
    text.write_text("not a picture")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "photo.heic").touch()
    bad = (text, empty, tmp_path / "none.bmp")

    for good in ([cells / "a.png"], []):
        result = run("predict", tiny_release, "--json", *good, *bad)

        assert [answer["source"] for answer in json.loads(result.stdout)] == list(map(str, good))
        assert error_lines(result) == [
            f"{empty}: 1 file(s) skipped, not readable images: .heic 1; export them as PNG or JPEG",
            f"error: {empty}: this folder holds no image (.bmp, .png, .jpg, .jpeg, .jpe, .jfif, .tif, .tiff, .webp, "
            ".gif); name another",
            f"error: {text}: is not an image; give one of BMP, PNG, JPG, TIFF, WEBP",
            f"error: {tmp_path / 'none.bmp'}: no such file; check the path",
        ]
        assert result.exit_code == 1


def test_a_wrong_backend_ends_in_one_line(tiny_release: Path, cells: Path) -> None:
    result = run("predict", tiny_release, cells / "a.png", "--backend", "abacus")
    (line,) = error_lines(result)
    assert line.startswith("error: backend 'abacus': unknown; choose one of auto, torch, ")
    assert (result.exit_code, result.stdout) == (1, "")
    assert isinstance(result.exception, SystemExit), "an error the user can fix must not escape as an exception"


def test_explain_draws_the_most_probable_class_over_each_picture(
    tiny_release: Path, cells: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "maps"

    answers = json.loads(run("predict", tiny_release, "--json", "--explain", out, cells).stdout)

    assert {path.name for path in out.iterdir()} == {f"{Path(a['source']).stem}-{a['outcome']}.png" for a in answers}
    for answer in answers:
        drawn, picture = Image.open(answer["overlay"]), Image.open(answer["source"])
        inside = drawn.crop((0, 0, *picture.size))
        assert drawn.height > picture.height and not np.array_equal(np.asarray(inside), np.asarray(picture))
        assert isinstance(drawn, PngImagePlugin.PngImageFile)
        assert drawn.text["Disclaimer"] == RESEARCH_NOTICE
        assert drawn.text["Title"].startswith(f"Grad-CAM map for {answer['outcome']} (")


FAILED = (
    "This model's Grad-CAM maps failed our checks. Removing what they mark leaves the class's probability 0.15 higher "
    "than removing random pixels."
)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({}, "This model's Grad-CAM maps were not checked."),
        ({"passed": True}, "This model's Grad-CAM maps passed our checks."),
        ({"passed": False, "deletion": {"gain_over_random": {"mean": -0.147}}}, FAILED),
    ],
)
def test_a_drawn_map_says_whether_the_maps_of_its_release_passed(
    tiny_release: Path, cells: Path, tmp_path: Path, block: dict[str, Any], text: str
) -> None:
    release = shutil.copytree(tiny_release, tmp_path / "release")
    metrics = json.loads((release / METRICS_FILE).read_text())
    (release / METRICS_FILE).write_text(json.dumps(metrics | {"heat_maps": {"method": "evidence"} | block}))
    files = (cells / "a.png", save_cell(tmp_path / "b.png"))

    table = run("predict", release, "--explain", tmp_path / "maps", *files).stdout
    rows = json.loads(run("predict", release, "--json", "--explain", tmp_path / "maps", *files).stdout)
    (plain,) = json.loads(run("predict", release, "--json", files[0]).stdout)

    assert table.count(text) == 1, "once, not for each picture"
    for row in rows:
        assert row["map_check"]["passed"] is block.get("passed") and row["map_check"]["text"] == text
        drawn = Image.open(row["overlay"])
        caption = np.asarray(drawn)[Image.open(row["source"]).height :]
        assert caption.shape[1] >= 300 and (caption < 100).any() and (caption > 200).any(), "dark text on white"
    assert plain["map_check"] is None and text not in run("predict", release, files[0]).stdout, "no map, no word of it"


def test_a_network_without_maps_is_said_to_have_none(vit_release: Path, cells: Path, tmp_path: Path) -> None:
    result = run("predict", vit_release, "--json", "--explain", tmp_path / "maps", cells / "a.png")

    (answer,) = json.loads(result.stdout)
    assert "overlay" not in answer
    assert not (tmp_path / "maps").exists()
    assert result.exit_code == 0
    assert result.stderr == f"{vit_release}: {NO_MAP}; nothing is written to {tmp_path / 'maps'}\n"


def test_explain_numbers_equal_names_replaces_earlier_maps_and_overwrites_no_picture(
    tiny_release: Path, tmp_path: Path
) -> None:
    twins = [save_cell(tmp_path / name / "cell.png") for name in ("one", "two")]
    for _ in range(2):
        run("predict", tiny_release, "--json", "--explain", tmp_path / "maps", *twins)
    cells = [save_cell(tmp_path / name) for name in ("cell.png", "cell-ALL.png", "cell-HEM.png")]
    kept = [path.read_bytes() for path in cells]

    answers = json.loads(run("predict", tiny_release, "--json", "--explain", tmp_path, *cells).stdout)

    label = answers[0]["outcome"]
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {f"cell-{label}.png", f"cell-{label}-2.png"}
    assert Path(answers[0]["overlay"]).name == f"cell-{label}-2.png"
    assert [path.read_bytes() for path in cells] == kept


@pytest.mark.skipif(sys.platform != "linux", reason="such names cannot exist on Windows or macOS")
def test_a_folder_with_a_name_that_is_no_utf8_is_read_by_every_command(tiny_release: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p-\xff"))
    for name in ("a.png", "b-\udcff.png"):
        save_cell(folder / name)
    (folder / "broken-\udcff.png").write_text("no picture")
    smears = tmp_path / "smears-\udcff"
    smears.mkdir()
    Image.fromarray(draw_smear(size=(300, 380), um_per_pixel=0.2).image).save(smears / "s-\udcff.png")

    predicted = run("predict", tiny_release, "--json", "--explain", tmp_path / "maps", folder)
    shown = run("predict", tiny_release, folder)
    asked = run("patient", RELEASE, folder)
    scored = run("score", tiny_release, "--input", folder, "--output", tmp_path / "cells.csv")
    smear = run("smear", RELEASE, smears, "--output", tmp_path / "drawn", "--crops", tmp_path / "crops")

    assert [Path(row["source"]).name for row in json.loads(predicted.stdout)] == ["a.png", "b-\udcff.png"]
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        f"{stem}-{row['outcome']}.png" for stem, row in zip(("a", r"b-\xff"), json.loads(predicted.stdout), strict=True)
    }
    assert r"b-\xff.png" in shown.stdout and r"p-\xff" in asked.stdout
    for result in (predicted, shown, asked, scored):
        assert result.exit_code == 1, "one file is broken"
        assert not isinstance(result.exception, UnicodeError) and "Traceback" not in result.output
    for result in (predicted, shown, asked):
        assert rf"p-\udcff{os.sep}broken-\udcff.png: is not an image" in result.stderr
    assert smear.exit_code == 0, smear.output
    assert r"s-\xff.png" in smear.stdout
    assert list((tmp_path / "drawn").rglob("s-*.png")) and json.loads((tmp_path / "crops" / TASKS).read_text())


@pytest.mark.parametrize("options", [["--tta"], ["--explain", "maps"]])
def test_eight_views_say_how_many_agree(
    tiny_release: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run("predict", tiny_release, cells / "a.png", *options, "--json")
    shown = run("predict", tiny_release, cells / "a.png", *options)

    (row,) = json.loads(told.stdout)
    assert (row["disagreement"] is None) == ("--tta" not in options)
    assert "agreeing views" in shown.stdout and f"{row['agreeing_views']} of 8" in shown.stdout


def test_without_a_class_the_table_says_why_below(tmp_path: Path) -> None:
    pictures = {
        "cell": Image.open(Path(__file__).parents[1] / "golden" / "drawn-ALL-1.webp"),
        "blank": Image.new("RGB", (450, 450), "white"),
        "smear": Image.fromarray(smear_picture("Pre", 0)),
    }
    known, blank, smear = (tmp_path / f"{name}.png" for name in pictures)
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")

    result = run("predict", RELEASE, known, blank, smear)

    assert (result.exit_code, result.stderr) == (0, ""), "a picture without a class is no error"
    table, _, below = result.stdout.partition("└")
    for name, outcome in {"cell": " ALL ", "blank": "out of distribution", "smear": "not a cell"}.items():
        assert outcome in next(line for line in table.splitlines() if f"{name}.png" in line)
    below = " ".join(below.split())
    assert "The picture is no single cell cut out on black" in below and f"{known.name}:" not in below
    assert f"if it is a smear, to find and classify its cells: leukoscope smear {RELEASE} {smear}" in below
    assert "Without a class these probabilities are no result." in below
    for answer in json.loads(run("predict", RELEASE, blank, smear, "--json").stdout):
        assert answer["ood_score"] > 1
        assert f"(OOD score {answer['ood_score']:.1f}" in below


def test_the_reasons_of_many_files_are_counted(watched_release: Path, tmp_path: Path) -> None:
    for number in range(22):
        Image.new("RGB", (64, 64), "white").save(tmp_path / f"blank-{number}.png")

    few = run("predict", watched_release, tmp_path / "blank-0.png", tmp_path / "blank-1.png")
    many = run("predict", watched_release, tmp_path)

    assert few.stdout.count("(OOD score") == 2 and "blank-1.png: " in few.stdout
    assert re.search(r"ood_(shape|colour|texture): 22 files \(--json gives the numbers\)", many.stdout)
    assert "(OOD score" not in many.stdout
