"""A protocol makes each run once, resumes where it stopped, and pools what every run measured into one release."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from drawn import save_cell
from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.registry import DATASETS
from leukoscope.data.splits import make_split
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.metrics import measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.release import write_json
from leukoscope.models.weights import load_release
from leukoscope.protocol import (
    FINAL,
    OFFICIAL_FOLDS,
    RANDOM_SPLIT,
    ProtocolRun,
    check_release_folder,
    compose_release,
    finish,
    protocol_runs,
    run_protocol,
)
from leukoscope.training.checkpoint import Interrupted
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import RunFolder
from leukoscope.training.run_metrics import describe_run, evaluation_block
from leukoscope.training.trainer import Trainer

FOLDS = 2
ORDER = ["official-0-1", "official-1-0", "final", "cv-0", "cv-1", "random"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms under C-NMC names: two folds of five ALL and five HEM subjects, three cells each."""
    root = tmp_path_factory.mktemp("cnmc")
    for (label, prefix), subject, cell in product((("all", ""), ("hem", "H")), range(10), range(3)):
        path = root / f"fold_{subject % 2}" / label / f"UID_{prefix}{100 + subject}_1_{cell}_{label}.bmp"
        save_cell(path, label.upper(), size=32, subject=subject, cell=cell)
    return root


@pytest.fixture
def config(cells: Path, tmp_path: Path) -> TrainingConfig:
    data = ("--dataset_name", "cnmc2019", "--train_dir", str(cells), "--output_dir", str(tmp_path / "protocol"))
    small = ("--image_size", "32", "--num_train_epochs", "1", "--per_device_train_batch_size", "8")
    more = ("--override", "block_config=[2,2,2,2]", "--from_scratch", "--mixed_precision", "no")
    return parse_config([*data, *small, *more, "--num_folds", str(FOLDS)])


@pytest.fixture(scope="module")
def data(cells: Path) -> LoadedCells:
    return load_cells("cnmc2019", cells)


def _finish_by_hand(run: ProtocolRun, data: LoadedCells, release: Path, seconds: float) -> None:
    """What `train` leaves behind, with answers drawn by chance in the place of a network's."""
    args = run.config.data
    split = make_split(
        data, args.split, fold=args.fold, num_folds=args.num_folds, validation=False,
        train_folds=args.train_folds, test_folds=args.test_folds,
    )  # fmt: skip
    rows = dict(zip(data.train["cell_id"], zip(data.train["label"], data.train["subject"], strict=True), strict=True))
    ids, no_pixels = data.train["cell_id"][:], np.zeros((len(data.train), 1, 1, 3), np.uint8)
    row_of = {cell: row for row, cell in enumerate(ids)}
    labels, subjects, areas = np.asarray(data.train["label"][:]), data.train["subject"][:], np.zeros(len(ids))
    framed = FramedCells(data, no_pixels, row_of, labels, subjects, [""] * len(ids), areas)
    facts = {"start": "", "data": data.fingerprint, "split": split.fingerprint, "precision": "no", "processes": 1}
    identity = RunIdentity.of(run.config, run.config.resolve(), **facts)
    metrics = describe_run(run.config, identity, framed, split, "weights of a test", torch.device("cpu"))
    metrics.training.seconds = seconds
    run.folder.mkdir(parents=True)
    if split.test:
        dice = np.random.default_rng(len(run.name))
        blast = dice.uniform(size=len(split.test))
        answers = CellPredictions(
            split.test,
            tuple(rows[cell][1] for cell in split.test),
            np.array([rows[cell][0] for cell in split.test]),
            np.stack([blast, 1 - blast], axis=1),
            data.info.labels,
        )
        answers.save(run.folder / "predictions.parquet")
        metrics.evaluations.append(evaluation_block(measure(answers), split, None))
    write_json(run.folder / "metrics.json", metrics.content())
    RunFolder(run.folder).save_identity(identity, run.config.as_dict())
    shutil.copytree(release, run.folder / "release")
    write_json(run.folder / "release" / "metrics.json", metrics.content())


@pytest.fixture
def finished_runs(config: TrainingConfig, data: LoadedCells, tiny_release: Path) -> list[ProtocolRun]:
    runs = list(protocol_runs(config))
    for number, run in enumerate(runs):
        _finish_by_hand(run, data, tiny_release, seconds=10.0**number)
    return runs


# The list of runs


