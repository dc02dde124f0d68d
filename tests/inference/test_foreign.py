"""Anyone's classifier must be asked about the same pixels as ours, without running its code or guessing its classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leukoscope import LeukoscopeError, Predictor
from leukoscope.data.images import open_image
from leukoscope.data.loading import load_cells
from leukoscope.evaluation.evaluate import ModelPredictions, predictions_of_model, select_cells
from leukoscope.inference.foreign import match_labels, open_classifier
from leukoscope.synthetic import draw_cell


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with random weights (seed 0) that calls the classes by other names, as transformers saves it."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("foreign") / "vit"
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label={0: "normal", 1: "Blast"},
        label2id={"normal": 0, "Blast": 1},
        # Untrained heads give one half for everything; a wide one tells cells apart.
        initializer_range=2.0,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with five phantoms, one cut short."""
    root = tmp_path_factory.mktemp("cells")
    for i, label in enumerate(["ALL", "HEM", "ALL", "HEM", "ALL"]):
        (root / label).mkdir(exist_ok=True)
        image = draw_cell(label, subject=i, cell=0, size=(64, 96)[i % 2], background="black").image
        Image.fromarray(image).save(root / label / f"{i}.png")
    cut = root / "HEM" / "3.png"
    cut.write_bytes(cut.read_bytes()[:700])
    return root


NAMES = {"blast": "all", "normal": "HEM"}


def predicted(model: Path, cells: Path, **options: Any) -> ModelPredictions:
    return predictions_of_model(open_classifier(model), select_cells(load_cells("imagefolder", cells)), **options)


def by_cell(found: ModelPredictions) -> dict[str, np.ndarray]:
    return dict(zip(found.predictions.cell_ids, found.predictions.probabilities, strict=True))


def test_a_foreign_model_predicts_what_its_own_pipeline_predicts(foreign: Path, cells: Path) -> None:
    from transformers import pipeline

    classifier = open_classifier(foreign)
    assert (classifier.labels, classifier.metrics, classifier.revision) == (("normal", "Blast"), {}, "")
    predictions = by_cell(predicted(foreign, cells, label_map=NAMES, batch_size=2))

    plain = pipeline("image-classification", model=str(foreign))
    assert list(predictions) == ["ALL/0", "ALL/2", "ALL/4", "HEM/1"]
    for cell, probabilities in predictions.items():
        expected = {row["label"]: row["score"] for row in plain(str(cells / f"{cell}.png"))}
        assert probabilities == pytest.approx([expected["Blast"], expected["normal"]], abs=1e-5)
    # Ten times what the comparison lets pass; how far apart they are depends on the version of transformers.
    assert np.ptp([probabilities[0] for probabilities in predictions.values()]) > 1e-4


