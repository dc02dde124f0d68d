"""Fixtures shared by all packages: real cells where they are at hand, and a small release made without any data."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hub_server import WRITE_TOKEN, Hub, serving
from untrained import untrained
from warm import warm_python

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells

# Offline by construction: a test that asks the Hub fails at once instead of waiting for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Making a graph takes seconds; the tests of the other backends ask for theirs by name.
os.environ.setdefault("LEUKOSCOPE_BACKEND", "torch")
# Workers side by side share the cores; with more threads than cores, PyTorch waits for threads that do not run.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    # Two that compile the same network would read each other's half-written libraries.
    own = f"torchinductor-{os.environ['PYTEST_XDIST_WORKER']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / own))


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests of a machine with a GPU on its CPU, but for those marked `gpu`, which run by themselves."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """Leave out of later garbage collections what collecting the tests imported, which stays: they are much shorter."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """What is frozen at its end, an extension module would report as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data sets, from LEUKOSCOPE_DATA."""
    folder = os.environ.get("LEUKOSCOPE_DATA")
    if not folder:
        pytest.skip("needs real cells: set LEUKOSCOPE_DATA to a folder holding cnmc2019/ and ball4/")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"LEUKOSCOPE_DATA={folder}: no such folder")
    return path


@pytest.fixture(scope="session")
def few_real_cells(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve cells of each subject of C-NMC, in its folders: all 7,779 take minutes to decode."""
    root, folder, taken = real_data / "cnmc2019", tmp_path_factory.mktemp("few"), Counter[str]()
    for path in sorted((root / "C-NMC_Leukemia").rglob("UID_*")):
        subject = path.name.split("_")[1]
        taken[subject] += 1
        if taken[subject] <= 12:
            link = folder / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder / "C-NMC_Leukemia"


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A densenet121 ALL/HEM release at 96 px with random weights (seed 0), without checksums: tests change copies.

    Of each of its four blocks it has two layers: computed, exported and copied many times as fast as with all 58.
    """
    return untrained(tmp_path_factory.mktemp("release") / "tiny", {})


@pytest.fixture(scope="session")
def watched_release(tiny_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny release with an OOD detector fitted on 60 phantoms of six subjects."""
    import numpy as np
    from PIL import Image

    from leukoscope.inference.ood import fit_detector, picture_statistics
    from leukoscope.models.release import OOD_FILE, read_release
    from leukoscope.synthetic import phantom_cells

    folder = tmp_path_factory.mktemp("watched") / "tiny"
    shutil.copytree(tiny_release, folder)
    frame = read_release(folder).preprocessing.frame
    phantoms = list(phantom_cells(subjects_per_class=3, cells_per_subject=10))
    statistics = np.stack([picture_statistics(frame(Image.fromarray(phantom.image))) for phantom in phantoms])
    fit_detector(statistics, [phantom.subject for phantom in phantoms])[0].save(folder / OOD_FILE)
    return folder


@pytest.fixture(scope="session")
def vit_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer of timm at another size than its own, with random weights and without checksums."""
    from leukoscope.models.recipes import timm_recipe

    recipe = replace(timm_recipe("test_vit", "--model_name_or_path"), image_size=64)
    return untrained(tmp_path_factory.mktemp("release") / "vit", {"recipe": {"name": recipe.name}}, recipe)


@pytest.fixture(scope="session")
def phantom_data() -> LoadedCells:
    """All phantoms at 64 px, which take seconds to draw; for reading only."""
    from leukoscope.data.loading import load_cells

    return load_cells("phantoms", image_size=64)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of all tests that ask for it, of every worker: each graph is made and each phantom decoded once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared-cache"


@pytest.fixture
def kept_graphs(shared_cache: Path, cache_in_tmp: pytest.MonkeyPatch) -> Path:
    cache_in_tmp.setenv("LEUKOSCOPE_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `python` with this source whose processes need not import torch."""
    own = {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    with warm_python(tmp_path_factory.mktemp("warm"), os.environ | own) as python:
        yield str(python)


NPM_PACKAGES = ("@huggingface/transformers@4.3.1", "onnxruntime-web@1.30.0")


@pytest.fixture(scope="session")
def npm_packages() -> Path:
    """A folder in which Node finds transformers.js and onnxruntime-web; installed by the first run of the tests."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js with npm: apt-get install npm")
    folder = (
        Path(tempfile.gettempdir()) / f"leukoscope-npm-{'-'.join(name.rpartition('@')[2] for name in NPM_PACKAGES)}"
    )
    if not folder.is_dir():
        aside = Path(tempfile.mkdtemp(prefix="leukoscope-npm-"))
        flags = ("--prefix", str(aside), "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0")
        done = subprocess.run(["npm", "install", *flags, *NPM_PACKAGES], capture_output=True, text=True, timeout=600)
        if done.returncode:
            shutil.rmtree(aside)
            pytest.skip(f"npm cannot install {' and '.join(NPM_PACKAGES)}: {done.stderr.strip().splitlines()[-1]}")
        with suppress(OSError):  # another worker was faster
            aside.rename(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine's loopback, a token that may write there, and an empty cache."""
    import huggingface_hub.constants as constants

    with serving(tmp_path / "hub") as running:
        for name, value in {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets nobody wait; the seconds that were asked for."""
    asked: list[float] = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


@pytest.fixture(scope="session", autouse=True)
def phantoms_are_drawn_once() -> Iterator[None]:
    """Those of a whole data set take seconds, which no test is about."""
    from leukoscope.data import loading
    from leukoscope.synthetic import phantom_cells

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "phantom_cells", lru_cache(maxsize=3)(lambda size: tuple(phantom_cells(size=size))))
        yield


@pytest.fixture(scope="session", autouse=True)
def notes_are_printed() -> None:
    """As in a command, so that tests read them."""
    from leukoscope.progress import print_notes

    print_notes()


@pytest.fixture(autouse=True)
def cache_in_tmp(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Decoded cells of a test never reach the user's cache, not even after its `monkeypatch.undo()`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / "leukoscope-cache"))
        yield patch


@pytest.fixture
def code_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The copies that transformers keeps of a release's code stay in the test."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    # Of two folders that hold a package of this name, the first on the path would be taken for it.
    elsewhere = [path for path in sys.path if not (Path(path) / "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", elsewhere)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
