"""The ONNX layout: its files give the release's probabilities, in Python and in Node."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leukoscope import RESEARCH_NOTICE, Predictor
from leukoscope.inference.graph import GRAPH_REPORT, ONNX_GRAPH, write_onnx
from leukoscope.inference.prediction import softmax
from leukoscope.models.recipes import timm_recipe
from leukoscope.models.release import CONFIG_FILE, PROCESSOR_FILE, read_release
from leukoscope.synthetic import draw_cell
from untrained import untrained

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytestmark = pytest.mark.slow
# What a page with transformers.js does, on pixels that Python framed.
IN_NODE = """
import {env, AutoModelForImageClassification, AutoProcessor, pipeline, Tensor} from '@huggingface/transformers'
import fs from 'node:fs'
const [folder, name, pixels, side, picture] = process.argv.slice(2)
env.allowRemoteModels = false
env.localModelPath = folder
const {buffer} = new Uint8Array(fs.readFileSync(pixels))
const given = new Tensor('float32', new Float32Array(buffer), [1, 3, +side, +side])
const answers = {}
const model = await AutoModelForImageClassification.from_pretrained(name)
answers.logits = Array.from((await model({pixel_values: given})).logits.data)
const processed = await (await AutoProcessor.from_pretrained(name))(await (await import('@huggingface/transformers'))
  .RawImage.read(picture))
answers.dims = processed.pixel_values.dims
answers.labels = (await (await pipeline('image-classification', name))(picture, {top_k: null})).map((row) => row.label)
console.log(JSON.stringify(answers))
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(timm_recipe("resnet10t", ""), image_size=64)
    return untrained(tmp_path_factory.mktemp("of-graph") / "small", {}, recipe)


@pytest.fixture(scope="module")
def exported(release: Path) -> Path:
    write_onnx(read_release(release), release.parent / "web")
    return release.parent / "web"


@pytest.fixture
def cell() -> Image.Image:
    """One that no export compared itself on."""
    return Image.fromarray(draw_cell("HEM", subject=7, cell=2).image)


def pixel_values(release: Path, cell: Image.Image) -> np.ndarray:
    preprocessing = read_release(release).preprocessing
    framed = torch.from_numpy(preprocessing.frame(cell).copy())
    return preprocessing.normalise(framed.permute(2, 0, 1)[None]).contiguous().numpy()


def test_the_graph_gives_the_releases_probabilities(release: Path, exported: Path, cell: Image.Image) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / ONNX_GRAPH)
    (logits,) = session.run(None, {"pixel_values": pixel_values(release, cell)})
    theirs = Predictor.from_pretrained(release, backend="torch")(cell)
    assert softmax(logits)[0] == pytest.approx(list(theirs.probabilities.values()), abs=1e-4)


def test_the_settings_name_classes_and_preprocessing(exported: Path) -> None:
    config, processor = (json.loads((exported / name).read_text()) for name in (CONFIG_FILE, PROCESSOR_FILE))
    assert config["id2label"] == {"0": "ALL", "1": "HEM"}
    assert (processor["size"], processor["crop_size"]) == ({"shortest_edge": 82}, {"height": 64, "width": 64})
    assert processor["resample"] == Image.Resampling.BICUBIC
    assert json.loads((exported / GRAPH_REPORT).read_text())["notice"] == RESEARCH_NOTICE


def test_transformers_js_loads_it_and_answers_alike(
    release: Path, exported: Path, cell: Image.Image, tmp_path: Path, npm_packages: Path
) -> None:
    theirs = Predictor.from_pretrained(release, backend="torch")(cell)
    pixels = pixel_values(release, cell)
    pixels.tofile(tmp_path / "pixels")
    cell.save(tmp_path / "cell.png")
    (npm_packages / "ask.mjs").write_text(IN_NODE)
    words = [str(exported.parent), exported.name, str(tmp_path / "pixels"), "64", str(tmp_path / "cell.png")]
    done = subprocess.run(["node", "ask.mjs", *words], cwd=npm_packages, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    shares = softmax(np.array([answers["logits"]]))[0]
    assert shares == pytest.approx(list(theirs.probabilities.values()), abs=1e-4)
    assert answers["dims"] == list(pixels.shape)
    assert sorted(answers["labels"]) == ["ALL", "HEM"]
