"""A release: one directory in Hub format that timm, transformers' `pipeline()` and Leukoscope all load.

config.json holds the labels and the preprocessing, model.safetensors the weights, metrics.json how far to trust them.
A release holds data only: its network is one of timm's, and it contains no code. A local folder and a Hub repository
hold exactly the same files. This module reads and writes all but the weights, without torch; `models.weights` loads and
saves the network.
"""

from __future__ import annotations

import json
import os
import reprlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.registry import EMPTY_SLIDE_RGB, trained_on
from leukoscope.files import LFS_POINTER, atomic_folder, disk_errors, embedded_releases, restore_replaced, write_atomic

SCHEMA_VERSION = 3  # of metrics.json; see metrics.schema.json beside this file
CONFIG, WEIGHTS, METRICS, CARD = "config.json", "model.safetensors", "metrics.json", "README.md"
PREDICTIONS = "predictions"  # folder of a protocol's predictions, one Parquet file an evaluation; no pixels
FIGURES = "figures"  # pictures of the card
PROCESSOR = "preprocessor_config.json"  # of an export for transformers.js
OOD = "ood.safetensors"  # may be missing: releases made elsewhere, or before their cells were at hand
# Sources of the white cells in metrics.json's `ood.healthy`. Of the people in fields of view nothing is known.
HEALTHY, OF_FIELDS = "white cells", "white cells of fields"

# The parts of metrics.json that prediction needs, and their types. "!" marks what must not be missing or empty where
# its block is there, "*" every entry; what only reports show is not checked here.
_METRICS_SHAPE: dict[str, Any] = {
    "labels": [str],
    "data": {"name": str, "copy_of": str},
    "training": {"subjects": [object]},
    "evaluations": [{}],
    "calibration": {"temperature!": float},
    "decisions": {
        "operating_points": {"positive_label!": str, "points!": {"*": {"threshold!": float}}},
        "abstention": {"default!": {"threshold!": float}},
    },
    "subject_rule": {
        "positive_label!": str,
        "least_cells!": float,
        "rule!": {"pooling!": str, "coefficients!": [float], "intercept!": float},
        "measured!": {"error_rate!": {}},
    },
    "evidence_scale": {"p05!": float, "p95!": float, "on_cell_p05": float},
    "morphology": {"area!": [float], "nucleus_share!": [float], "lobes!": {"*": float}},
    "precision": {
        "fast": [str],
        "bf16": {"logit_shift!": [float]},
        "int8": {"logit_shift!": [float], "ranges": [{"kernel!": str, "low!": float, "high!": float}]},
    },
    **{name: {} for name in ("recipe", "ood", "heat_maps", "views", "recalibration")},
}
# Bytes of a JSON file; the largest metrics.json that comes along has less than a hundredth.
_MOST_JSON = 100_000_000
_Tensor = TypeVar("_Tensor")
_KIND_NAMES = {dict: "an object", list: "a list", str: "a text", float: "a number"}


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
        info = trained_on(self.metrics)
        return None if info is None or info.name == "imagefolder" else info.background == "black"

    @property
    def blank_rgb(self) -> tuple[int, int, int]:
        """Colour of the blank picture that evidence is relative to: an empty slide for smears, else black."""
        return EMPTY_SLIDE_RGB if self.takes_cut_outs is False else (0, 0, 0)