def test_runs_come_in_the_order_of_what_they_tell_soonest(config: TrainingConfig) -> None:
    runs = list(protocol_runs(config))
    assert [run.name for run in runs] == ORDER
    assert [run.folder for run in runs] == [config.output_dir / name for name in ORDER]
    assert [run.estimates for run in runs] == [
        OFFICIAL_FOLDS, OFFICIAL_FOLDS, "", OUT_OF_FOLD, OUT_OF_FOLD, RANDOM_SPLIT,
    ]  # fmt: skip


def test_each_run_splits_as_its_name_says(config: TrainingConfig) -> None:
    args = {run.name: run.config.data for run in protocol_runs(config)}
    assert (args["official-1-0"].train_folds, args["official-1-0"].test_folds) == (["fold_1"], ["fold_0"])
    assert (args["cv-1"].split, args["cv-1"].fold, args["cv-1"].num_folds) == ("subject-cv", 1, FOLDS)
    assert args["random"].split == "random"
    assert args[FINAL].split == "all"
    assert all(args[name].no_validation for name in ORDER if name.startswith(("cv", "official")))
    without = replace(config, data=replace(config.data, no_validation=True))
    (at_random,) = (run.config.data for run in protocol_runs(without) if run.name == "random")
    assert not at_random.no_validation, "on a split by image it would be refused"


# Which runs are done


def _refusal(run: ProtocolRun) -> str:
    """Why what lies in a run's folder is not that run."""
    with pytest.raises(LeukoscopeError) as refused:
        finish([run])
    return str(refused.value)


def test_a_run_finished_with_other_flags_is_refused_by_name(
    config: TrainingConfig, data: LoadedCells, tiny_release: Path
) -> None:
    _finish_by_hand(next(protocol_runs(config)), data, tiny_release, seconds=1.0)
    other = replace(config, run=replace(config.run, learning_rate=0.5, seed=9))
    run = next(protocol_runs(other))
    assert _refusal(run) == (
        f"--output_dir {run.folder}: holds a run with other settings (seed: 0 instead of 9, recipe's "
        "learning_rate: 0.0002 instead of 0.5); give another folder or remove it"
    )


def test_more_folds_repeat_no_other_run(config: TrainingConfig) -> None:
    more = replace(config, data=replace(config.data, num_folds=5))
    few, many = ({run.name: run.config for run in protocol_runs(c)} for c in (config, more))
    assert {name for name in few if few[name] != many[name]} == {"cv-0", "cv-1"}


def test_data_without_published_folds_is_cross_validated_only() -> None:
    names = [run.name for run in protocol_runs(parse_config(["--dataset_name", "phantoms", "--num_folds", "2"]))]
    assert names == [FINAL, "cv-0", "cv-1", "random"]


@pytest.mark.parametrize("flag", [["--push_to_hub"], ["--fold", "1"], ["--no_validation"]])
def test_flags_a_protocol_sets_itself_are_refused(config: TrainingConfig, flag: list[str]) -> None:
    with pytest.raises(LeukoscopeError, match=f"^{flag[0]}: an experiment makes its own splits and publishes nothing"):
        run_protocol(parse_config(["--dataset_name", "cnmc2019", *flag]))


BY_NAME = ["--subject_pattern", r"/(?P<subject>\w+)_"]


@pytest.mark.parametrize(
    ("subjects", "flags", "message"),
    [
        (7, [], r"^cell ALL/ALL0_0: its subject is not known; a protocol .*, --subject_folders, --labels or "),
        (4, BY_NAME, r"^class ALL: 4 subject\(s\) have it; .* 5 folds needs 5 or more: give fewer --num_folds, 3 at"),
        (2, [*BY_NAME, "--num_folds", "2"], r"^class ALL: 2 subject\(s\) have it; .* needs 3 or more: .* gather cells"),
    ],
)
def test_cells_that_no_protocol_can_measure_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subjects: int, flags: list[str], message: str
) -> None:
    for label, subject, cell in product(("ALL", "HEM"), range(subjects), range(9)):
        (tmp_path / label).mkdir(exist_ok=True)
        colour = (subject, cell, 99 * (label == "HEM"))
        Image.new("RGB", (8, 8), colour).save(tmp_path / label / f"{label}{subject}_{cell}.png")
    monkeypatch.setattr("leukoscope.protocol.train", lambda config: pytest.fail("trained"))
    given = ["--dataset_name", "imagefolder", "--train_dir", str(tmp_path), "--output_dir", str(tmp_path / "runs")]
    with pytest.raises(LeukoscopeError, match=message):
        run_protocol(parse_config([*given, *flags]))


