"""The folder for Inference Endpoints: its handler answers by the package inside it, with what it lists and no more."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Predictor
from leukoscope.cli import app
from leukoscope.hub.handler import EndpointHandler
from leukoscope.hub.space import write_endpoint
from leukoscope.synthetic import draw_cell

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
# What the tests' environment has and the endpoint's list has not; it is not found, as there.
NOT_LISTED = ("accelerate", "datasets", "evaluate", "gradio", "jinja2", "psutil", "pyarrow", "sklearn")
ASK = f"""
import json, sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def find_spec(name, *more):
    return None if name.partition(".")[0] in {NOT_LISTED!r} else found(name, *more)
PathFinder.find_spec = staticmethod(find_spec)
from handler import EndpointHandler
from PIL import Image
answer = EndpointHandler(".")({{"inputs": Image.open(sys.argv[1])}})
import leukoscope
print(json.dumps([answer, leukoscope.__file__]))
"""


@pytest.fixture(scope="module")
def handler() -> EndpointHandler:
    return EndpointHandler(str(RELEASE))


@pytest.fixture
def cell() -> Image.Image:
    return Image.fromarray(draw_cell("ALL", subject=5, cell=1).image)


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_answer_is_the_predictors_decision_and_map(handler: EndpointHandler, cell: Image.Image) -> None:
    theirs = Predictor.from_pretrained(RELEASE)(cell, explain=True)
    answer = json.loads(json.dumps(handler({"inputs": cell})))
    assert (answer["outcome"], answer["notice"]) == (theirs.outcome, RESEARCH_NOTICE)
    assert answer["probabilities"] == pytest.approx(theirs.probabilities)
    assert answer["grad_cam_class"] == theirs.most_probable
    overlay = Image.open(BytesIO(base64.b64decode(answer["grad_cam"])))
    assert np.array_equal(np.asarray(overlay), np.asarray(theirs.overlay()))


def test_a_picture_may_come_as_bytes_or_base64(handler: EndpointHandler, cell: Image.Image) -> None:
    expected = handler({"inputs": cell})["probabilities"]
    encoded = base64.b64encode(png(cell)).decode()
    wrapped = base64.encodebytes(png(cell)).decode()
    for inputs in (png(cell), encoded, wrapped, f"data:image/png;base64,{encoded}"):
        assert handler({"inputs": inputs})["probabilities"] == expected


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "inputs: is missing; send the picture as image/png, or as base64 under inputs"),
        ({"inputs": "no picture"}, "inputs: is no image file in base64; send the picture as image/png"),
        ({"inputs": "ü"}, "inputs: is no image file in base64; send the picture as image/png"),
        ({"inputs": ["/etc/hostname"]}, "inputs: is no picture; send it as image/png, or as base64 under inputs"),
        ({"inputs": 5}, "inputs: is no picture; send it as image/png, or as base64 under inputs"),
        ({"inputs": b"no picture"}, "inputs: is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"),
    ],
)
def test_what_is_no_picture_is_told(handler: EndpointHandler, data: dict[str, Any], problem: str) -> None:
    with pytest.raises(LeukoscopeError, match=f"^{problem}$"):
        handler(data)


@pytest.mark.parametrize("there", ["thesis.txt", "handler.py"])
def test_a_folder_that_is_no_endpoint_is_left_alone(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("years of work")
    words = ["release", "export", str(RELEASE), "--format", "endpoint", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert done.stderr == f"error: --output {tmp_path}: exists and is no earlier export; name a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == [there]


@pytest.mark.slow
def test_the_folder_answers_by_itself(tmp_path: Path, cell: Image.Image) -> None:
    cell.save(tmp_path / "cell.png")
    for _ in range(2):  # an earlier one is replaced
        folder = write_endpoint(RELEASE, tmp_path / "endpoint")
    assert (folder / "model.safetensors").read_bytes() == (RELEASE / "model.safetensors").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path / "cell.png")], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answer, package = json.loads(done.stdout.splitlines()[-1])
    assert Path(package).resolve() == (folder / "src/leukoscope/__init__.py").resolve()
    theirs = Predictor.from_pretrained(RELEASE)(tmp_path / "cell.png", explain=True)
    assert answer["outcome"] == theirs.outcome
    assert answer["probabilities"] == pytest.approx(theirs.probabilities, abs=1e-4)
    assert answer["grad_cam"]