def test_a_release_gives_the_probabilities_and_outcomes_of_predict(tiny_release: Path, cells: Path) -> None:
    assert open_classifier(tiny_release).metrics["labels"] == ["ALL", "HEM"]
    found = predicted(tiny_release, cells, batch_size=2)
    readable = [cells / f"{cell}.png" for cell in found.predictions.cell_ids]
    expected = Predictor.from_pretrained(tiny_release)(readable)
    assert len(readable) == 4 and found.outcomes == tuple(prediction.outcome for prediction in expected)
    for probabilities, prediction in zip(found.predictions.probabilities, expected, strict=True):
        assert probabilities == pytest.approx([prediction.probabilities[label] for label in ("ALL", "HEM")], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_damaged_cell_is_named_and_the_others_are_predicted(foreign: Path, cells: Path, batch_size: int) -> None:
    found = predicted(foreign, cells, label_map=NAMES, batch_size=batch_size)
    (damaged,) = found.left_out
    assert damaged.startswith(f"{cells / 'HEM' / '3.png'}: the image is damaged or cut short")
    assert len(by_cell(found)) == 4 and "HEM/3" not in by_cell(found)


def test_classes_meet_by_name_whatever_the_case() -> None:
    assert match_labels("m", ["hem", "All"], ["ALL", "HEM"], {}) == (1, 0)


def test_several_classes_of_a_model_may_be_one_of_ours() -> None:
    names = {"Early": "ALL", "Pre": "ALL", "Pro": "ALL", "benign": "HEM"}
    assert match_labels("m", ["Benign", "Early", "Pre", "Pro"], ["ALL", "HEM"], names) == (1, 0, 0, 0)


def refusal_of(theirs: list[str], ours: list[str], names: dict[str, str] | None = None) -> str:
    with pytest.raises(LeukoscopeError) as error:
        match_labels("some/model", theirs, ours, names or {})
    message = str(error.value)
    start = f"some/model: its classes are {', '.join(theirs)}, those of the data set {', '.join(ours)}; "
    assert message.startswith(start)
    return message.removeprefix(start)


ASKED = "say of each of its classes which one it is, with --label_map THEIRS=OURS once for each"


@pytest.mark.parametrize("names", [{}, {"LABEL_0": "ALL"}, {"LABEL_0": "ALL", "LABEL_1": "all"}, {"LABEL_0": "none"}])
def test_classes_without_a_counterpart_are_named_on_both_sides(names: dict[str, str]) -> None:
    assert refusal_of(["LABEL_0", "LABEL_1"], ["ALL", "HEM"], names) == ASKED


def test_a_class_that_the_model_lacks_cannot_be_named() -> None:
    assert refusal_of(["ALL", "HEM"], ["ALL", "HEM", "AML"]).startswith("it lacks some of these: leave their cells out")


def test_unmatched_classes_are_refused_before_a_cell_is_opened(
    foreign: Path, cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leukoscope.evaluation.evaluate.open_encoded", None)
    with pytest.raises(LeukoscopeError, match="its classes are normal, Blast, those of the data set ALL, HEM"):
        predicted(foreign, cells)


def test_pickled_weights_are_never_loaded(foreign: Path, tmp_path: Path) -> None:
    shutil.copytree(foreign, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(LeukoscopeError, match="pickled: holds no .safetensors file; pickled weights can run code"):
        open_classifier(tmp_path / "pickled")


@pytest.mark.usefixtures("code_cache")
def test_code_that_comes_with_a_model_is_never_run(foreign: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(foreign, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(LeukoscopeError, match="it wants to run Python code of its own, which is never run"):
        open_classifier(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("named", [True, False], ids=["with class names", "without"])
def test_what_timm_itself_exports_opens(tmp_path: Path, cells: Path, named: bool) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=2).eval()
    config = {"input_size": (3, 64, 64)} | ({"label_names": ["ALL", "HEM"]} if named else {})
    # As push_to_hf_hub does; it repeats the number of classes in model_args.
    timm.models.save_for_hf(
        network, str(tmp_path / "theirs"), model_config=config, model_args={"num_classes": 2}, safe_serialization=True
    )
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_args"]["num_classes"] == 2

    theirs = open_classifier(tmp_path / "theirs")

    assert theirs.labels == (("ALL", "HEM") if named else ("LABEL_0", "LABEL_1"))
    (prediction,), _ = theirs.predict([open_image(cells / "ALL" / "0.png")])
    assert prediction.sum() == pytest.approx(1, abs=1e-5)


def test_a_model_for_something_else_is_refused_in_one_line(tmp_path: Path, foreign: Path) -> None:
    shutil.copytree(foreign, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text()) | {
        "model_type": "bert",
        "architectures": ["Bert"],
    }
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LeukoscopeError, match="transformers cannot open it as an image classifier") as error:
        open_classifier(tmp_path / "other")
    assert "\n" not in str(error.value)


def test_a_model_without_a_trained_head_is_refused(foreign: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(foreign, tmp_path / "backbone")
    weights = load_file(foreign / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(kept, tmp_path / "backbone" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LeukoscopeError) as error:
        open_classifier(tmp_path / "backbone")
    assert str(error.value) == (
        f"{tmp_path / 'backbone'}: its weights lack classifier.bias (2 tensor(s) in all), which would be random; give "
        "a model that was trained to classify"
    )


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match="has no config.json; give the folder of a release"):
        open_classifier(tmp_path)


def test_without_a_network_a_hub_id_fails_at_once() -> None:
    with pytest.raises(LeukoscopeError, match="nobody/nothing: the Hub cannot be reached and no whole copy is cached"):
        open_classifier("nobody/nothing")


def test_a_batch_of_nothing_is_refused(foreign: Path, cells: Path) -> None:
    with pytest.raises(LeukoscopeError, match="--batch_size 0: give 1 or more"):
        predicted(foreign, cells, label_map=NAMES, batch_size=0)