def test_a_folder_that_is_no_release_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "work" / "precious").mkdir(parents=True)
    with pytest.raises(LeukoscopeError, match="exists, is not a release and would be replaced; name another folder"):
        check_release_folder(tmp_path / "work")
    with pytest.raises(LeukoscopeError, match="give the release a folder of its own"):
        check_release_folder(Path("."))
    check_release_folder(tmp_path / "new")
    for name in ("config.json", "model.safetensors", "metrics.json"):
        with pytest.raises(LeukoscopeError, match="exists, is not a release and would be replaced"):
            check_release_folder(tmp_path / "work")
        (tmp_path / "work" / name).touch()
    check_release_folder(tmp_path / "work")
    (tmp_path / "work" / ".git").mkdir()
    with pytest.raises(LeukoscopeError, match="exists, is not a release and would be replaced"):
        check_release_folder(tmp_path / "work")


def test_a_copy_on_the_hub_is_split_by_the_unit_of_the_data_set_that_its_card_names(
    config: TrainingConfig, tmp_path: Path
) -> None:
    labels = DATASETS["ball4"].labels
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 4, "label": list(labels)})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "copy" / "train.parquet")
    (tmp_path / "copy" / "README.md").write_text("---\nleukoscope: {dataset_name: ball4}\n---\n")
    source = replace(config.data, dataset_name=str(tmp_path / "copy"), train_dir=None)
    runs = protocol_runs(replace(config, data=source))
    assert {run.config.data.split for run in runs if run.estimates == OUT_OF_FOLD} == {"block-cv"}


