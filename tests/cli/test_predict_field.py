"""`leukoscope field` must show counts, write its overlay whole, and name every field it cannot read."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli import app
from leukoscope.data.synthetic import draw_field

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fields") / "smear.png"
    Image.fromarray(draw_field(size=(300, 380), um_per_pixel=0.2).image).save(path)
    return path


def test_table_shows_counts_scale_and_notice(tiny_release, smear):
    result = run("field", smear, "--model", tiny_release, "--um_per_pixel", 0.2)

    assert result.exit_code == 0, result.output
    assert "0.200 (given)" in result.stdout
    assert "3 nucleated cell(s), 3 of them whole" in " ".join(result.stdout.split())
    assert RESEARCH_NOTICE in result.stdout


def test_json_and_overlay_agree_with_the_field(tiny_release, smear, tmp_path):
    out = tmp_path / "new" / "overlay.png"

    result = run("field", smear, "--model", tiny_release, "--um_per_pixel", 0.2, "--output", out, "--json")

    (told,) = json.loads(result.stdout)
    assert len(told["cells"]) == sum(told["counts"].values()) == 3
    assert list(told["counts"]) == ["ALL", "HEM", "abstain", "out of distribution", "not a cell", "cut by the edge"]
    assert {cell["outcome"] for cell in told["cells"]} <= {"ALL", "HEM"}, "a release without detector and thresholds"
    with Image.open(out) as overlay:
        assert overlay.width == 800
        assert overlay.text["Disclaimer"] == RESEARCH_NOTICE  # type: ignore[attr-defined]
    assert [path.name for path in out.parent.iterdir()] == ["overlay.png"]


def test_a_bad_field_is_named_and_the_others_are_still_read(tiny_release, smear, tmp_path):
    grey = tmp_path / "grey.png"
    Image.open(smear).convert("L").save(grey)

    result = run(
        "field", grey, smear, tmp_path / "none.png", "--model", tiny_release, "--json", "--output", tmp_path / "o.png"
    )

    assert result.exit_code == 1
    assert [reading["source"] for reading in json.loads(result.stdout)] == [str(smear)]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"{grey}: the picture is grey" in errors[0] and "no such file" in errors[1]
    assert (tmp_path / "o-smear.png").exists()


def test_fields_of_one_name_have_overlays_of_their_own(tiny_release, smear, tmp_path):
    names = ("one/a.png", "two/a.png", "A-2.png")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(smear, tmp_path / name)

    flags = ("--model", tiny_release, "--um_per_pixel", 0.2, "--output", tmp_path / "o.png")
    result = run("field", *(tmp_path / name for name in names), *flags)

    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.glob("o*.png")) == ["o-A-2-2.png", "o-a-2.png", "o-a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="such names cannot exist on Windows or macOS")
def test_a_name_that_is_no_utf8_does_not_end_the_run(tiny_release, smear, tmp_path):
    odd = shutil.copy(smear, os.fsdecode(os.fsencode(tmp_path) + b"/odd-\xff.png"))
    flags = ("--model", tiny_release, "--um_per_pixel", 0.2, "--output", tmp_path / "o.png")

    result = run("field", odd, *flags)

    assert result.exit_code == 0, result.output
    assert "odd-\ufffd.png" in "".join(result.stdout.split())
    with Image.open(tmp_path / "o.png") as overlay:
        assert "odd-\ufffd.png read by" in overlay.text["Title"]  # type: ignore[attr-defined]


def test_predict_sends_a_smear_here_instead_of_giving_it_a_class(smear):
    result = run("predict", smear, "--model", RELEASE, "--json")

    (answer,) = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert answer["outcome"] == "not a cell"
    assert answer["reasons"][0]["code"] == "field_of_view"
    shown = " ".join(run("predict", smear, "--model", RELEASE).stdout.split())
    assert f"leukoscope field {smear} --model {RELEASE}" in shown


def test_a_field_in_another_stain_gets_no_class_at_all(tmp_path):
    drawn = draw_field(("ALL", "HEM", "ALL", "HEM"), size=(480, 640), um_per_pixel=0.12, scale_bar=False, seed=5).image
    known, warm = tmp_path / "known.png", tmp_path / "warm.png"
    Image.fromarray(drawn).save(known)
    Image.fromarray((drawn * np.array([1.0, 0.86, 0.74])).astype(np.uint8)).save(warm)

    result = run("field", known, warm, "--model", RELEASE, "--um_per_pixel", 0.12, "--json")
    shown = run("field", warm, "--model", RELEASE, "--um_per_pixel", 0.12)

    inside, outside = json.loads(result.stdout)
    assert inside["share_known"] >= 0.5 > outside["share_known"]
    assert inside["counts"]["ALL"] > 0
    assert outside["counts"]["ALL"] == outside["counts"]["HEM"] == 0
    for cell in outside["cells"]:
        assert cell["outcome"] in ("out of distribution", "cut by the edge")
        assert all(reason["text"] for reason in cell["reasons"])
        assert bool(cell["reasons"]) == bool(cell["probabilities"]) == (cell["ood_score"] is not None)
    assert "no cell gets a class" in " ".join(shown.stdout.split())
    assert shown.exit_code == 0
