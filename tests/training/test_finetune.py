"""Fine-tuning starts from a release's weights, reports what became of its head, and tests on nothing it was shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import Split, make_split
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.build import NetworkStart, build_network, model_args, rewrite_for_timm
from leukoscope.models.metrics import Metrics
from leukoscope.models.recipes import Recipe, get_recipe
from leukoscope.models.weights import (
    classifier_parameters,
    load_release,
    rescale_classifier,
    save_release,
    shift_class_frequencies,
)
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.finetune import matching_outputs, start_from_release

RECIPE = Recipe(name="small", architecture="test_resnet", base_model="", image_size=32, drop_rate=0.0)
FREQUENCIES = {"ALL": 0.75, "HEM": 0.25}
ELSEWHERE = {"name": "cnmc2019", "fingerprint": "0" * 64, "unit": "subject"}


def _metrics(**parts: Any) -> Metrics:
    training = {"subjects": ["1", "2"], "start_weights": "ImageNet", "class_frequencies": FREQUENCIES}
    made = {"recipe": {"name": "densenet121", "class_weighted": True}, "data": ELSEWHERE, "training": training}
    return Metrics.model_validate(made | parts)


def _release(folder: Path, network: nn.Module, labels: tuple[str, ...] = ("ALL", "HEM"), **settings: Any) -> Path:
    given: dict[str, Any]
    given = {"architecture": "test_resnet", "preprocessing": Preprocessing(32, 1.0), "metrics": _metrics()}
    return save_release(folder, network, labels=labels, **given | settings)


def _network(seed: int, recipe: Recipe = RECIPE, classes: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    network = build_network(recipe, classes)
    with torch.no_grad():
        for parameter in classifier_parameters(network):
            parameter.normal_()
    return network


def _start(
    network: nn.Module, release: Path, cells: FramedCells, split: Split, recipe: Recipe = RECIPE
) -> NetworkStart:
    return start_from_release(network, recipe, str(release), cells, split)


def _refusal(*args: Any, **named: Any) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        _start(*args, **named)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def _head(network: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in classifier_parameters(network)]


def _body(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("fc.")}


# What is carried over


@pytest.mark.parametrize("said", ["class_frequencies", "output_frequencies"])  # the first before releases said both
@pytest.mark.parametrize("labels", [("ALL", "HEM"), ("HEM", "ALL")])
def test_the_same_classes_keep_the_head_as_training_left_it_in_our_order(
    tmp_path: Path, cells: FramedCells, split: Split, said: str, labels: tuple[str, str]
) -> None:
    trained, network = _network(1), _network(2)
    as_trained = [part if labels == ("ALL", "HEM") else part.flip(0) for part in _head(trained)]
    shift_class_frequencies(trained, torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
    rescale_classifier(trained, 1.6)
    presumed = {said: dict(zip(labels, (0.75, 0.25), strict=True))}
    metrics = _metrics(calibration={"temperature": 1.6}, training=_metrics().training.content() | presumed)
    started = _start(network, _release(tmp_path / "r", trained, labels, metrics=metrics), cells, split)
    weight, bias = _head(network)
    torch.testing.assert_close(weight, as_trained[0])
    # A constant on every logit changes no probability.
    torch.testing.assert_close(bias - bias.mean(), as_trained[1] - as_trained[1].mean())
    assert started.remarks == ("the head of r is kept",)
    assert started.provenance["started_from"]["kept_head"] is True


def test_a_kept_head_starts_from_the_frequencies_of_a_training_that_weighs_no_class(
    tmp_path: Path, cells: FramedCells, split: Split
) -> None:
    training = _metrics().training.content() | {"output_frequencies": {"ALL": 0.5, "HEM": 0.5}}
    folder, network = _release(tmp_path / "r", _network(1), metrics=_metrics(training=training)), _network(2)
    recipe = replace(RECIPE, class_weighted=False)
    start_from_release(network, recipe, str(folder), cells, split)
    shares = np.bincount(cells.labels[cells.rows(split.train)]) / len(split.train)
    shift = _head(network)[1] - _head(load_release(folder).network)[1]
    assert float(shift[0] - shift[1]) == pytest.approx(np.log(shares[0] / shares[1]), abs=1e-4)


def test_the_body_is_the_releases_to_the_bit_statistics_too(tmp_path: Path, cells: FramedCells, split: Split) -> None:
    folder, network = _release(tmp_path / "r", _network(1)), _network(2)
    _start(network, folder, cells, split)
    released = _body(load_release(folder).network)
    assert any("running_mean" in name for name in released)
    assert all(torch.equal(tensor, released[name]) for name, tensor in _body(network).items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_other_classes_get_a_new_head_and_it_is_said(tmp_path: Path, cells: FramedCells, split: Split) -> None:
    folder = _release(tmp_path / "r", _network(1, classes=4), ("Benign", "Early", "Pre", "Pro"))
    network = _network(2)
    before = _head(network)
    started = _start(network, folder, cells, split)
    assert all(torch.equal(a, b) for a, b in zip(before, _head(network), strict=True))
    assert started.remarks == ("a new head for ALL, HEM: r predicts Benign, Early, Pre, Pro",)
    assert started.provenance["started_from"]["kept_head"] is False


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (("ALL", "HEM"), ("ALL", "HEM"), (0, 1)),
        (("b", "c", "a"), ("a", "b", "c"), (2, 0, 1)),
        (("all", "HEM"), ("ALL", "HEM"), None),
        (("ALL", "HEM"), ("ALL", "normal"), None),
        (("a", "b", "c"), ("a", "b"), None),
        (("a", "b"), ("a", "b", "c"), None),
        (("a", "A"), ("A", "a"), (1, 0)),
    ],
)
def test_classes_are_matched_by_name(theirs: Any, ours: Any, expected: Any) -> None:
    assert matching_outputs(theirs, ours) == expected


# What is recorded


def test_the_name_tells_the_whole_chain_and_no_folder(tmp_path: Path, cells: FramedCells, split: Split) -> None:
    folder = _release(tmp_path / "my-run" / "release", _network(1))
    started = _start(_network(2), folder, cells, split)
    assert started.name == "fine-tuned from my-run, itself started from ImageNet"
    record = started.provenance["started_from"]
    assert (record["release"], record["revision"]) == ("my-run", "")
    assert len(record["weights_sha256"]) == 64
    assert str(tmp_path) not in repr(started)


def test_what_earlier_releases_of_the_chain_saw_is_passed_on(tmp_path: Path, cells: FramedCells, split: Split) -> None:
    first = _release(tmp_path / "first", _network(1))
    provenance = _start(_network(2), first, cells, split).provenance
    own = {"name": "ball4", "fingerprint": "1" * 64, "unit": "block"}
    training = _metrics().training.content() | {"subjects": ["b-00"]} | provenance
    second = _release(tmp_path / "second", _network(3), metrics=_metrics(data=own, training=training))
    seen = _start(_network(4), second, cells, split).provenance["started_from"]["seen"]
    assert seen == [own | {"subjects": ["b-00"]}, ELSEWHERE | {"subjects": ["1", "2"]}]


# What it must not have seen


def _subjects(cells: FramedCells, side: tuple[str, ...]) -> list[str]:
    return sorted({cells.subjects[row] for row in cells.rows(side)})


def _trained_on(cells: FramedCells, subjects: list[str], **data: str) -> Metrics:
    own = {"name": "imagefolder", "fingerprint": cells.data.fingerprint, "unit": "subject"} | data
    return _metrics(data=own, training=_metrics().training.content() | {"subjects": subjects})


UNCLEAR = "whether r was trained on some of these cells is unknown"
TOO_GOOD = "of the validation side: its metrics are too optimistic"


@pytest.fixture
def noted(tmp_path: Path, cells: FramedCells, split: Split) -> Callable[..., tuple[str, ...]]:
    """Notes on fine-tuning a release with these metrics, which keeps predictions of cells under other names."""

    def noted(
        metrics: Metrics, *, cells: FramedCells = cells, split: Split = split, kept: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        release, rows = _release(tmp_path / "r", _network(1), metrics=metrics), cells.rows(kept)
        (release / "predictions").mkdir(exist_ok=True)
        ids, even = tuple(f"UID_{row}_all" for row in rows), np.full((len(rows), 2), 0.5)
        hashes, nobody = cells.hashes_of(rows), ("1",) * len(rows)
        predictions = CellPredictions(ids, nobody, cells.labels[rows], even, ("ALL", "HEM"), None, hashes)
        predictions.save(release / "predictions" / "subject_cv.parquet")
        return _start(_network(2), release, cells, split).notes

    return noted


def test_a_release_that_knows_a_tested_subject_is_refused(
    noted: Callable[..., tuple[str, ...]], cells: FramedCells, split: Split
) -> None:
    tested = _subjects(cells, split.test)
    known = _trained_on(cells, [*_subjects(cells, split.train), *tested])
    with pytest.raises(LeukoscopeError) as refused:
        noted(known)
    assert str(refused.value) == (
        f"--model_name_or_path r: its data hold {len(tested)} subject(s) of this run's test side, so its metrics would "
        "be inflated; use --split all, which measures nothing, a --split_file that tests others, or other cells"
    )
    assert noted(known, split=make_split(cells.data, "all")) == (), "no metric is inflated"


def test_one_data_set_is_known_by_its_name_whatever_part_of_it_is_here(
    noted: Callable[..., tuple[str, ...]], cells: FramedCells, split: Split
) -> None:
    named = replace(cells, data=replace(cells.data, info=replace(cells.data.info, name="cnmc2019")))
    tested = _subjects(cells, split.test)
    with pytest.raises(LeukoscopeError, match=r"its data hold 1 subject\(s\) of"):
        noted(_trained_on(cells, tested[:1], name="cnmc2019", fingerprint="f" * 64), cells=named)
    # Two hospitals' folders may both hold a subject "1"; but that cannot be told.
    assert noted(_trained_on(cells, tested, name="imagefolder", fingerprint="f" * 64)) == (UNCLEAR,)


def test_what_it_may_have_seen_is_noted(
    noted: Callable[..., tuple[str, ...]], cells: FramedCells, split: Split
) -> None:
    validated = _subjects(cells, split.validation)
    assert noted(_trained_on(cells, validated)) == (f"the data of r hold {len(validated)} subject(s) {TOO_GOOD}",)
    assert noted(Metrics()) == (UNCLEAR,)
    assert noted(_metrics()) == (UNCLEAR,)


def test_its_cells_under_another_data_set_s_name_are_known_by_their_pixels(
    noted: Callable[..., tuple[str, ...]], split: Split
) -> None:
    assert noted(_metrics(), kept=split.train) == ()
    (note, *_) = noted(_metrics(), kept=split.validation, split=replace(split, test=()))
    assert note == f"the data of r hold {len(split.validation)} cells {TOO_GOOD}"
    with pytest.raises(LeukoscopeError, match=f"r: its data hold {len(split.test)} cells of this run's test"):
        noted(_metrics(), kept=split.test)


# What does not fit


def test_twins_that_share_their_tensors_are_told_apart(tmp_path: Path, cells: FramedCells, split: Split) -> None:
    folder = _release(tmp_path / "r", _network(1), architecture="test_resnet")
    recipe = replace(RECIPE, architecture="tf_test_resnet")
    assert _refusal(_network(2), folder, cells, split, recipe) == (
        f"--model_name_or_path {folder}: its architecture is test_resnet, that of --recipe small is tf_test_resnet; "
        "leave --recipe out to follow the release"
    )


def test_another_head_and_other_pixels_are_refused(tmp_path: Path, cells: FramedCells, split: Split) -> None:
    plain = replace(RECIPE, architecture="densenet121", block_config=(1, 1))
    pooled_norm = replace(plain, pooled_norm=True)
    described: dict[str, Any] = {"architecture": "densenet121", "model_args": model_args(plain)}
    folder = _release(tmp_path / "r", _network(1, plain), **described)
    message = _refusal(_network(2, pooled_norm), folder, cells, split, pooled_norm)
    assert message.startswith(f"--model_name_or_path {folder}: is not the recipe's network (")
    raw = _release(tmp_path / "raw", _network(1), preprocessing=Preprocessing(32, 1.0, mean=(0, 0, 0), std=(1, 1, 1)))
    assert _refusal(_network(2), raw, cells, split).startswith(
        f"--model_name_or_path {raw}: its standardisation (mean, std) is ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), that of"
    )


def test_no_such_release_and_a_pickle_are_refused_with_the_flag(
    tmp_path: Path, cells: FramedCells, split: Split
) -> None:
    message = _refusal(_network(2), tmp_path / "nowhere", cells, split)
    assert message.startswith(f"--model_name_or_path {tmp_path / 'nowhere'}: is neither a folder nor a Hub id")
    folder = _release(tmp_path / "r", _network(1))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no such weights file; give a .safetensors file" in _refusal(_network(2), folder, cells, split)


# What the release settles on the command line


def _flags(release: Path, *more: str) -> TrainingConfig:
    data = ("--dataset_name", "imagefolder", "--train_dir", "d")
    return parse_config([*data, "--model_name_or_path", str(release), *more])


def _small(folder: Path, metrics: Metrics) -> Path:
    recipe = replace(get_recipe("densenet121"), block_config=(1, 1))
    made: dict[str, Any] = {"architecture": "densenet121", "model_args": model_args(recipe), "metrics": metrics}
    return _release(folder, build_network(recipe, 2), preprocessing=Preprocessing(48, 1.0), **made)


def test_recipe_and_image_size_follow_the_release(tmp_path: Path) -> None:
    folder = _small(tmp_path / "r", _metrics(recipe={"name": "densenet201"}))
    config = _flags(folder)
    assert (config.model.recipe, config.resolve().image_size) == ("densenet201", 48)
    assert not config.start_weights.from_scratch
    assert "--model_name_or_path r" in config.command() and str(tmp_path) not in config.command()
    assert _flags(folder, "--image_size", "64").resolve().image_size == 64
    assert _flags(folder, "--recipe", "densenet121").model.recipe == "densenet121", "asked for: refused when built"


def test_a_network_rewritten_for_timm_is_fine_tuned_as_it_was_released(
    tmp_path: Path, cells: FramedCells, split: Split
) -> None:
    read_at_a_block = build_network(get_recipe("densenet169_block2"), 2).eval()
    plain = build_network(replace(get_recipe("densenet169_block2"), pooled_norm=False), 2)
    plain = rewrite_for_timm(read_at_a_block, plain, torch.randn(2, 3, 64, 64))
    metrics = _metrics(recipe={"name": "densenet169_block2"}, training={"start_weights": "ImageNet", "subjects": ["1"]})
    built_with = {"block_config": [6, 12]}
    release = _release(tmp_path / "r", plain, architecture="densenet169", model_args=built_with, metrics=metrics)
    config = _flags(release)
    assert (config.model.recipe, config.model.image_size) == ("densenet169_block2", 32)
    recipe = config.resolve()
    assert recipe.frozen == ("backbone",), "its last BatchNorm keeps its statistics"
    network = build_network(recipe, 2)
    started = _start(network, release, cells, split, recipe)
    assert started.remarks == ("the head of r is kept",)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(network.eval()(pixels), load_release(release).network(pixels), atol=1e-5)


def test_a_release_of_an_unknown_recipe_needs_one_named(tmp_path: Path) -> None:
    for metrics, recipe in ((_metrics(recipe={"name": "house_9"}), "house_9"), (Metrics(), "")):
        folder = _small(tmp_path / "r", metrics)
        with pytest.raises(LeukoscopeError, match=f"^--recipe {recipe}: unknown; choose one of "):
            _flags(folder)
        assert _flags(folder, "--recipe", "densenet121").model.image_size == 48


def test_two_starts_exclude_each_other_before_the_release_is_opened(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for flags in (["--from_scratch"], ["--pretrained_weights", "w.safetensors"]):
        with pytest.raises(
            LeukoscopeError, match=f"^--model_name_or_path {nowhere} and {flags[0]} exclude each other;"
        ):
            _flags(nowhere, *flags)
