"""`leukoscope field` must show counts, write its overlay whole, and name every field it cannot read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE
from leukoscope.cells.phantom_fields import draw_field
from leukoscope.cli import app


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fields") / "smear.png"
    Image.fromarray(draw_field(size=(300, 380), um_per_pixel=0.2).image).save(path)
    return path


def test_table_shows_counts_scale_and_notice(tiny_release, smear):
    result = run("field", smear, "--model", tiny_release, "--um-per-pixel", 0.2)

    assert result.exit_code == 0, result.output
    assert "0.200 (given)" in result.stdout
    assert "3 nucleated cell(s), 3 of them whole" in " ".join(result.stdout.split())
    assert RESEARCH_NOTICE in result.stdout


def test_json_and_overlay_agree_with_the_field(tiny_release, smear, tmp_path):
    out = tmp_path / "new" / "overlay.png"

    result = run("field", smear, "--model", tiny_release, "--um-per-pixel", 0.2, "--out", out, "--json")

    (told,) = json.loads(result.stdout)
    assert len(told["cells"]) == sum(told["counts"].values()) == 3
    with Image.open(out) as overlay:
        assert overlay.width == 800
        assert overlay.text["Disclaimer"] == RESEARCH_NOTICE  # type: ignore[attr-defined]
    assert [path.name for path in out.parent.iterdir()] == ["overlay.png"]


def test_a_bad_field_is_named_and_the_others_are_still_read(tiny_release, smear, tmp_path):
    grey = tmp_path / "grey.png"
    Image.open(smear).convert("L").save(grey)

    result = run(
        "field", grey, smear, tmp_path / "none.png", "--model", tiny_release, "--json", "--out", tmp_path / "o.png"
    )

    assert result.exit_code == 1
    assert [reading["source"] for reading in json.loads(result.stdout)] == [str(smear)]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"{grey}: the picture is grey" in errors[0] and "no such file" in errors[1]
    assert (tmp_path / "o-smear.png").exists()


def test_fields_of_one_name_have_overlays_of_their_own_and_any_name_is_shown(tiny_release, smear, tmp_path):
    second = tmp_path / "second" / smear.name
    odd = tmp_path / os.fsdecode(b"odd-\xff.png")
    second.parent.mkdir()
    for copy in (second, odd):
        shutil.copy(smear, copy)

    result = run(
        "field", smear, second, odd, "--model", tiny_release, "--um-per-pixel", 0.2, "--out", tmp_path / "o.png"
    )

    assert result.exit_code == 0, result.output
    drawn = {path.name for path in tmp_path.glob("o-*.png")}
    assert drawn == {f"o-{smear.stem}.png", f"o-{smear.stem}-2.png", f"o-{odd.stem}.png"}
    assert "odd-\N{REPLACEMENT CHARACTER}" in "".join(result.stdout.split())


def test_predict_sends_a_smear_here_instead_of_giving_it_a_label(tiny_release, smear, tmp_path):
    release = tmp_path / "cut-out"
    shutil.copytree(tiny_release, release)
    metrics = json.loads((release / "metrics.json").read_text())
    (release / "metrics.json").write_text(json.dumps({**metrics, "data": {"name": "cnmc2019"}}))

    result = run("predict", smear, "--model", release, "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout) == []
    assert f"{smear}: shows a smear" in result.stderr
    assert f"leukoscope field {smear} --model" in result.stderr
