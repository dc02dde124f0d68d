"""A release: one directory in Hub format that timm, transformers' `pipeline()` and Leukoscope all load.

config.json holds the labels and the preprocessing, model.safetensors the weights, metrics.json how far to trust them.
A release holds data only, no code: its network is one of timm's. A local folder and a Hub repository hold the same
files. This module reads and writes all but the weights, without torch; `models.weights` loads and saves the network.
"""

from __future__ import annotations

import json
import os
import reprlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file

from leukoscope import LeukoscopeError, ReleaseError
from leukoscope.data.preprocessing import MAX_INPUT, Preprocessing
from leukoscope.data.registry import ground_rgb
from leukoscope.files import (
    LFS_POINTER,
    atomic_folder,
    disk_errors,
    embedded_releases,
    file_sha256,
    restore_replaced,
    write_atomic,
)
from leukoscope.models.metrics import METRICS_FILE, SCHEMA_VERSION, MapChecks, Metrics

DEFAULT_RELEASE = "leukoscope-densenet169-cnmc"
"""What the demo opens with, and the only release in the wheel; the others come from a clone or the Hub."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
PREDICTIONS_FOLDER = "predictions"  # folder of a protocol's predictions, one Parquet file an evaluation; no pixels
FIGURES_FOLDER = "figures"  # pictures of the card
PROCESSOR_FILE = "preprocessor_config.json"  # of an export as ONNX
OOD_FILE = "ood.safetensors"  # may be missing: releases made elsewhere, or before their cells were at hand
# Sources of the white cells in metrics.json's `ood.healthy`. Nothing is known of the people in fields of view.
HEALTHY = "white cells"
OF_FIELDS = "white cells of fields"

CHECKSUM_BLOCK = "sha256"
"""The block of metrics.json with the SHA-256 of each file; for metrics.json itself, that of its `DECIDING_BLOCKS`."""
HASHED_FILES = (CONFIG_FILE, WEIGHTS_FILE, OOD_FILE)
DECIDING_BLOCKS = (
    *("labels", "positive_label", "data", "training"),
    *("calibration", "decisions", "subject_rule", "evidence_scale"),
    *("occlusion_maps", "occlusion_scale"),
)
"""The blocks of metrics.json that decide what is predicted, or how it is shown."""
_MOST_JSON = 100_000_000  # bytes; the largest metrics.json that comes along has less than a hundredth
_Tensor = TypeVar("_Tensor")


@dataclass(frozen=True)
class ReleaseInfo:
    """A release without its weights.

    Attributes:
        labels: class names in the order of the network's outputs.
        metrics: what metrics.json says; empty where a foreign model has none.
        name: the directory or Hub id it came from.
        revision: Hub commit, or "" for a local folder.
        folder: where its files lie on this machine; None for a network that was never saved.
        config: the content of config.json; {} for a network that was never saved.
    """

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: Metrics
    name: str
    revision: str = ""
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def takes_cut_outs(self) -> bool | None:
        """Whether it was trained on cells cut out on black; None where its data set does not say, as folders do not."""
        return self.metrics.takes_cut_outs

    @property
    def blank_rgb(self) -> tuple[int, int, int]:
        """Colour of the blank picture that evidence is relative to, and of what is transparent: its cells' ground."""
        return ground_rgb(self.metrics.dataset)

    @property
    def map_check(self) -> MapChecks:
        """What the checks of its Grad-CAM maps found."""
        return self.metrics.map_check


