"""The wheel: built from what git holds, installed where no checkout is, it answers and serves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from drawn import save_cell
from environments import borrowing
from leukoscope import __version__
from leukoscope.models.release import DEFAULT_RELEASE
from served import START_SECONDS, served

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RELEASES = [DEFAULT_RELEASE]
CARDS = ("model_card/template.md", "model_card/space.md")
SHIPPED = ("app.py", "train.py", "requirements.txt", "LICENSE", *CARDS)
# What the extras bring, and nothing else that is needed.
EXTRAS = ("gradio", "gradio_client", "onnx", "onnxruntime", "openvino", "starlette", "trackio")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel is built from, aside: building leaves files behind."""
    copied = tmp_path_factory.mktemp("sources")
    left_out = shutil.ignore_patterns("__pycache__", "*.pyi")
    for folder in ("src/leukoscope", "model_card"):
        shutil.copytree(ROOT / folder, copied / folder, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "app.py", "train.py", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, copied / name)
    return copied


@pytest.fixture(scope="module")
def wheel(sources: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    built = subprocess.run(command, cwd=sources, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    (found,) = (sources / "dist").glob("leukoscope-*.whl")
    return found


def _install(wheel: Path, environment: Path, without: Sequence[str]) -> Path:
    """The `bin` of a new environment that holds the wheel, and borrows all else from this one but some modules."""
    bin = borrowing(environment, lambda name: name.partition("-")[0] not in ("leukoscope", *without))
    pip = [sys.executable, "-m", "pip", "--python", str(bin / "python"), "install", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return bin


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with all that this one has."""
    return _install(wheel, tmp_path_factory.mktemp("environment"), ())


@pytest.fixture(scope="module")
def without_extras(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that lacks `EXTRAS`."""
    return _install(wheel, tmp_path_factory.mktemp("without_extras"), EXTRAS)


def _elsewhere(folder: Path, **own: str) -> dict[str, str]:
    """The environment of somebody who has never seen the checkout."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return inherited | {"HF_HUB_OFFLINE": "1", "LEUKOSCOPE_CACHE": str(folder / "cache"), **own}


def _run(*command: str | Path, cwd: Path, **own: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    environment = _elsewhere(cwd, **own)
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=START_SECONDS)


def test_the_wheel_takes_the_default_release_along() -> None:
    shared = PYPROJECT["tool"]["setuptools"]["data-files"]
    named = {folder.removeprefix("share/leukoscope/model_card/") for folder in shared if "model_card/" in folder}
    wanted = {f"{name}{inner}" for name in RELEASES for inner in ("", "/figures", "/predictions")}
    assert named == wanted, "a release stands under [tool.setuptools.data-files] of pyproject.toml, or does not"


@pytest.mark.slow
def test_wheel_holds_every_package_and_the_command(sources: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        packed = {name for name in names if name.startswith("leukoscope/")}
        (information,) = {top for name in names if (top := name.partition("/")[0]).endswith(".dist-info")}
        metadata = archive.read(f"{information}/METADATA").decode()
        commands = archive.read(f"{information}/entry_points.txt").decode()
    source = sources / "src"
    assert packed == {
        path.relative_to(source).as_posix() for path in (source / "leukoscope").rglob("*.*") if path.is_file()
    }
    shared = {name.partition(".data/data/share/leukoscope/")[2] for name in names}
    assert set(SHIPPED) <= shared
    released = {path for name in RELEASES for path in (sources / "model_card" / name).rglob("*") if path.is_file()}
    assert {path.relative_to(sources).as_posix() for path in released} <= shared
    assert wheel.stat().st_size < 8e6, "the other releases are cloned, or come from the Hub"
    assert not [name for name in names if "research" in name or "benchmarks" in name]
    assert f"leukoscope = {PYPROJECT['project']['scripts']['leukoscope']}" in commands
    needed = {
        re.split(r"[^\w.-]", line.removeprefix("Requires-Dist: "))[0]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert needed == {re.split(r"[^\w.-]", line)[0] for line in PYPROJECT["project"]["dependencies"]}


@pytest.mark.slow
def test_outside_the_repository_a_cell_is_explained(installed: Path, tmp_path: Path) -> None:
    save_cell(tmp_path / "cell.png", size=450)
    where = "import leukoscope, sys; print(leukoscope.__version__, leukoscope.__file__)"
    version, file = _run(installed / "python", "-c", where, cwd=tmp_path).stdout.split(maxsplit=1)
    assert version == __version__ and file.startswith(str(installed.parent))
    listed = _run(installed / "leukoscope", "release", "list", "--json", cwd=tmp_path)
    assert [row["model"] for row in json.loads(listed.stdout)] == list(RELEASES), listed.stderr
    asked = ("predict", RELEASES[0], "cell.png", "--explain", "overlays", "--json")
    answered = _run(installed / "leukoscope", *asked, cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
    (row,) = json.loads(answered.stdout)
    assert list(row["probabilities"]) == ["ALL", "HEM"] and row["ood_score"] > 0
    assert row["outcome"] in ("ALL", "HEM", "abstain")
    assert list((tmp_path / "overlays").glob("*.png"))


@pytest.mark.slow
def test_without_the_extras_it_trains_and_predicts_and_names_what_is_missing(
    without_extras: Path, tmp_path: Path
) -> None:
    save_cell(tmp_path / "cell.png", size=450)
    command = without_extras / "leukoscope"
    tiny = ("--num_train_epochs", "1", "--image_size", "32", "--max_train_samples", "32", "--mixed_precision", "no")
    trained = _run(command, "train", "--output_dir", "run", *tiny, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    predicted = _run(command, "predict", "run/release", "cell.png", "--explain", "maps", "--json", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert list(json.loads(predicted.stdout)[0]["probabilities"]) == ["ALL", "HEM"]
    for words, missing in (
        (("demo",), "error: the demo needs gradio, which is missing; pip install 'leukoscope[demo]'\n"),
        (
            ("predict", "run/release", "cell.png", "--backend", "openvino"),
            "error: openvino: is not installed; pip install openvino\n",
        ),
    ):
        refused = _run(command, *words, cwd=tmp_path)
        assert refused.returncode == 1 and missing in refused.stderr, refused.stderr


@pytest.mark.slow
def test_outside_the_repository_the_demo_starts(installed: Path, tmp_path: Path) -> None:
    own = _elsewhere(tmp_path, GRADIO_ANALYTICS_ENABLED="False")
    with served(tmp_path, installed / "leukoscope", "demo", environment=own, cwd=tmp_path) as (address, _):
        page = urllib.request.urlopen(address, timeout=60).read().decode()
    assert all(name in page for name in RELEASES)
