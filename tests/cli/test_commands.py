"""The command line as a whole: groups, help with examples, and one spelling of flags."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from command import run
from drawn import save_cell
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli import COMMAND_EXAMPLES, app
from leukoscope.cli.options import print_table
from leukoscope.files import embedded_releases
from leukoscope.models.hub_download import find_release
from leukoscope.training.config import TrainingConfig, parse_config

LINES = COMMAND_EXAMPLES.strip().splitlines()


def commands() -> Iterator[tuple[str, Any]]:
    """(words after `leukoscope`, command) of each command but `train`, whose parser is that of train.py."""
    root: Any = get_command(app)
    for name, command in root.commands.items():
        below = getattr(command, "commands", None)
        if below:
            yield from ((f"{name} {inner}", one) for inner, one in below.items())
        elif name != "train":
            yield name, command


COMMANDS = dict(commands())


def path_of(line: str) -> str:
    """The command of an example, without `leukoscope`."""
    return max((path for path in COMMANDS if f"{line} ".startswith(f"leukoscope {path} ")), key=len)


@pytest.mark.parametrize("path", COMMANDS)
def test_help_answers_to_h_and_shows_an_example(path: str) -> None:
    result = run(*path.split(), "-h")
    assert result.exit_code == 0, result.output
    (shown,) = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("Example: ")]
    assert shown.removeprefix("Example: ") in LINES and path_of(shown.removeprefix("Example: ")) == path


@pytest.mark.parametrize("line", LINES)
def test_an_example_can_be_parsed(line: str) -> None:
    path = path_of(line)
    arguments = shlex.split(line)[1 + len(path.split()) :]
    context = COMMANDS[path].make_context(path, arguments)
    if context.command.context_settings.get("ignore_unknown_options"):
        parse_config(context.args)
    else:
        assert not context.args


@pytest.mark.parametrize("line", [line for line in LINES if "_" in line and "--" in line])
def test_dashes_and_underscores_mean_the_same(line: str) -> None:
    path = path_of(line)

    def parsed(spelt: str) -> tuple[dict[str, Any], Any]:
        arguments = [spell(word, spelt) for word in shlex.split(line)[1 + len(path.split()) :]]
        context = COMMANDS[path].make_context(path, arguments)
        rest = context.command.context_settings.get("ignore_unknown_options")
        return context.params, parse_config(context.args) if rest else None

    def spell(word: str, spelt: str) -> str:
        return word[:2] + word[2:].replace("_", spelt) if word.startswith("--") else word

    assert parsed("-") == parsed("_")


def test_one_flag_has_one_meaning() -> None:
    meanings: dict[str, set[str]] = {}
    shared = ("--output", "--backend", "--device", "--json", "--quiet", "--train_dir", "--subject_pattern")
    for command in COMMANDS.values():
        for parameter in command.params:
            for flag in set(parameter.opts) & {*shared} - {"--output", "--train_dir"}:
                meanings.setdefault(flag, set()).add(str(parameter.help))
    assert {flag: len(texts) for flag, texts in meanings.items()} == dict.fromkeys(meanings, 1)
    assert {"--backend", "--device", "--json", "--quiet", "--subject_pattern"} <= set(meanings)
    spelt = {flag for command in COMMANDS.values() for one in command.params for flag in one.opts}
    assert not {"--out", "--output_dir", "--results", "--page"} & spelt, "all of them are --output"


def test_a_model_has_one_spelling(tiny_release: Path) -> None:
    assert COMMANDS["predict"].make_context("predict", ["m", "a.png", "b.png"]).params["model"] == "m"
    spaces = COMMANDS["release space"].make_context("space", ["o/a", "o/b", "--output", "x"])
    assert list(spaces.params["models"]) == ["o/a", "o/b"] and Path(spaces.params["output"]) == Path("x")
    result = run("predict", tiny_release)
    assert result.exit_code == 2 and "Missing argument" in result.stderr and "IMG" in result.stderr
    result = run("predict", "a.png", "--model", tiny_release)
    assert result.exit_code == 2 and "No such option" in result.stderr and "--model" in result.stderr


def test_the_releases_that_come_along_are_listed(tiny_release: Path, tmp_path: Path) -> None:
    listed = json.loads(run("release", "list", "--json").stdout)
    assert {tuple(row["classes"]) for row in listed} >= {("ALL", "HEM")} and all(row["megabytes"] > 1 for row in listed)
    for row in listed:
        assert find_release(row["model"])[0] == embedded_releases() / row["model"]
    assert f"{tiny_release.name} " in run("release", "list", tiny_release.parent).stdout.replace("│", " ")
    for wrong in (tmp_path / "none", tmp_path):
        assert run("release", "list", wrong).stderr == (
            f"error: {wrong}: is not a folder of releases; give the folder that contains them\n"
        )
    (row,) = json.loads(run("release", "list", tiny_release, "--json").stdout)
    assert row["model"] == str(tiny_release), "a release is listed itself"


def test_help_shows_no_value_for_a_switch_and_joins_the_lines_of_a_paragraph() -> None:
    shown = run("score", "-h").stdout
    assert "--ray" in shown and "<bool>" not in shown
    assert "onnx/model.onnx takes pixel_values and gives logits." in run("release", "export", "-h").stdout


def test_what_cannot_be_written_is_said_before_long_work_begins(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "new"
    commands = {
        "evaluate nobody/nothing --dataset_name phantoms": output,
        "audit --dataset_name phantoms": output,
        "protocol": output.parent,
    }
    for command, named in commands.items():
        said = f"error: --output {named}: cannot write there (File exists); name another folder\n"
        assert run(*command.split(), "--output", output).stderr == said


def test_a_space_of_a_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    said = run("release", "space", tmp_path, "--output", tmp_path / "space").stderr
    assert said.startswith(f"error: {tmp_path}: is a folder, and a Space loads its models from the Hub; publish it")


def test_a_release_that_is_damaged_or_half_written_leaves_the_others_listed(tiny_release: Path, tmp_path: Path) -> None:
    for name in ("a", "b", ".c.tmp"):
        shutil.copytree(tiny_release, tmp_path / name)
    (tmp_path / "a" / "config.json").write_text("{")
    result = run("release", "list", tmp_path, "--json")
    assert [row["model"] for row in json.loads(result.stdout)] == [str(tmp_path / "b")] and result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"not listed: {tmp_path / 'a' / 'config.json'}: damaged (")


def test_a_recalibrated_release_does_not_say_where_its_source_lay(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = []
    monkeypatch.setattr("leukoscope.evaluation.assess.recalibrate", lambda *_, name: named.append(name))
    monkeypatch.setattr("leukoscope.reports.card.write_card", lambda folder: folder)
    (tmp_path / "cells").mkdir()
    for label in ("ALL", "HEM"):
        Image.new("RGB", (32, 32)).save(tmp_path / "cells" / f"{label}.png")
    (tmp_path / "cells.csv").write_text("file,diagnosis\nALL.png,ALL\nHEM.png,HEM\n")
    table = ("--labels", tmp_path / "cells.csv", "--label_column_name", "diagnosis")
    flags = ("--train_dir", tmp_path / "cells", "--output", tmp_path / "new")
    assert run("release", "recalibrate", tiny_release, *flags, *table).exit_code == 0
    assert named == [""], "the folder's name is left to `recalibrate`"


def test_help_of_train_shows_examples_and_the_flags_of_train_py() -> None:
    shown = run("train", "-h")
    assert shown.exit_code == 0 and shown.stdout.count("leukoscope train --") == 2 and "--override" in shown.stdout


def test_train_reads_its_flags_and_says_a_problem_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[TrainingConfig] = []
    monkeypatch.setattr("leukoscope.api.run", started.append)
    assert run("train", "--num-train-epochs", "3", "--output_dir", "x").exit_code == 0
    (config,) = started
    assert (config.run.num_train_epochs, config.run.output_dir) == (3, "x")

    def stopped(config: TrainingConfig) -> None:
        raise LeukoscopeError("--seed -1: give 0 or more")

    monkeypatch.setattr("leukoscope.api.run", stopped)
    assert run("train", "--seed", "-1").stderr == "error: --seed -1: give 0 or more\n"


def test_a_table_is_folded_without_loss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = ["a-long-folder/another/cell_1.png", "out of distribution", "0.1234", "12 (0.1–0.2)"]
    monkeypatch.setenv("COLUMNS", "40")
    print_table(["file", "outcome", "ALL", "of these refused"], [row], texts=2)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert any("0.1234" in line for line in lines), "the widest columns are folded first"
    cells = [line.strip("│").split("│") for line in lines if line.startswith("│")]
    for place, cell in enumerate(row):
        assert "".join("".join(line[place] for line in cells).split()) == "".join(cell.split()), "nothing is cut"


def test_in_a_pipe_every_row_of_a_table_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    row = [f"{'long-name-' * 20}.png", "out of distribution", "0.1234"]
    print_table(["file", "outcome", "ALL"], [row], texts=2)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "long-name" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == row


def test_no_color_is_honoured(tmp_path: Path) -> None:
    """By a command that prints a coloured line; a test's own stream is no terminal, so colour is asked for."""
    for label, cell in product(("ALL", "HEM"), range(2)):
        save_cell(tmp_path / label / f"{cell}.png", label, cell=cell)
    words = ["audit", str(tmp_path), "--output", str(tmp_path / "out")]
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        result = CliRunner(env=environment).invoke(app, words, color=True)
        assert ("\x1b[0m" in result.stdout) == coloured