def read_release(directory: str | Path, *, name: str = "", revision: str = "") -> ReleaseInfo:
    """Read all of a release but its weights from a local folder in Hub format.

    Args:
        name, revision: of the Hub repository, when the folder is a cached snapshot.

    Raises:
        LeukoscopeError: no such folder, a file missing or damaged, fewer than two labels, or labels that do not
            match the head or are not different.
    """
    root = Path(directory)
    config = read_config(root)
    metrics = read_metrics(root)
    points = (metrics.get("decisions") or {}).get("operating_points") or {}
    if points and points["positive_label"] not in config["label_names"]:
        raise LeukoscopeError(
            f"{root / METRICS}: decisions.operating_points.positive_label is {points['positive_label']!r}, none of "
            f"{', '.join(map(str, config['label_names']))}; restore it from the release"
        )
    try:
        preprocessing = Preprocessing.from_pretrained_cfg(config["pretrained_cfg"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise LeukoscopeError(
            f"{root / CONFIG}: pretrained_cfg has no preprocessing that is known here ({error}); restore it, or give "
            "another release"
        ) from None
    return ReleaseInfo(
        labels=tuple(config["label_names"]),
        preprocessing=preprocessing,
        metrics=metrics,
        name=name or str(root),
        revision=revision,
        folder=root,
        config=config,
    )


def read_config(root: Path) -> dict[str, Any]:
    """The content of a release's config.json; errors as of `read_release`."""
    path = root / CONFIG
    restore_replaced(root)
    if not root.is_dir():
        raise LeukoscopeError(f"{root}: no such model folder; give a release folder or a Hub id like owner/name")
    if not path.is_file():
        raise LeukoscopeError(f"{root}: has no config.json; give the folder of a release")
    try:
        config = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise LeukoscopeError(f"{path}: damaged ({error}); restore it from the release") from None
    if not isinstance(config, dict):
        raise LeukoscopeError(f"{path}: damaged (holds {config!r}, no settings); restore it from the release")
    kinds = {"architecture": str, "num_classes": int, "label_names": list, "pretrained_cfg": dict}
    for key, kind in kinds.items():
        if key not in config:
            raise LeukoscopeError(f"{path}: has no {key!r}; only timm image classifiers with label names load here")
        if not isinstance(config[key], kind):
            raise LeukoscopeError(f"{path}: damaged ({key} is {config[key]!r}); restore it from the release")
    if len(config["label_names"]) != config["num_classes"]:
        raise LeukoscopeError(
            f"{path}: label_names has {len(config['label_names'])} entries but the head has {config['num_classes']} "
            "outputs; restore config.json from the release"
        )
    labels = config["label_names"]
    shown = f"label_names is {reprlib.repr(labels)}"
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        damaged = f"damaged ({shown}; the labels must be different texts)"
        raise LeukoscopeError(f"{path}: {damaged}; restore it from the release")
    if len(labels) < 2:
        raise LeukoscopeError(f"{path}: {shown}; a classifier needs two or more classes: give another release")
    return config


def read_metrics(root: Path) -> dict[str, Any]:
    """The release's metrics.json, {} for none; an error if damaged, of another version or too little to predict."""
    path = root / METRICS
    if not path.exists():
        return {}
    try:
        metrics = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise LeukoscopeError(f"{path}: damaged ({error}); restore it from the release") from None
    for problem in _misshapen(metrics, _METRICS_SHAPE, "its content"):
        raise LeukoscopeError(f"{path}: {problem}: restore the file from the release, or leave it out")
    if (version := metrics.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:  # other packages write none
        raise LeukoscopeError(
            f"{path}: schema_version is {version!r}, and {SCHEMA_VERSION} is read here; get the release anew, or use "
            "the version of Leukoscope that made it"
        )
    return metrics


def _text(path: Path) -> str:
    """The text of one of a release's JSON files; an error if far too large or unreadable, `ValueError` if not UTF-8."""
    try:
        if path.stat().st_size > _MOST_JSON:
            raise LeukoscopeError(
                f"{path}: damaged (has {path.stat().st_size / 1e6:,.0f} MB, and a release's has less than "
                f"{_MOST_JSON / 1e6:.0f}); restore it from the release"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise LeukoscopeError(f"{path}: cannot be read ({error.strerror or error}); check who may read it") from None


def _misshapen(value: Any, shape: Any, place: str) -> Iterator[str]:
    """What is wrong with a value and all that it contains; `place` is its name for messages."""
    kind: type = type(shape) if isinstance(shape, dict | list) else shape
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits: bool = number if kind is float else isinstance(value, kind)
    if not fits:
        yield f"{place} is {'missing' if value is None else reprlib.repr(value)}; it must be {_KIND_NAMES[kind]}"
    elif kind is list:
        for position, one in enumerate(value):
            yield from _misshapen(one, shape[0], f"{place}[{position}]")
    elif kind is dict:
        prefix = f"{place}." if shape is not _METRICS_SHAPE else ""
        for key, part in shape.items():
            needed = key.endswith("!")
            for name in value if key == "*" else [key.removesuffix("!")]:
                # Of a block that may be missing, {} says the same.
                empty = name not in value or (value[name] == {} and isinstance(part, dict))
                if key == "*" or needed or not empty:
                    yield from _misshapen(value.get(name), part, f"{prefix}{name}")


def local_release(model: str) -> Path | None:
    """Where a model lies on this machine: a path that exists, or the name of a release that comes with Leukoscope."""
    if os.path.exists(model):  # unlike `Path.exists`, no error for a name that is too long
        return Path(model)
    if Path(model).name != model:  # a path or a Hub id
        return None
    try:
        embedded = embedded_releases() / model
    except LeukoscopeError:  # a copy of the package alone
        return None
    return embedded if os.path.isfile(embedded / CONFIG) else None


def release_folders(root: Path) -> list[Path]:
    """The releases in a folder, or the folder itself where it is one; hidden ones are still being written or copied."""
    if (root / CONFIG).is_file():
        return [root]
    return [config.parent for config in sorted(root.glob(f"[!.]*/{CONFIG}"))]


def folder_name(release: Path) -> str:
    """The name of a local release: its folder's, or the run's for the `release` folder of a run."""
    folder = release.resolve()
    return folder.parent.name if folder.name == "release" else folder.name


def public_name(model: str, revision: str) -> str:
    """A model's name for pictures and reports: its Hub id, or a local folder's name without its private path."""
    return model if revision else folder_name(Path(model))


def write_json(path: Path, content: Mapping[str, Any], *, exact: bool = False) -> None:
    """Write JSON with `write_atomic`; unless `exact`, floats keep six significant digits, more would be noise."""
    write_atomic(path, json.dumps(content if exact else _rounded(content), indent=1, ensure_ascii=False) + "\n")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file as NumPy arrays; an error for one that is missing, damaged or not readable."""
    from safetensors.numpy import load_file

    return open_safetensors(path, load_file)


def open_safetensors(path: Path, load_file: Callable[[Path], dict[str, _Tensor]]) -> dict[str, _Tensor]:
    """Read a safetensors file with the `load_file` of NumPy or torch."""
    from safetensors import SafetensorError

    if not path.is_file():
        raise LeukoscopeError(f"{path}: no such weights file; give a .safetensors file")
    try:
        return load_file(path)
    except SafetensorError as error:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise LeukoscopeError(
                    f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull`"
                ) from None
        raise LeukoscopeError(f"{path}: not a whole safetensors file ({error}); download or copy it again") from None
    except OSError as error:
        raise LeukoscopeError(f"{path}: cannot be read ({error.strerror or error}); check who may read it") from None


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@contextmanager
def edit_release(source: Path, target: Path | None = None) -> Iterator[Path]:
    """Yield a copy of a release to be changed, which replaces `target` (or `source` itself) at the end.

    Where the disk refuses, that is an error, and `target` is as it was.
    """
    with atomic_release(target or source) as folder:
        shutil.copytree(source, folder)
        yield folder


@contextmanager
def atomic_release(target: Path) -> Iterator[Path]:
    problem = f"{target}: the release cannot be written there"
    with disk_errors(problem, "name another folder"), atomic_folder(target) as folder:
        yield folder