def test_runs_on_other_data_are_not_pooled(finished_runs: list[ProtocolRun], tmp_path: Path) -> None:
    path = finished_runs[-1].folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["data"]["fingerprint"] = "other"
    write_json(path, metrics)
    with pytest.raises(LeukoscopeError, match="runs differ in their data or start weights"):
        compose_release(finished_runs, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_where_the_cells_lie_does_not_make_it_another_run(
    config: TrainingConfig, data: LoadedCells, tiny_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _finish_by_hand(next(protocol_runs(config)), data, tiny_release, seconds=1.0)
    copied = shutil.copytree(str(config.data.train_dir), config.output_dir.parent / "copied")
    moved = replace(config.data, train_dir=str(copied))
    finish([next(protocol_runs(replace(config, data=moved, run=replace(config.run, hub_private=True))))])
    assert capsys.readouterr().out.endswith(": this run is finished, and is not trained again\n")


def test_other_cells_under_the_same_flags_make_it_another_run(
    config: TrainingConfig, data: LoadedCells, tiny_release: Path
) -> None:
    run = next(protocol_runs(config))
    _finish_by_hand(run, data, tiny_release, seconds=1.0)
    others = shutil.copytree(str(config.data.train_dir), config.output_dir.parent / "others")
    one, other = sorted(others.glob("fold_0/*/*.bmp"))[:2]
    swapped = one.read_bytes(), other.read_bytes()  # the same names and sizes
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    changed = next(protocol_runs(replace(config, data=replace(config.data, train_dir=str(others)))))
    now = changed.config.data.load(image_size=32).fingerprint[:12]
    assert _refusal(changed) == (
        f"--output_dir {run.folder}: holds a run with other settings (the data's fingerprint: "
        f"{data.fingerprint[:12]} instead of {now}); give another folder or remove it"
    )


def test_finished_runs_are_kept_as_they_are(
    config: TrainingConfig, finished_runs: list[ProtocolRun], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {run.name: (run.folder / "metrics.json").stat().st_mtime_ns for run in finished_runs}
    runs = run_protocol(config)
    assert {run.name: (run.folder / "metrics.json").stat().st_mtime_ns for run in runs} == before
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("[")] == [f"[{n}/6] {name}" for n, name in enumerate(ORDER, 1)]
    assert lines[-1] == f"{runs[-1].folder}: this run is finished, and is not trained again"


def test_an_interrupted_run_resumes_from_its_checkpoint_by_itself(
    config: TrainingConfig,
    finished_runs: list[ProtocolRun],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted = finished_runs[1]
    shutil.rmtree(interrupted.folder)

    def stopped(trainer: Trainer, number: int) -> None:
        monkeypatch.undo()
        trainer._save()
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_stop_if_asked", stopped)
    with pytest.raises(Interrupted):
        run_protocol(config)
    assert capsys.readouterr().out.splitlines()[-1] == "give the same command again to resume from there"
    run_protocol(config)
    assert f"resuming from {interrupted.folder / 'checkpoints' / '00001-epoch-1-step-1'}" in capsys.readouterr().out
    assert interrupted.files.is_finished
    assert not (interrupted.folder / "checkpoints").exists()


# What is published


@pytest.fixture
def composed(finished_runs: list[ProtocolRun], tmp_path: Path) -> Path:
    return compose_release(finished_runs, tmp_path / "cards" / "release")


def _blocks(release: Path) -> dict[str, dict[str, Any]]:
    return {block["name"]: block for block in json.loads((release / "metrics.json").read_text())["evaluations"]}


def test_the_final_weights_are_published_with_what_all_runs_measured(
    composed: Path, finished_runs: list[ProtocolRun], data: LoadedCells
) -> None:
    final = finished_runs[2].folder / "release"
    assert (composed / "model.safetensors").read_bytes() == (final / "model.safetensors").read_bytes()
    assert load_release(composed).labels == ("ALL", "HEM")
    assert [p.name for p in composed.parent.iterdir()] == ["release"], "nothing is left beside it"
    blocks, training = _blocks(composed), json.loads((composed / "metrics.json").read_text())["training"]
    assert {name: block["estimates"] for name, block in blocks.items()} == {
        "subject_cv": OUT_OF_FOLD,
        "official_0_1": OFFICIAL_FOLDS,
        "official_1_0": OFFICIAL_FOLDS,
        "random": RANDOM_SPLIT.format(unit="subject"),
    }, "none is of the published weights"
    assert (training["cells"], training["protocol_seconds"]) == (60, 111111)
    assert (blocks["official_1_0"]["training_seconds"], blocks["subject_cv"]["training_seconds"]) == (10, 11000)


def test_blocks_are_not_called_subjects(finished_runs: list[ProtocolRun], tmp_path: Path) -> None:
    path = next(run.folder for run in finished_runs if run.name == "final") / "metrics.json"
    metrics = json.loads(path.read_text())
    write_json(path, metrics | {"data": metrics["data"] | {"unit": "block"}})
    blocks = _blocks(compose_release(finished_runs, tmp_path / "release"))
    assert blocks["random"]["estimates"] == RANDOM_SPLIT.format(unit="block")


def test_cross_validation_pools_every_cell_once_and_lists_each_fold(
    composed: Path, data: LoadedCells, finished_runs: list[ProtocolRun]
) -> None:
    block = _blocks(composed)["subject_cv"]
    answers = CellPredictions.load(composed / "predictions" / "subject_cv.parquet")
    assert sorted(answers.cell_ids) == sorted(data.train["cell_id"])
    assert block["metrics"]["confusion_matrix"] == measure(answers)["confusion_matrix"]
    assert block["split"]["disjoint_by"] == "subject"
    assert block["split"]["detail"] == "2-fold cross-validation by subject, pooled out-of-fold predictions"
    folds = block["folds"]
    assert [fold["fold"] for fold in folds] == [0, 1]
    assert len({*folds[0]["subjects"], *folds[1]["subjects"]}) == 20
    for fold, run in zip(folds, finished_runs[3:5], strict=True):
        own = json.loads((run.folder / "metrics.json").read_text())["evaluations"][0]
        assert fold["accuracy"] == own["metrics"]["accuracy"]
        assert fold["split_fingerprint"] == own["split"]["fingerprint"]


def test_folds_that_test_a_cell_twice_are_not_published(finished_runs: list[ProtocolRun], tmp_path: Path) -> None:
    first, second = finished_runs[3:5]
    CellPredictions.load(first.folder / "predictions.parquet").save(second.folder / "predictions.parquet")
    with pytest.raises(LeukoscopeError, match="appears more than once"):
        compose_release(finished_runs, tmp_path / "release")
    assert not (tmp_path / "release").exists()


@pytest.mark.slow
def test_a_whole_protocol_from_cells_to_release(config: TrainingConfig, tmp_path: Path) -> None:
    runs = run_protocol(config)
    assert all(run.files.is_finished for run in runs)
    release = compose_release(runs, tmp_path / "release")
    blocks = _blocks(release)
    assert blocks["subject_cv"]["metrics"]["cells"] == 60
    assert blocks["official_0_1"]["metrics"]["cells"] == 30
    assert json.loads((release / "metrics.json").read_text())["training"]["subjects"] == sorted(
        f"{prefix}{100 + n}" for prefix in ("", "H") for n in range(10)
    )
