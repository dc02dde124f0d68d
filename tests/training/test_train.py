"""A run, small but whole: what it writes, that it repeats itself, and how it ends when something is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from leukoscope import LeukoscopeError, api
from leukoscope.data.cells import LoadedCells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import BY_IMAGE, load_split
from leukoscope.evaluation.calibration import calibrated
from leukoscope.evaluation.metrics import measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.build import build_network
from leukoscope.models.recipes import get_recipe
from leukoscope.models.weights import load_release, output_frequencies, shift_class_frequencies
from leukoscope.training import accelerator as devices
from leukoscope.training import train as loop
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import RunFolder
from leukoscope.training.train import train
from leukoscope.training.trainer import Trainer

# Of the recipe's network two layers of each block: a run of the whole one takes seconds more and writes 28 MB.
SHALLOW = ("--override", "block_config=[2,2,2,2]")
TINY = ["--image_size", "32", "--max_train_samples", "48", "--num_train_epochs", "1", "--mixed_precision", "no"]
Run = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the runs of a session: the phantoms are decoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> Run:
    """Trains on phantoms with tiny settings and the given flags on top; returns the run folder."""

    def run(*flags: str) -> Path:
        out = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LEUKOSCOPE_CACHE", str(tiny_cache))
            return train(parse_config([*TINY, *SHALLOW, "--output_dir", str(out), *flags]))

    return run


@pytest.fixture(scope="session")
def finished(tiny_run: Run) -> Path:
    return tiny_run()


def _own(root: Path, out: Path, *flags: str) -> TrainingConfig:
    data = ("--dataset_name", "imagefolder", "--train_dir", str(root), "--subject_pattern", r"/(\w+)_")
    small = ("--image_size", "32", "--num_train_epochs", "1", "--per_device_train_batch_size", "4", *SHALLOW)
    return parse_config([*data, *small, "--from_scratch", "--mixed_precision", "no", "--output_dir", str(out), *flags])


def _metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def _summary(run: Path) -> list[dict[str, str]]:
    with (run / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# What a run leaves


def test_the_run_folder_explains_itself(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "args.yaml",
        "learning_curve.png",
        "metrics.json",
        "predictions.parquet",
        "release",
        "size_only_predictions.parquet",
        "split.json",
        "summary.csv",
    }
    assert {path.name for path in (finished / "release").iterdir()} == {
        "config.json",
        "metrics.json",
        "model.safetensors",
        "ood.safetensors",
    }
    args = yaml.safe_load((finished / "args.yaml").read_text())
    assert (args["flags"]["max_train_samples"], args["flags"]["dataset_name"]) == (48, "phantoms")
    recipe = args["resolved_recipe"]
    assert (recipe["image_size"], recipe["architecture"]) == (32, "densenet121")
    (row,) = _summary(finished)
    assert row["epoch"] == "1"
    assert 0 < float(row["train_loss"]) < 10
    assert 0 < float(row["val_loss"]) < 10
    for share in ("train_accuracy", "val_accuracy", "val_balanced_accuracy"):
        assert 0 <= float(row[share]) <= 1


def test_each_test_cell_is_answered_exactly_once(finished: Path, phantom_data: LoadedCells) -> None:
    answers = CellPredictions.load(finished / "predictions.parquet")
    split = load_split(finished / "split.json", phantom_data)
    assert sorted(answers.cell_ids) == sorted(split.test)
    assert np.allclose(answers.probabilities.sum(axis=1), 1, atol=1e-5)
    label_of = {True: "ALL", False: "HEM"}
    assert all(
        label_of["-all-" in cell] == answers.label_names[reference] and cell.startswith(subject)
        for cell, subject, reference in zip(answers.cell_ids, answers.subjects, answers.references, strict=True)
    )


def test_metrics_say_what_they_estimate_and_agree_with_the_predictions(finished: Path) -> None:
    metrics = _metrics(finished)
    (block,) = metrics["evaluations"]
    assert block["estimates"] == "these weights"
    assert (block["split"]["strategy"], block["split"]["disjoint_by"]) == ("subject", "subject")
    assert block["thresholds_fitted_on"] is None
    again = measure(CellPredictions.load(finished / "predictions.parquet"))
    assert block["metrics"]["confusion_matrix"] == again["confusion_matrix"]
    assert block["metrics"]["accuracy"] == pytest.approx(again["accuracy"], abs=1e-5)
    assert set(block["metrics"]["subjects"]) == set(again["subjects"])
    assert 0 <= block["size_only_baseline"]["balanced_accuracy"] <= 1
    assert metrics["data"]["synthetic"] is True
    assert metrics["training"]["start_weights"] == "random initialisation (no pretrained weights)"
    assert sum(metrics["training"]["class_frequencies"].values()) == pytest.approx(1)
    assert metrics["training"]["output_frequencies"] == {"ALL": 0.5, "HEM": 0.5}
    assert not set(metrics["training"]["subjects"]) & set(block["metrics"]["subjects"]), "no subject trained and tested"


def test_the_release_carries_the_runs_metrics_and_answers_as_the_measured_network_did(
    finished: Path, tiny_cache: Path, phantom_data: LoadedCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = load_release(finished / "release")
    assert release.labels == ("ALL", "HEM")
    assert release.preprocessing == Preprocessing(32, 350 / 450)
    assert release.metrics.content() == _metrics(finished)
    answers = CellPredictions.load(finished / "predictions.parquet")
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tiny_cache))
    framed = frame_cells(phantom_data, release.preprocessing)
    batch = torch.from_numpy(framed.pixels[framed.rows(answers.cell_ids[:16])]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        released = release.network(release.preprocessing.normalise(batch)).softmax(dim=1).numpy()
    # The release keeps half the digits of each weight, and those were measured; its weights hold the temperature, too.
    measured = calibrated(answers, release.metrics.temperature)
    assert np.allclose(released, measured.probabilities[:16], atol=1e-5)


@pytest.mark.slow
def test_another_seed_gives_other_weights_and_a_split_file_the_very_same_cells(finished: Path, tiny_run: Run) -> None:
    other = tiny_run("--seed", "1", "--split_file", str(finished / "split.json"))
    first, second = (load_file(run / "release" / "model.safetensors") for run in (finished, other))
    assert not torch.equal(first["features.conv0.weight"], second["features.conv0.weight"])
    ids = [sorted(CellPredictions.load(run / "predictions.parquet").cell_ids) for run in (finished, other)]
    assert ids[0] == ids[1]
    notes = [json.loads((run / "split.json").read_text())["notes"] for run in (finished, other)]
    assert notes[0] == notes[1], "what a run notes of itself is no part of its split"


# Which cells, and what to keep


def test_a_folders_own_splits_are_trained_and_tested_on_and_it_is_said_that_they_are_by_image(
    own_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("ALL", "HEM"):
        for path in sorted((own_cells / label).iterdir()):
            side = own_cells / ("test" if f"{label}7_" in path.name else "train") / label
            side.mkdir(parents=True, exist_ok=True)
            path.rename(side / path.name)
    config = _own(own_cells, tmp_path / "run", "--per_device_train_batch_size", "32")
    run = train(replace(config, data=replace(config.data, subject_pattern=None)))
    metrics = _metrics(run)
    assert metrics["recipe"]["train_batch_size"] == metrics["training"]["cells"] < 32  # what it was trained with
    tested = CellPredictions.load(run / "predictions.parquet").cell_ids
    assert sorted(tested) == sorted(f"test/{label}/{label}7_{n}" for label in ("ALL", "HEM") for n in (0, 1))
    (block,) = metrics["evaluations"]
    assert (block["split"]["strategy"], block["split"]["disjoint_by"]) == ("given", "cell")
    said = capsys.readouterr().out
    assert "own splits: train 28, test 4" in said
    assert BY_IMAGE in said


def test_training_on_every_whole_picture_claims_no_test_figure_and_keeps_the_last_epoch(
    own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shifts: list[list[float]] = []
    monkeypatch.setattr(loop, "shift_class_frequencies", lambda _, *both: shifts.extend(one.tolist() for one in both))
    damaged = own_cells / "ALL" / "ALL0_1.png"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    flags = ("--split", "all", "--num_train_epochs", "2", "--class_frequencies", "ALL=1", "HEM=3")
    run = train(_own(own_cells, tmp_path / "run", *flags))
    metrics = _metrics(run)
    assert shifts == [[0.5, 0.5], [0.25, 0.75]] and metrics["training"]["output_frequencies"]["HEM"] == 0.75
    training, unreadable = metrics["training"], metrics["data"]["unreadable"]
    assert metrics["evaluations"] == []
    assert (training["cells"], training["kept_epoch"], unreadable) == (31, 2, 1)
    assert not any(name.startswith("val_") for row in _summary(run) for name in row)
    assert str(damaged) in capsys.readouterr().out
    assert not (run / "predictions.parquet").exists()
    assert (run / "release" / "model.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has another default")
@pytest.mark.parametrize(
    ("flag", "launched", "has_bf16", "precision", "said"),
    [
        ([], None, True, "bf16", "precision bf16: the recipe's default on a CPU; --mixed_precision chooses another\n"),
        ([], None, False, "no", "precision no: this processor has no bf16 units; --mixed_precision chooses another\n"),
        ([], "no", True, "no", "precision no: accelerate launch; --mixed_precision chooses another\n"),
        ([], "bf16", True, "bf16", "precision bf16: accelerate launch; --mixed_precision chooses another\n"),
        (["--mixed_precision", "no"], "bf16", False, "no", "precision no: --mixed_precision\n"),
        (
            ["--mixed_precision", "bf16"], None, False, "bf16",
            "precision bf16: --mixed_precision, slowly: this device has no bf16 units\n",
        ),
    ],
)  # fmt: skip
def test_the_precision_is_the_flags_then_the_launchers_then_the_recipes(
    own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flag: list[str], launched: str | None, has_bf16: bool, precision: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    data = ("--dataset_name", "imagefolder", "--train_dir", str(own_cells), "--output_dir", str(tmp_path))
    config = parse_config([*data, "--from_scratch", *flag])
    assert config.resolve().cpu_precision == "bf16"
    assert devices.make_accelerator(config, config.resolve()).mixed_precision == precision
    assert capsys.readouterr().out == f"1 process(es) on cpu\n{said}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the default of a GPU is another")
@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ([], "runs/phantoms-densenet121"),
        (["--mixed_precision", "bf16"], "runs/phantoms-densenet121"),
        (["--mixed_precision", "no"], "runs/phantoms-densenet121-fp32"),
        (["--mixed_precision", "no", "--output_dir", "here"], "here"),
    ],
)
def test_another_precision_has_a_folder_of_its_own_name(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], folder: str
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    config = parse_config(flags)
    assert devices.make_accelerator(config, config.resolve()).project_dir == Path(folder)


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch before 2.9 has one switch")
def test_a_gpu_keeps_float32_whatever_was_set_before(tmp_path: Path) -> None:
    config, backends = parse_config(["--output_dir", str(tmp_path)]), cast(Any, torch.backends)
    before, backends.fp32_precision = backends.fp32_precision, "tf32"
    try:
        devices.make_accelerator(config, config.resolve())
        assert backends.cudnn.conv.fp32_precision == backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        backends.fp32_precision = before


@pytest.mark.parametrize(
    ("has_bf16", "use_cpu", "precision"),
    [(True, "", "bf16"), (False, "", "fp16"), (True, "on", "no"), (True, "y", "no"), (True, "0", "bf16")],
)
def test_the_default_precision_is_one_that_the_device_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool, use_cpu: str, precision: str
) -> None:
    """Emulated, bf16 is slow or fails in the convolutions of a T4 or a V100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )
    monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu or "0")
    chosen: list[str] = []

    def accelerator(**settings: Any) -> None:
        chosen.append(settings["mixed_precision"])
        raise LeukoscopeError("chosen")

    monkeypatch.setattr(devices, "Accelerator", accelerator)
    assert _refusal(parse_config(["--output_dir", str(tmp_path), "--override", "cpu_precision=no"])) == "chosen"
    assert chosen == [precision]


