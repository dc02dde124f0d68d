"""A release whose files are damaged, swapped or disagree must be refused by every command, never predict."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from drawn import save_cell
from leukoscope import LeukoscopeError, Predictor, files
from leukoscope.cli import app
from leukoscope.models.metrics import METRICS_FILE, Metrics
from leukoscope.models.release import (
    CONFIG_FILE,
    OOD_FILE,
    WEIGHTS_FILE,
    edit_release,
    read_metrics,
    read_release,
    write_metrics,
)
from leukoscope.models.weights import load_release

EMBEDDED = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/config.json"))
NAN, INFINITE = float("nan"), float("inf")
DECIDING: dict[str, Any] = {
    "schema_version": 3,
    "labels": ["ALL", "HEM"],
    "positive_label": "ALL",
    "calibration": {"temperature": 1.5},
    "decisions": {"abstention": {"default": {"threshold": 0.0}}},
    "subject_rule": {
        "positive_label": "ALL",
        "least_cells": 1,
        "rule": {"pooling": "quantiles", "coefficients": [0.2] * 5, "intercept": 0.0},
        "measured": {"error_rate": {}},
    },
}


@pytest.fixture
def sealed(watched_release: Path, tmp_path: Path) -> Path:
    """A release with a detector, thresholds, a rule for subjects, and its checksums."""
    folder = Path(shutil.copytree(watched_release, tmp_path / "sealed"))
    write_metrics(folder, Metrics.model_validate(DECIDING))
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return save_cell(tmp_path / "cells" / "a.png", size=96)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1000] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)


def swap_the_head(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["classifier.weight"] = tensors["classifier.weight"].flip(0).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def lose_the_detector(folder: Path) -> None:
    (folder / OOD_FILE).unlink()


def _config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


def reverse_the_labels(folder: Path) -> None:
    _config(folder, label_names=["HEM", "ALL"])


def change_the_crop(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    _config(folder, pretrained_cfg=config["pretrained_cfg"] | {"crop_pct": 0.5})


def change_a_threshold(folder: Path) -> None:
    metrics = json.loads((folder / METRICS_FILE).read_text())
    metrics["decisions"]["abstention"]["default"]["threshold"] = 0.9
    (folder / METRICS_FILE).write_text(json.dumps(metrics))


FAULTS: dict[Callable[[Path], None], str] = {
    flip_a_bit: WEIGHTS_FILE,
    swap_the_head: WEIGHTS_FILE,
    lose_the_detector: OOD_FILE,
    reverse_the_labels: CONFIG_FILE,
    change_the_crop: CONFIG_FILE,
    change_a_threshold: METRICS_FILE,
}


COMMANDS = (
    "predict {release} {cells}",
    "patient {release} {cells}",
    "score {release} --input {cells} --output {out}/scores.csv",
    "evaluate {release} --dataset_name imagefolder --train_dir {cells} --output {out}/report",
    "release export {release} --output {out}/graph",
    "release push {release} --hub_model_id owner/name",
    "release recalibrate {release} --train_dir {cells} --output {out}/ours",
    "train --model_name_or_path {release} --dataset_name phantoms --output_dir {out}/run",
    "train --model_name_or_path {release} --dataset_name phantoms --output_dir {out}/run --resume_from_checkpoint",
    "protocol --model_name_or_path {release} --dataset_name phantoms --output {out}/ours --output_dir {out}/runs",
)


@pytest.mark.parametrize(
    ("fault", "words"),
    [(swap_the_head, words) for words in COMMANDS] + [(fault, COMMANDS[0]) for fault in FAULTS],
    ids=lambda given: given.split()[0] if isinstance(given, str) else given.__name__,
)
def test_a_damaged_or_swapped_file_is_named_by_every_command(
    sealed: Path, picture: Path, tmp_path: Path, fault: Callable[[Path], None], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    fault(sealed)
    arguments = [word.format(release=sealed, cells=picture.parent, out=tmp_path) for word in words.split()]
    result = CliRunner(env={"COLUMNS": "1000"}).invoke(app, arguments)
    assert result.exit_code == 1, result.output
    said = result.stderr.splitlines()[-1]
    assert f"{sealed}/{FAULTS[fault]}: " in said
    assert re.search(r"download or copy (the release again|both files again from one release)$", said)
    assert {path.name for path in tmp_path.iterdir()} == {"sealed", "cells"}


def test_a_damaged_release_is_not_given_new_checksums(sealed: Path, tmp_path: Path) -> None:
    flip_a_bit(sealed)
    with pytest.raises(LeukoscopeError, match="damaged"), edit_release(sealed, tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_an_edited_release_has_new_checksums(sealed: Path, tmp_path: Path) -> None:
    with edit_release(sealed, tmp_path / "new") as folder:
        swap_the_head(folder)
        write_metrics(folder, read_metrics(folder).changed(calibration={"temperature": 2.0}))
    assert load_release(tmp_path / "new").metrics.temperature == 2.0
    assert read_release(sealed).metrics.temperature == 1.5


def test_what_decides_nothing_may_be_changed_by_hand(sealed: Path) -> None:
    metrics = json.loads((sealed / METRICS_FILE).read_text())
    (sealed / METRICS_FILE).write_text(json.dumps(metrics | {"notice": "ours"}, sort_keys=True))
    assert read_release(sealed).metrics.notice == "ours"


@pytest.mark.parametrize("metrics", [None, DECIDING], ids=["no metrics.json", "an older metrics.json"])
def test_without_checksums_nothing_is_compared(sealed: Path, metrics: dict[str, Any] | None) -> None:
    swap_the_head(sealed)
    (sealed / METRICS_FILE).unlink()
    if metrics:
        (sealed / METRICS_FILE).write_text(json.dumps(metrics))
    assert load_release(sealed).metrics == Metrics.from_content(metrics or {})


def test_a_file_is_hashed_once_as_long_as_it_stays(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, kind: str) -> Any:
        hashed.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(files, "_TICK", -1)
    for _ in range(3):
        read_release(sealed)
    assert sorted(Path(name).name for name in hashed) == [CONFIG_FILE, WEIGHTS_FILE, OOD_FILE]
    flip_a_bit(sealed)
    with pytest.raises(LeukoscopeError, match="damaged"):
        read_release(sealed)


@pytest.mark.parametrize("release", EMBEDDED, ids=lambda path: path.name)
def test_the_releases_that_come_along_are_whole(release: Path) -> None:
    about = read_release(release)
    assert about.metrics.sha256.keys() == {CONFIG_FILE, WEIGHTS_FILE, OOD_FILE, METRICS_FILE}
    assert {"calibration", "decisions", "ood", "labels"} <= about.metrics.model_fields_set


# Numbers that decide


NUMBERS: list[tuple[tuple[str, ...], Any]] = [
    *((("decisions", "abstention", "default", "threshold"), value) for value in (NAN, INFINITE, -1, 1.5, True, "0.5")),
    *((("subject_rule", "rule", "coefficients"), value) for value in ([NAN] * 5, [INFINITE] * 5, [1.0], [])),
    *((("subject_rule", "rule", "intercept"), value) for value in (NAN, INFINITE)),
    (("subject_rule", "least_cells"), 0),
    (("subject_rule", "rule", "pooling"), "mean"),
    *((("calibration", "temperature"), value) for value in (0, -1, NAN, INFINITE, True)),
    (("decisions", "abstention", "default"), {}),
    (("subject_rule", "measured"), None),
    (("evidence_scale",), {"p05": 0.1, "p95": "x"}),
    (("data",), {"name": ["a"]}),
    (("evaluations",), [3]),
    (("ood",), 1.0),
    (("heat_maps",), {"passed": "yes"}),
    (("heat_maps",), {"deletion": {"gain_over_random": {"mean": "high"}}}),
]


@pytest.mark.parametrize(("place", "value"), NUMBERS, ids=str)
def test_a_number_that_cannot_decide_is_refused(sealed: Path, place: tuple[str, ...], value: object) -> None:
    metrics: dict[str, Any] = json.loads(json.dumps(DECIDING))
    block = metrics
    for name in place[:-1]:
        block = block[name]
    block[place[-1]] = value
    (sealed / METRICS_FILE).write_text(json.dumps(metrics))

    with pytest.raises(LeukoscopeError) as refused:
        read_release(sealed)

    assert str(refused.value).startswith(f"{sealed / METRICS_FILE}: {'.'.join(place)}")
    assert str(refused.value).endswith("download or copy the file again from the release, or leave it out")


def test_a_network_that_computes_numbers_that_are_not_finite_is_refused(
    sealed: Path, picture: Path, tmp_path: Path
) -> None:
    with edit_release(sealed) as folder:
        tensors = load_file(folder / WEIGHTS_FILE)
        tensors["features.norm5.running_var"] = torch.full_like(tensors["features.norm5.running_var"], -1.0)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    message = f"{sealed}: computes numbers that are not finite; download the release again"
    for tta in (False, True):
        with pytest.raises(LeukoscopeError) as refused:
            Predictor.from_pretrained(sealed)(picture, tta=tta)
        assert str(refused.value) == message
    output = tmp_path / "scores.csv"
    result = CliRunner().invoke(app, ["score", str(sealed), "--input", str(picture.parent), "--output", str(output)])
    assert (result.exit_code, output.exists()) == (1, False) and result.stderr.splitlines()[-1] == f"error: {message}"
