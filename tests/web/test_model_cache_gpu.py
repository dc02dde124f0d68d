"""A Space's GPU is lent to the model alone, for predictions that can travel between two processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from leukoscope import LeukoscopeError, Predictor
from leukoscope.inference.runtime import Runtime, TorchBackend, gpu_or_cpu
from leukoscope.synthetic_smears import draw_smear
from leukoscope.web import app, model_cache
from leukoscope.web.answer import ask, covered, example
from leukoscope.web.model_cache import ModelCache


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Stands for the package that a ZeroGPU Space has: what goes in and out of a call is pickled, as there.

    The other process has its card, for which the processor stands; this one must not ask for it.
    """
    seconds: list[float] = []

    def gpu(duration: Callable[..., float]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def decorate(call: Callable[..., Any]) -> Callable[..., Any]:
            def decorated(*args: Any, **options: Any) -> Any:
                seconds.append(duration(*args, **options))
                args, options = pickle.loads(pickle.dumps((args, options)))
                return pickle.loads(pickle.dumps(call(*args, **options)))

            return decorated

        return decorate

    package = ModuleType("spaces")
    package.GPU = gpu  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", package)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    devices: list[str] = []

    def runtime(backend: str = "", device: str = "auto") -> Runtime:
        devices.append(device)
        return Runtime(backend, "cpu")

    monkeypatch.setattr(model_cache, "Runtime", runtime)
    monkeypatch.setattr(model_cache, "_on_card", {})
    yield seconds
    assert set(devices[:1]) <= {"cpu"} and set(devices[1:]) <= {"cpu", "cuda"}


def test_a_cell_is_explained_while_the_gpu_is_lent(lent: list[float], tiny_release: Path) -> None:
    models = ModelCache({"tiny": tiny_release})
    app._warm_up(models)
    assert lent == [] and list(models._loaded) == ["tiny"], "the warm-up borrows nothing"
    row = ask(example(1), models, "tiny")
    assert lent == [pytest.approx(15.1)]
    (here,) = models.predictor("tiny")._predictor([row.picture.image])  # type: ignore[attr-defined]
    assert row.known.probabilities == pytest.approx(here.probabilities)
    covered(row, models)
    assert len(lent) == 2 and len(model_cache._on_card) == 1, "the model stays on the card"


def test_a_smear_s_cells_are_found_before_the_gpu_is_lent_for_as_long_as_they_need(
    lent: list[float], tiny_release: Path
) -> None:
    models = ModelCache({"tiny": tiny_release})
    smear = Image.fromarray(draw_smear(("ALL", "HEM") * 4, size=(400, 520), um_per_pixel=0.2).image)
    reading = models.read_smear(models.predictor("tiny"), smear, "a.png", um_per_pixel=0.2)
    whole = sum(one.prediction is not None for one in reading.cells)
    assert whole >= 7 and lent == [pytest.approx(15 + whole / 10)]
    with pytest.raises(LeukoscopeError):
        models.read_smear(models.predictor("tiny"), smear, "b.png", um_per_pixel=90.0)
    assert len(lent) == 1


def test_an_error_on_the_card_keeps_its_words(
    lent: list[float], tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModelCache({"tiny": tiny_release})
    predictor = models.predictor("tiny")

    def fail(*_: Any, **__: Any) -> None:
        raise LeukoscopeError("the card is out of memory; try again")

    monkeypatch.setattr("leukoscope.inference.predictor.Predictor.__call__", fail)
    with pytest.raises(LeukoscopeError, match="^the card is out of memory; try again$"):
        models.predict(predictor, [example(1).image], explain=True)


# In a process of its own: the package patches torch as it is imported.
IN_A_SPACE = """
from pathlib import Path
from threading import Thread
from leukoscope.web.answer import example
from leukoscope.web.model_cache import ModelCache
def visit():
    models = ModelCache({"tiny": Path("RELEASE")})
    predictor = models.predictor("tiny")
    try:
        models.predict(predictor, [example(1).image])
    except Exception as error:
        print(predictor.release.name, type(error).__name__)
thread = Thread(target=visit)
thread.start(); thread.join()
"""


@pytest.mark.slow
def test_on_a_zero_gpu_space_a_model_is_loaded_in_any_thread_and_the_card_is_asked_for_after(
    tiny_release: Path,
) -> None:
    """The package's emulated card exists in the main thread alone, where no handler of Gradio runs."""
    pytest.importorskip("spaces")
    nobody = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", IN_A_SPACE.replace("RELEASE", str(tiny_release))]
    ran = subprocess.run(command, env=os.environ | nobody, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    # Loaded; the one error is that nobody lends a card.
    name, error = ran.stdout.split()[-2:]
    assert name == "tiny" and error != "LeukoscopeError", ran.stdout


def test_elsewhere_nothing_is_borrowed_and_models_lie_where_torch_computes(
    tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    predictor = ModelCache({"tiny": tiny_release}).predictor("tiny")
    assert isinstance(predictor, Predictor) and isinstance(predictor.backend, TorchBackend)
    devices = {parameter.device.type for parameter in predictor.backend.network.parameters()}
    assert devices == {gpu_or_cpu().partition(":")[0]}


def test_a_model_whose_graph_is_kept_is_loaded_without_torch(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("LEUKOSCOPE_BACKEND", "openvino")
    ModelCache({"tiny": tiny_release}).predictor("tiny")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert ModelCache({"tiny": tiny_release}).predictor("tiny").backend.name == "openvino"
