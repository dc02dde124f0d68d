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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file

from leukoscope import LeukoscopeError, ReleaseError
from leukoscope.data.preprocessing import MAX_INPUT, Preprocessing
from leukoscope.data.registry import ground_rgb, trained_on, trained_on_cut_outs
from leukoscope.files import (
    LFS_POINTER,
    atomic_folder,
    disk_errors,
    embedded_releases,
    file_sha256,
    restore_replaced,
    write_atomic,
)
from leukoscope.models.map_check import EVIDENCE_METHOD, OCCLUSION_METHOD, MapCheck

DEFAULT_RELEASE = "leukoscope-densenet169-cnmc"
"""What the demo opens with, and the only release in the wheel; the others come from a clone or the Hub."""
SCHEMA_VERSION = 3  # of metrics.json
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
PREDICTIONS_FOLDER = "predictions"  # folder of a protocol's predictions, one Parquet file an evaluation; no pixels
FIGURES_FOLDER = "figures"  # pictures of the card
ROBUSTNESS_BLOCK = "robustness"  # block of metrics.json: how the answers hold under small changes of the pictures
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
        metrics: the content of metrics.json ({} where a foreign model has none).
        name: the directory or Hub id it came from.
        revision: Hub commit, or "" for a local folder.
        folder: where its files lie on this machine; None for a network that was never saved.
        config: the content of config.json; {} for a network that was never saved.
    """

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: Mapping[str, Any]
    name: str
    revision: str = ""
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def takes_cut_outs(self) -> bool | None:
        """Whether it was trained on cells cut out on black; None where its data set does not say, as folders do not."""
        return trained_on_cut_outs(self.metrics)

    @property
    def blank_rgb(self) -> tuple[int, int, int]:
        """Colour of the blank picture that evidence is relative to, and of what is transparent: its cells' ground."""
        return ground_rgb(trained_on(self.metrics))

    @property
    def map_method(self) -> str:
        """The method of the maps that it shows: by covering where these passed their checks and Grad-CAM did not."""
        if self.map_check_of(OCCLUSION_METHOD).passed and not self.map_check_of(EVIDENCE_METHOD).passed:
            return OCCLUSION_METHOD
        return EVIDENCE_METHOD

    def map_check_of(self, method: str) -> MapCheck:
        """What the checks of its maps of one method found."""
        return MapCheck.from_metrics(self.metrics, method)

    @property
    def map_check(self) -> MapCheck:
        """What the checks of the maps that it shows found."""
        return self.map_check_of(self.map_method)

    @property
    def maps_passed(self) -> bool | None:
        """Whether the maps that it shows passed their checks; None where they were not checked."""
        return self.map_check.passed


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
    if metrics.get("labels", labels) != labels:
        raise ReleaseError(
            f"{root / CONFIG_FILE}: label_names is {reprlib.repr(labels)}, but labels in {METRICS_FILE} is "
            f"{reprlib.repr(metrics['labels'])}; download or copy both files again from one release"
        )
    for place, block in {"subject_rule.": metrics.get("subject_rule") or {}, "": metrics}.items():
        label = block.get("positive_label") or labels[0]
        if label not in labels:
            raise ReleaseError(
                f"{root / METRICS_FILE}: {place}positive_label is {label!r}, not one of {', '.join(labels)}; restore "
                "it from the release"
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


def require_undamaged(root: Path, metrics: Mapping[str, Any]) -> None:
    """Compare a release's files with the checksums in its metrics.json; without any, nothing is compared.

    Each file is hashed once by a process as long as its size and times stay.

    Raises:
        ReleaseError: a file that is damaged, of another release, or missing, except for weights.
    """
    recorded = metrics.get(CHECKSUM_BLOCK)
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


def _deciding_sha256(metrics: Mapping[str, Any]) -> str:
    """The SHA-256 of a metrics.json's `DECIDING_BLOCKS`, however the file is laid out."""
    blocks = {name: metrics[name] for name in DECIDING_BLOCKS if name in metrics}
    return sha256(json.dumps(blocks, sort_keys=True).encode()).hexdigest()


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the metrics.json of a release, with the checksums of the files that lie beside it now."""
    content = _rounded({name: block for name, block in metrics.items() if name != CHECKSUM_BLOCK})
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


def read_metrics(root: Path) -> dict[str, Any]:
    """The release's metrics.json, {} for none; an error if damaged, of another version or too little to predict."""
    path = root / METRICS_FILE
    if not path.exists():
        return {}
    metrics = _read_json(path)
    try:
        Metrics.model_validate(metrics)
    except ValidationError as error:
        raise ReleaseError(
            f"{path}: {first_problem(error)}: download or copy the file again from the release, or leave it out"
        ) from None
    version = metrics.get("schema_version", SCHEMA_VERSION)  # other packages write none
    if version != SCHEMA_VERSION:
        raise ReleaseError(
            f"{path}: schema_version is {version!r}, but only {SCHEMA_VERSION} is supported; download the release "
            "again or use the version of Leukoscope that made it"
        )
    recorded = metrics.get(CHECKSUM_BLOCK)
    if recorded and recorded.get(METRICS_FILE) != _deciding_sha256(metrics):
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
        raise ReleaseError(f"{path}: no such weights file; give a .safetensors file; pickled ones are never read")
    try:
        return load(path)
    except SafetensorError as error:
        _require_fetched(path)
        raise ReleaseError(f"{path}: not a whole safetensors file ({error}); download or copy it again") from None
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
            write_metrics(folder, _read_json(folder / METRICS_FILE))


# What config.json and metrics.json must say for a prediction to rest on it; more keys are allowed

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FromOne = Annotated[int, Field(ge=1)]
FromZero = Annotated[int, Field(ge=0)]
_Block = TypeVar("_Block")
# The default of a block that may be missing; a null in its place is refused.
_MISSING: Any = None
# Of a block that may be missing, {} says the same.
_MayBeEmpty = Annotated[_Block, WrapValidator(lambda value, check: None if value == {} else check(value))]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ModelArgs(_Checked, extra="forbid"):
    """Arguments of timm's builders; any other could read files or build a network of any size."""

    block_config: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=4)] = []
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    global_pool: str = ""
    img_size: Annotated[int, Field(ge=1, le=MAX_INPUT)] = MAX_INPUT
    in_chans: Literal[3] = 3
    num_classes: Any = None  # timm's own exports name it here as well