def test_a_gpu_that_this_pytorch_has_no_code_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors …")

    monkeypatch.setattr(torch, "ones", fails)
    assert "no kernel image is available for execution on the device); install a build for this GPU" in _refusal(
        parse_config(["--output_dir", str(tmp_path)])
    )


def test_a_launched_process_has_as_many_threads_as_cores_that_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5}, raising=False)
    config, threads = parse_config(["--output_dir", str(tmp_path)]), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        devices.make_accelerator(config, config.resolve())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
@pytest.mark.parametrize(
    ("given", "launched", "message"),
    [
        ("fp16", "no", "--mixed_precision fp16: needs a GPU, and this run has none; give bf16 or no"),
        (None, "fp16", "accelerate launch --mixed_precision fp16: needs a GPU, and this run has none; give bf16 or no"),
        ("fp61", "no", "--mixed_precision fp61: unknown; give one of no, fp16, bf16"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused_whoever_asks_for_it_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, launched: str, message: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    config = _own(tmp_path / "no such cells", tmp_path / "run")
    assert _refusal(replace(config, run=replace(config.run, mixed_precision=given))) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs processes find each other")
@pytest.mark.parametrize("count", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_would_each_train_alone_are_refused(
    own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setenv(count, "2")
    out = tmp_path / "run"
    assert _refusal(_own(own_cells, out)) == (
        f"2 processes were started and each would train alone into --output_dir {out}: Accelerate found no GPU for "
        "them; set ACCELERATE_USE_CPU=true before the command (in a notebook os.environ['ACCELERATE_USE_CPU'] = 'true' "
        "before notebook_launcher), or start one process"
    )
    assert not out.exists()
    monkeypatch.setenv(count, "1")
    devices.make_accelerator(_own(own_cells, out), _own(own_cells, out).resolve())


def test_processes_wait_for_what_the_first_one_prepares(own_cells: Path, tmp_path: Path) -> None:
    config = _own(own_cells, tmp_path)
    assert devices.make_accelerator(config, config.resolve()).init_handler.timeout == timedelta(days=1)


# Interrupted and resumed


def test_an_interrupted_run_resumes_and_leaves_what_a_whole_one_leaves(
    own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = ("--num_train_epochs", "2")
    whole = train(_own(own_cells, tmp_path / "whole", *epochs))

    append_row = RunFolder.append_row

    def dying(folder: RunFolder, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        append_row(folder, row)

    monkeypatch.setattr(RunFolder, "append_row", dying)
    with pytest.raises(KeyboardInterrupt):
        train(_own(own_cells, tmp_path / "run", *epochs, "--checkpointing_steps", "1"))
    monkeypatch.undo()
    assert "holds an unfinished run (" in _refusal(_own(own_cells, tmp_path / "run", *epochs))
    other = _own(own_cells, tmp_path / "run", *epochs, "--seed", "1", "--resume_from_checkpoint")
    assert "holds a run with other settings (seed: 0 instead of 1, the split's fingerprint: " in _refusal(other)
    run = train(_own(own_cells, tmp_path / "run", *epochs, "--resume_from_checkpoint"))
    assert "resuming from " in capsys.readouterr().out
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
    assert (run / "release/model.safetensors").read_bytes() == (whole / "release/model.safetensors").read_bytes()
    assert _metrics(run)["evaluations"] == _metrics(whole)["evaluations"]
    assert [_without_times(row) for row in _summary(run)] == [_without_times(row) for row in _summary(whole)]


def test_what_a_run_lacked_when_it_was_killed_at_its_very_end_is_done_by_resuming_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = (out / "metrics.json").read_bytes()
    (out / "checkpoints" / "00001-epoch-1-step-0").mkdir(parents=True)
    (out / ".release.0a1b.tmp" / "release").mkdir(parents=True)
    for file in (".metrics.json.0a1b.tmp", "release/.README.md.0a1b.tmp"):
        (out / file).touch()
    monkeypatch.setattr(Trainer, "fit", lambda trainer: pytest.fail("trained again"))
    resumed = parse_config([*TINY, *SHALLOW, "--output_dir", str(out), "--resume_from_checkpoint"])
    other = replace(resumed, run=replace(resumed.run, seed=1))
    assert "holds a run with other settings (seed: 0 instead of 1, " in _refusal(other)
    api.run(resumed)
    assert (out / "release" / "README.md").is_file() and (out / "metrics.json").read_bytes() == before
    assert not (out / "checkpoints").exists() and not list(out.rglob("*.tmp"))
    assert f"{out}: this run is finished, and is not trained again\n" in capsys.readouterr().out
    api.run(replace(resumed, run=replace(resumed.run, resume_from_checkpoint=None)))
    assert f"{out}: this run is finished, and is not trained again\n" in capsys.readouterr().out


# Columns of summary.csv that say how the machine fared, not what was learnt.
_OF_THIS_MACHINE = ("seconds", "images_per_second")


def _without_times(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if not name.endswith(_OF_THIS_MACHINE)}


# How it ends when something is wrong


def _refusal(config: TrainingConfig) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        train(config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_one_cell_at_a_time_is_refused_where_a_layer_normalises_over_a_batch(own_cells: Path, tmp_path: Path) -> None:
    """At 32 px the last feature maps are 1 × 1: their BatchNorm has one value a channel."""
    assert _refusal(_own(own_cells, tmp_path / "run", "--per_device_train_batch_size", "1")) == (
        "--per_device_train_batch_size 1: this network normalises over a batch; give 2 or more"
    )


def test_a_loss_that_is_no_number_ends_the_run_and_releases_nothing(own_cells: Path, tmp_path: Path) -> None:
    rates = ("--learning_rate", "1e30", "--override", "head_learning_rate=1e30", "schedule=constant")
    refusal = _refusal(_own(own_cells, tmp_path / "run", "--split", "all", *rates))
    assert refusal == "epoch 1, within 8 batches: the loss is nan; lower --learning_rate and start again"
    assert not (tmp_path / "run" / "release").exists()


def test_start_weights_that_cannot_be_had_are_told_before_the_cells_are_decoded(
    own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "frame_cells", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = _own(own_cells, tmp_path / "run")
    config = replace(config, model=replace(config.model, from_scratch=False))
    assert _refusal(config).startswith(
        "timm/densenet121.ra_in1k: its weights cannot be fetched from the Hub (HF_HUB_OFFLINE is set); check the "
    )


def test_unwritable_run_folder_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = _own(tmp_path / "no such cells", tmp_path / "file" / "run")
    assert _refusal(config) == (
        f"--output_dir {tmp_path / 'file' / 'run'}: cannot be written (Not a directory); give another folder"
    )


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _earlier_run(folder: Path, config: TrainingConfig) -> dict[str, bytes]:
    """What stands for a finished run with these settings, in few bytes; its contents."""
    (folder / "release").mkdir(parents=True)
    for name in ("release/metrics.json", "metrics.json", "summary.csv"):
        (folder / name).write_text(f"an earlier run's {name}")
    RunFolder(folder).save_identity(RunIdentity.of(config, config.resolve()), config.as_dict())
    return _contents(folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_dir", "nowhere"], "--train_dir nowhere: "),
        (["--split_file", "nowhere.json"], "nowhere.json"),
        (["--seed", "7"], "holds a run with other settings (seed: 0"),
    ],
)
def test_a_refused_command_leaves_a_finished_run_alone(
    own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = _earlier_run(tmp_path / "run", _own(own_cells, tmp_path / "run"))
    assert message in _refusal(_own(own_cells, tmp_path / "run", *flags))
    assert _contents(tmp_path / "run") == before


def test_a_run_that_cannot_begin_writes_nothing(own_cells: Path, tmp_path: Path) -> None:
    assert "; use another --split or more cells" in _refusal(
        _own(own_cells, tmp_path / "run", "--max_train_samples", "1")
    )
    assert _contents(tmp_path / "run") == {}


def test_a_training_into_a_locked_folder_changes_nothing(
    own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _earlier_run(tmp_path / "run", config := _own(own_cells, tmp_path / "run"))

    def busy(_: RunFolder) -> None:
        raise LeukoscopeError("another training is writing there")

    monkeypatch.setattr(RunFolder, "locked", busy)
    assert _refusal(config) == "another training is writing there"
    assert _contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    "writes",
    ["train.Split.save", "run_folder.pd.DataFrame.to_csv", "run_folder.CellPredictions.save", "train.save_release"],
)
def test_a_full_disk_ends_the_run_in_one_line(
    own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    config = _own(own_cells, tmp_path / "run")

    def full(*_: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"leukoscope.training.{writes}", full)
    assert _refusal(config) == (
        f"--output_dir {tmp_path / 'run'}: cannot be written (No space left on device); free some space or give "
        "another folder"
    )
    assert not (tmp_path / "run" / "metrics.json").exists(), "by it a run is known to be finished"
    assert not (tmp_path / "run" / "release").exists()


@pytest.mark.parametrize("architecture", ["timm/test_resnet", "timm/deit_tiny_distilled_patch16_224"])
def test_probabilities_presume_the_frequencies_that_they_are_shifted_to(architecture: str) -> None:
    torch.manual_seed(0)
    network = build_network(replace(get_recipe(architecture), image_size=32), 2).eval()
    inputs, before, after = torch.randn(4, 3, 32, 32), torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    with torch.no_grad():
        even = network(inputs).softmax(dim=1)
        shift_class_frequencies(network, before, after)
        shifted = network(inputs).softmax(dim=1)
    torch.testing.assert_close(shifted, even * after / (even @ after)[:, None])


@pytest.mark.parametrize(
    ("given", "labels", "expected"),
    [
        ([], ("ALL", "HEM"), [0.5, 0.5]),
        ([], ("A", "B", "C"), [0.5, 0.25, 0.25]),
        (["equal"], ("A", "B", "C"), [1 / 3] * 3),
        (["data"], ("ALL", "HEM"), [2 / 3, 1 / 3]),
        (["HEM=3", "ALL=1"], ("ALL", "HEM"), [0.25, 0.75]),
    ],
)
def test_no_class_is_presumed_where_there_are_two(given: list[str], labels: tuple[str, ...], expected: Any) -> None:
    counts = torch.tensor([200.0, 100.0, 100.0][: len(labels)])
    torch.testing.assert_close(output_frequencies(given, labels, counts), torch.tensor(expected))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["ALL=0.5"], "--class_frequencies ALL=0.5: give equal"),
        (["even"], "--class_frequencies even: give equal, data, or a share above 0 for each class once: ALL=0.5 HEM"),
        (["ALL=0", "HEM=1"], "--class_frequencies ALL=0 HEM=1: give equal"),
        (["ALL=1", "ALL=2"], "--class_frequencies ALL=1 ALL=2: give equal"),
        (["equal", "data"], "--class_frequencies equal data: give equal, data"),
    ],
)
def test_class_frequencies_that_name_no_share_of_each_class_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        output_frequencies(given, ("ALL", "HEM"), torch.tensor([200.0, 100.0]))
    assert str(refused.value).startswith(message)