@pytest.mark.slow
def test_a_release_from_the_hub_is_written_with_its_commit(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_release, tmp_path / "snapshots" / "c0ffee")
    monkeypatch.setattr("leukoscope.models.hub_download.fetch_files", lambda *asked: tmp_path / "snapshots" / "c0ffee")

    result = run("release", "export", "someone/tiny@main", "--output", tmp_path / "graph")

    assert result.exit_code == 0, result.stderr
    assert f"{tmp_path / 'graph' / 'onnx' / 'model.onnx'}: at most" in result.stdout
    assert RESEARCH_NOTICE in result.stdout
    report = json.loads((tmp_path / "graph" / "export.json").read_text())
    assert (report["model"], report["revision"]) == ("someone/tiny", "c0ffee")
    assert report["labels"] == ["ALL", "HEM"] and report["notice"] == RESEARCH_NOTICE


def test_a_folder_that_is_no_export_is_not_replaced(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("release", "export", tiny_release, "--output", ".")
    assert result.exit_code == 1
    assert result.stderr == "error: --output .: exists and is not an earlier export; name a new folder\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_release_is_named(tmp_path: Path) -> None:
    result = run("release", "export", tmp_path, "--output", tmp_path / "graph")
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {tmp_path}: has no config.json")


def test_the_demo_runs_the_app_and_says_its_problems_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leukoscope", "demo", "--releases", str(tmp_path)]
    environment = os.environ | {"GRADIO_SERVER_PORT": "eighty"}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert (
        ended.stderr.strip() == "error: GRADIO_SERVER_PORT=eighty: is not a port number; give a number from 1 to 65535"
    )