class Config(_Checked):
    """config.json; its `pretrained_cfg` is checked by `Preprocessing.from_pretrained_cfg`."""

    architecture: str
    num_classes: int
    label_names: Annotated[list[str], Field(min_length=2)]
    pretrained_cfg: dict[str, Any]
    model_args: ModelArgs | None = None
    id2label: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _labels_are_those_of_the_head(self) -> Config:
        labels = self.label_names
        if len(labels) != self.num_classes:
            raise ValueError(f"label_names has {len(labels)} entries but the head has {self.num_classes} outputs")
        if len(set(labels)) < len(labels):
            raise ValueError(f"label_names is {reprlib.repr(labels)}; the labels must be different")
        if self.id2label is not None and self.id2label != {str(k): label for k, label in enumerate(labels)}:
            raise ValueError(f"label_names is {reprlib.repr(labels)}, and id2label {reprlib.repr(self.id2label)}")
        return self


class _Data(_Checked):
    name: str = ""
    copy_of: str = ""


class _Training(_Checked):
    subjects: list[Any] = []
    class_frequencies: dict[str, Share] = {}
    output_frequencies: dict[str, Share] = {}


class _Calibration(_Checked):
    temperature: Positive


class _Point(_Checked):
    threshold: Share


class _Abstention(_Checked):
    default: _Point


class _Decisions(_Checked):
    abstention: _MayBeEmpty[_Abstention] = _MISSING


class _Rule(_Checked):
    pooling: Literal["quantiles"]
    coefficients: Annotated[list[float], Field(min_length=5, max_length=5)]
    intercept: float


class _ErrorRate(_Checked):
    share: Share | None
    low: Share | None
    high: Share | None


class _Measured(_Checked):
    error_rate: _MayBeEmpty[_ErrorRate]


class _SubjectRule(_Checked):
    positive_label: str
    least_cells: FromOne
    rule: _Rule
    measured: _Measured


class _EvidenceScale(_Checked):
    p05: NotNegative
    p95: NotNegative
    on_cell_p05: Share = 0.0


class _Recalibration(_Checked):
    previous_temperature: Positive = 1.0


class _Figure(_Checked):
    mean: float | None = None


class _Deletion(_Checked):
    gain_over_random: _MayBeEmpty[_Figure] = _MISSING


class _MapChecks(_Checked):
    passed: bool | None = None
    deletion: _MayBeEmpty[_Deletion] = _MISSING


class Metrics(_Checked):
    """metrics.json; every block may be missing."""

    labels: list[str] = []
    positive_label: str = ""
    data: _Data = _MISSING
    training: _Training = _MISSING
    evaluations: list[dict[str, Any]] = []
    calibration: _MayBeEmpty[_Calibration] = _MISSING
    decisions: _Decisions = _MISSING
    subject_rule: _MayBeEmpty[_SubjectRule] = _MISSING
    evidence_scale: _MayBeEmpty[_EvidenceScale] = _MISSING
    recalibration: _Recalibration = _MISSING
    recipe: dict[str, Any] = {}
    ood: dict[str, Any] = {}
    heat_maps: _MayBeEmpty[_MapChecks] = _MISSING
    occlusion_maps: _MayBeEmpty[_MapChecks] = _MISSING
    occlusion_scale: _MayBeEmpty[_EvidenceScale] = _MISSING
    views: dict[str, Any] = {}
    sha256: dict[str, str] = {}


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, with its place and value."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    place = ""
    for part in first["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    place = place[1:] or "its content"
    if first["type"] == "missing":
        return f"{place} is missing"
    message = first["msg"].partition(" or instance of ")[0]
    return f"{place} is {reprlib.repr(first['input'])}; {message[0].lower()}{message[1:]}"