def read_release(directory: str | Path, *, name: str = "", revision: str = "") -> ReleaseInfo:
    """Read all of a release but its weights from a local folder in Hub format.

    Args:
        name, revision: of the Hub repository, when the folder is a cached snapshot.

    Raises:
        ReleaseError: no such folder, or a file that is missing, damaged or no release's.
    """
    root = Path(directory)
    config = read_config(root)
    metrics = read_metrics(root)
    labels = config["label_names"]
    if metrics.labels not in ([], labels):
        raise ReleaseError(
            f"{root / CONFIG_FILE}: label_names is {reprlib.repr(labels)}, but labels in {METRICS_FILE} is "
            f"{reprlib.repr(metrics.labels)}; download or copy both files again from one release"
        )
    positive_labels = [metrics.positive_label]
    if metrics.subject_rule:
        positive_labels.append(metrics.subject_rule.positive_label)
    for label in positive_labels:
        if label not in ("", *labels):
            raise ReleaseError(
                f"{root / METRICS_FILE}: positive_label is {label!r}, not one of {', '.join(labels)}; "
                "restore it from the release"
            )
    require_undamaged(root, metrics)
    try:
        preprocessing = Preprocessing.from_pretrained_cfg(config["pretrained_cfg"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ReleaseError(
            f"{root / CONFIG_FILE}: pretrained_cfg has no preprocessing that is supported ({error}); restore it, or "
            "give another release"
        ) from None
    return ReleaseInfo(tuple(labels), preprocessing, metrics, name or str(root), revision, root, config)


def require_undamaged(root: Path, metrics: Metrics) -> None:
    """Compare a release's files with the checksums in its metrics.json; without any, nothing is compared.

    Each file is hashed once by a process as long as its size and times stay.

    Raises:
        ReleaseError: a file that is damaged, of another release, or missing, except for weights.
    """
    recorded = metrics.sha256
    if not recorded:
        return
    for name in HASHED_FILES:
        path = root / name
        checksum = None
        with disk_errors(f"{path}: cannot be read", "check who may read it"):
            if path.is_file():
                checksum = file_sha256(path)
        if checksum == recorded.get(name):
            continue
        if checksum:
            _require_fetched(path)
            problem = "damaged, or of another release"
        elif name == WEIGHTS_FILE:
            continue  # whoever loads the weights says more
        else:
            problem = "missing"
        raise ReleaseError(
            f"{path}: {problem} (its SHA-256 is not the one in {METRICS_FILE}); download or copy the release again"
        )


def _deciding_sha256(content: Mapping[str, Any]) -> str:
    """The SHA-256 of a metrics.json's `DECIDING_BLOCKS`, however the file is laid out."""
    blocks = {name: content[name] for name in DECIDING_BLOCKS if name in content}
    return sha256(json.dumps(blocks, sort_keys=True).encode()).hexdigest()


def write_metrics(folder: Path, metrics: Metrics) -> None:
    """Write the metrics.json of a release, with the checksums of the files that lie beside it now."""
    content = _rounded({name: block for name, block in metrics.content().items() if name != CHECKSUM_BLOCK})
    sums = {name: file_sha256(folder / name) for name in HASHED_FILES if (folder / name).is_file()}
    write_json(folder / METRICS_FILE, {**content, CHECKSUM_BLOCK: {**sums, METRICS_FILE: _deciding_sha256(content)}})


def read_config(root: Path) -> dict[str, Any]:
    """The content of a release's config.json; errors as of `read_release`."""
    path = root / CONFIG_FILE
    restore_replaced(root)
    if not root.is_dir():
        raise ReleaseError(f"{root}: no such model folder; give a release folder or a Hub id like owner/name")
    if not path.is_file():
        raise ReleaseError(f"{root}: has no config.json; give the folder of a release")
    config = _read_json(path)
    try:
        Config.model_validate(config)
    except ValidationError as error:
        raise ReleaseError(
            f"{path}: damaged ({first_problem(error)}); restore it from the release, or give another: only timm image "
            "classifiers with label names load here"
        ) from None
    return config


def read_metrics(root: Path) -> Metrics:
    """The release's metrics.json, empty for none; an error if damaged, of another version or too little to predict."""
    path = root / METRICS_FILE
    if not path.exists():
        return Metrics()
    content = _read_json(path)
    if isinstance(content, dict) and content.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ReleaseError(  # other packages write no version
            f"{path}: schema_version is {content['schema_version']!r}, but only {SCHEMA_VERSION} is supported; "
            "download the release again or use the version of Leukoscope that made it"
        )
    try:
        metrics = Metrics.from_content(content)
    except ValidationError as error:
        raise ReleaseError(
            f"{path}: {first_problem(error)}: download or copy the file again from the release, or leave it out"
        ) from None
    if metrics.sha256 and metrics.sha256.get(METRICS_FILE) != _deciding_sha256(content):
        raise ReleaseError(
            f"{path}: damaged, or changed by hand (its checksum does not match); download or copy the release again"
        )
    return metrics


def _read_json(path: Path) -> Any:
    """The content of one of a release's JSON files; an error if far too large, unreadable or damaged."""
    try:
        size = path.stat().st_size
        if size > _MOST_JSON:
            raise ValueError(f"has {size / 1e6:,.0f} MB, and a release's has less than {_MOST_JSON / 1e6:.0f}")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read ({error.strerror or error}); check who may read it") from None
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{path}: damaged ({error}); restore it from the release") from None


def local_release(model: str) -> Path | None:
    """Where a model lies on this machine: a path that exists, or the name of a release that comes with Leukoscope."""
    if os.path.exists(model):  # unlike `Path.exists`, no error for a name that is too long
        return Path(model)
    with suppress(LeukoscopeError):  # a copy of the package alone
        if Path(model).name == model and os.path.isfile(embedded_releases() / model / CONFIG_FILE):
            return embedded_releases() / model
    return None


def release_folders(root: Path) -> list[Path]:
    """The releases in a folder, or the folder itself where it is one; hidden ones are still being written or copied."""
    if (root / CONFIG_FILE).is_file():
        return [root]
    return [config.parent for config in sorted(root.glob(f"[!.]*/{CONFIG_FILE}"))]


def folder_name(release: Path) -> str:
    """The name of a local release: its folder's, or the run's for the `release` folder of a run."""
    folder = release.resolve()
    if folder.name == "release":
        return folder.parent.name
    return folder.name


def public_name(model: str, revision: str) -> str:
    """A model's name for pictures and reports: its Hub id, or a local folder's name without its private path."""
    return model if revision else folder_name(Path(model))


def write_json(path: Path, content: Mapping[str, Any], *, exact: bool = False) -> None:
    """Write JSON with `write_atomic`; unless `exact`, floats keep six significant digits, more would be noise."""
    if not exact:
        content = _rounded(content)
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file as NumPy arrays; an error for one that is missing, damaged or not readable."""
    return open_safetensors(path, load_file)


def open_safetensors(path: Path, load: Callable[[Path], dict[str, _Tensor]]) -> dict[str, _Tensor]:
    """Read a safetensors file with the `load_file` of NumPy or torch."""
    if not path.is_file():
        raise ReleaseError(f"{path}: no such weights file; give a .safetensors file")
    try:
        return load(path)
    except SafetensorError as error:
        _require_fetched(path)
        raise ReleaseError(
            f"{path}: not a whole safetensors file ({error}); download or copy it again; pickled weights are never "
            "read, since they can run code"
        ) from None
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read ({error.strerror or error}); check who may read it") from None


def _require_fetched(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ReleaseError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull`") from None


def _rounded(content: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(content), parse_float=lambda number: float(f"{float(number):.6g}"))


@contextmanager
def edit_release(source: Path, target: Path | None = None) -> Iterator[Path]:
    """Yield a copy of a release to be changed, which replaces `target` (or `source` itself) at the end, if no error."""
    require_undamaged(source, read_metrics(source))
    with atomic_release(target or source) as folder:
        shutil.copytree(source, folder)
        yield folder


@contextmanager
def atomic_release(target: Path) -> Iterator[Path]:
    """Yield a path for the folder of a release, which gets its checksums at the end and then replaces `target`."""
    problem = f"{target}: the release cannot be written there"
    with disk_errors(problem, "name another folder"), atomic_folder(target) as folder:
        yield folder
        if (folder / METRICS_FILE).is_file():
            write_metrics(folder, Metrics.model_validate(_read_json(folder / METRICS_FILE)))


# What config.json must say for a prediction to rest on it; more keys are allowed


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ModelArgs(_Checked, extra="forbid"):
    """Arguments of timm's builders; any other could read files or build a network of any size."""

    block_config: Annotated[list[Annotated[int, Field(le=64)]], Field(max_length=4)] = []
    drop_path_rate: float = 0.0
    drop_rate: float = 0.0
    global_pool: str = ""
    img_size: Annotated[int, Field(le=MAX_INPUT)] = MAX_INPUT
    in_chans: Literal[3] = 3
    num_classes: Any = None  # timm's own exports name it here as well


class Config(_Checked):
    """config.json; its `pretrained_cfg` is checked by `Preprocessing.from_pretrained_cfg`."""

    architecture: str
    num_classes: int
    label_names: Annotated[list[str], Field(min_length=2)]
    pretrained_cfg: dict[str, Any]
    model_args: ModelArgs | None = None

    @model_validator(mode="after")
    def _labels_are_those_of_the_head(self) -> Config:
        labels = self.label_names
        if len(labels) != self.num_classes:
            raise ValueError(f"label_names has {len(labels)} entries but the head has {self.num_classes} outputs")
        if len(set(labels)) < len(labels):
            raise ValueError(f"label_names is {reprlib.repr(labels)}; the labels must be different")
        return self


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, with its place and value."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    place = ".".join(map(str, first["loc"])) or "its content"
    if first["type"] == "missing":
        return f"{place} is missing"
    message = first["msg"]
    return f"{place} is {reprlib.repr(first['input'])}; {message[0].lower()}{message[1:]}"
