"""The ONNX layout: its two files give the release's probabilities and maps, in Python and in Node."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Predictor
from leukoscope.inference import graph
from leukoscope.inference.graph import ONNX_GRAPH, linear_head, write_onnx
from leukoscope.inference.prediction import softmax
from leukoscope.inference.runtime import TorchBackend
from leukoscope.models.recipes import timm_recipe
from leukoscope.models.release import CARD_FILE, CONFIG_FILE, PROCESSOR_FILE, read_release
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


def test_the_graph_gives_the_releases_probabilities_and_maps(release: Path, exported: Path, cell: Image.Image) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / ONNX_GRAPH)
    logits, maps = session.run(["logits", "grad_cam"], {"pixel_values": pixel_values(release, cell)})
    predictor = Predictor.from_pretrained(release, backend="torch")
    theirs = predictor(cell)
    assert softmax(logits)[0] == pytest.approx(list(theirs.probabilities.values()), abs=1e-4)
    signed = predictor.backend(predictor.release.preprocessing.frame(cell)[None], explain=True).maps
    assert signed is not None and maps == pytest.approx(signed, abs=1e-4 * max(signed.max(), 1))


def test_the_settings_name_classes_and_preprocessing(exported: Path) -> None:
    config, processor = (json.loads((exported / name).read_text()) for name in (CONFIG_FILE, PROCESSOR_FILE))
    assert config["id2label"] == {"0": "ALL", "1": "HEM"}
    assert (processor["size"], processor["crop_size"]) == ({"shortest_edge": 82}, {"height": 64, "width": 64})
    assert processor["resample"] == Image.Resampling.BICUBIC
    _, front, page = (exported / CARD_FILE).read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers.js", "pipeline_tag": "image-classification"}
    assert RESEARCH_NOTICE in page


def test_a_network_without_a_map_of_channels_has_logits_alone(vit_release: Path, tmp_path: Path) -> None:
    import onnxruntime

    report = write_onnx(read_release(vit_release), tmp_path / "web")
    assert (report["outputs"], report["heat_map_difference"]) == (["logits"], None)
    session = onnxruntime.InferenceSession(tmp_path / "web" / ONNX_GRAPH)
    assert [output.name for output in session.get_outputs()] == ["logits"]


def test_only_what_differs_from_torch_is_named(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = linear_head

    def larger(reference: TorchBackend, pixels: np.ndarray) -> np.ndarray:
        head = exact(reference, pixels)
        assert head is not None
        return np.asarray(1.5 * head)

    monkeypatch.setattr(graph, "linear_head", larger)

    with pytest.raises(LeukoscopeError) as error:
        write_onnx(read_release(release), tmp_path / "web")

    assert str(error.value) == (
        f"{release}: its onnx graph differs from torch by 5.0e-01 of a Grad-CAM map's peak, more than "
        "0.0001; use backend='torch'"
    )


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
