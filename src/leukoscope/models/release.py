"""A release: one directory in Hub format that timm, transformers' `pipeline()` and Leukoscope all load.

config.json holds the labels and the preprocessing, model.safetensors the backbone in half precision (computed with in
float32) and the small classifier in full, metrics.json how far to trust them. A release holds data only: its network
is one of timm's, and it contains no code. A local folder and a Hub repository hold exactly the same files.

`read_release` reads all but the weights, without torch; `load_release` loads the network as well.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.preprocessing import MAX_INPUT, Preprocessing
from leukoscope.data.registry import EMPTY_SLIDE_RGB, trained_on
from leukoscope.files import LFS_POINTER, atomic_folder, disk_errors, embedded_releases, restore_replaced, write_atomic

if TYPE_CHECKING:
    import torch
    from torch import nn

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
# Of numbers: a network this much larger than its weights is refused before it is built.
_MAX_EXCESS = 50_000_000
# Arguments of timm's builders that a config.json may give, and what may be given.
_MODEL_ARGS: dict[str, Callable[[Any], bool]] = {
    "block_config": lambda value: (
        isinstance(value, list)
        and 1 <= len(value) <= 4
        and all(type(layers) is int and 1 <= layers <= 64 for layers in value)
    ),
    "drop_path_rate": lambda value: isinstance(value, int | float) and 0 <= value < 1,
    "drop_rate": lambda value: isinstance(value, int | float) and 0 <= value < 1,
    "global_pool": lambda value: isinstance(value, str),
    "img_size": lambda value: isinstance(value, int) and 1 <= value <= MAX_INPUT,
    "in_chans": lambda value: value == 3,
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

    return _loaded(path, load_file)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; another format, pickle above all, or a missing or damaged file is refused."""
    from safetensors.torch import load_file

    if path.is_file() and path.suffix != ".safetensors":
        raise LeukoscopeError(
            f"{path}: is a {path.suffix or 'nameless'} file; only .safetensors is read: pickled weights can run code"
        )
    return _loaded(path, load_file)


def _loaded(path: Path, load_file: Callable[[Path], dict[str, _Tensor]]) -> dict[str, _Tensor]:
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


# With the network


@dataclass(frozen=True)
class Release(ReleaseInfo):
    """A loaded release; its `network` is the timm model in eval mode, float32, channels-last."""

    network: nn.Module = field(kw_only=True)


def is_timm_model(network: nn.Module) -> bool:
    """Whether timm alone builds this network, so that a release can hold it."""
    return type(network).__module__.startswith("timm.")


def save_release(
    directory: str | Path,
    network: nn.Module,
    *,
    architecture: str,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    metrics: Mapping[str, Any],
    description: str = "",
    model_args: Mapping[str, Any] | None = None,
) -> Path:
    """Write a release directory, completely or not at all.

    Args:
        network: a timm model, which `timm.create_model` builds from `architecture` and `model_args`.

    Raises:
        LeukoscopeError: another network than timm's, the number of labels is not the number of outputs, or the disk
            refuses.
    """
    target, outputs = Path(directory), network.num_classes
    if not is_timm_model(network):
        raise LeukoscopeError(
            f"{target}: {type(network).__name__} is no timm model; a release contains no code, so that nothing could "
            "load it"
        )
    if outputs != len(labels):
        raise LeukoscopeError(
            f"{target}: {len(labels)} labels for a head with {outputs} outputs; give one label an output"
        )
    source: Any = network.pretrained_cfg
    config = {
        "architecture": architecture,
        # Not in model_args: transformers would pass it twice.
        "num_classes": len(labels),
        "num_features": network.num_features,
        "label_names": list(labels),
        # Makes `pipeline()` compute in float32 from half-precision files.
        "dtype": "float32",
        "pretrained_cfg": {
            **preprocessing.to_pretrained_cfg(),
            "tag": "leukoscope",
            "custom_load": False,
            "num_classes": len(labels),
            "pool_size": None,
            # To timm: the size is an argument of the model.
            "fixed_input_size": bool(source.get("fixed_input_size")),
            "first_conv": source.get("first_conv"),
            "classifier": source["classifier"],
            "description": description,
        },
    }
    if model_args:
        config["model_args"] = dict(model_args)
    with _atomic_release(target) as folder:
        folder.mkdir(parents=True)
        save_weights(network, folder)
        # A rounded crop_pct would resize to a pixel less than training did.
        write_json(folder / CONFIG, config, exact=True)
        write_json(folder / METRICS, metrics)
    return target


def save_weights(network: nn.Module, directory: Path) -> None:
    """Write model.safetensors into a release's folder; `OSError` or `SafetensorError` where the disk refuses."""
    from safetensors.torch import save_file

    halved = _stored_halved(network)
    tensors = {
        name: (tensor.half() if name in halved else tensor).contiguous().cpu()
        for name, tensor in network.state_dict().items()
    }
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors leaves the file readable by its owner alone


@contextmanager
def edit_release(source: Path, target: Path | None = None) -> Iterator[Path]:
    """Yield a copy of a release to be changed, which replaces `target` (or `source` itself) at the end.

    Where the disk refuses, that is an error, and `target` is as it was.
    """
    with _atomic_release(target or source) as folder:
        shutil.copytree(source, folder)
        yield folder


@contextmanager
def _atomic_release(target: Path) -> Iterator[Path]:
    problem = f"{target}: the release cannot be written there"
    with disk_errors(problem, "name another folder"), atomic_folder(target) as folder:
        yield folder


def rescale_classifier(network: nn.Module, temperature: float) -> nn.Module:
    """Fold a temperature into the last linear layer, in place: its plain softmax is then calibrated everywhere.

    Temperature scaling divides the logits by T (Guo et al. 2017), and a linear layer of W/T and b/T gives just those.
    T must be positive.
    """
    if not 0 < temperature < math.inf:
        raise LeukoscopeError(f"temperature {temperature}: not a positive number; fit it on out-of-fold predictions")
    import torch

    from leukoscope.models.layers import classifier_parameters

    with torch.no_grad():
        for parameter in classifier_parameters(network):
            parameter.div_(temperature)
    return network


def load_release(release: str | Path | ReleaseInfo, *, name: str = "", revision: str = "") -> Release:
    """Load a release with its network; arguments as of `read_release`, or what that read.

    Raises:
        LeukoscopeError: no such folder, a file missing or damaged, labels that do not match the head, an
            architecture timm does not know, or pickle-only weights.
    """
    import torch

    info = release if isinstance(release, ReleaseInfo) else read_release(release, name=name, revision=revision)
    assert info.folder is not None
    root, config = info.folder, info.config
    if not (root / WEIGHTS).exists() and (pickles := [path.name for path in root.glob("*.bin")]):
        raise LeukoscopeError(
            f"{root}: holds only {pickles[0]}; pickled weights can run code and are never loaded — convert to "
            "safetensors"
        )
    tensors = read_safetensors(root / WEIGHTS)
    for name, tensor in tensors.items():
        # A single one makes every probability NaN. The sum of finite numbers of any release is finite in float64.
        if tensor.is_floating_point() and not math.isfinite(float(tensor.sum(dtype=torch.float64))):
            raise LeukoscopeError(
                f"{root / WEIGHTS}: damaged ({name} holds numbers that are not finite); restore it from the release"
            )
    _require_as_large(root, config, sum(tensor.numel() for tensor in tensors.values()))
    network = _network(root, config)
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise LeukoscopeError(
            f"{root / WEIGHTS}: not the weights of {config['architecture']} with {len(info.labels)} labels ({first}); "
            "restore config.json and model.safetensors from one release"
        ) from None
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Release(**(vars(info) | {"network": network}))


def round_as_stored(network: nn.Module, *, head: bool = True) -> None:
    """Round weights in place to what the release will hold, so that this is measured; `head`: the head's too."""
    import torch

    from leukoscope.models.layers import head_parameters

    state, new = network.state_dict(), set() if head else {id(parameter) for parameter in head_parameters(network)}
    spared = {name for name, parameter in network.named_parameters() if id(parameter) in new}
    with torch.no_grad():
        for name in _stored_halved(network) - spared:
            state[name].copy_(state[name].half())


def _stored_halved(network: nn.Module) -> set[str]:
    """The names of the tensors that are stored in half precision.

    BatchNorm statistics stay float32, since running variances can leave half precision's range, and so does the
    classifier, a few kilobytes, since a temperature folded into it would be rounded away.
    """
    from leukoscope.models.layers import classifier_parameters

    whole = {id(parameter) for parameter in classifier_parameters(network)}
    kept = {name for name, parameter in network.named_parameters() if id(parameter) in whole}
    state = network.state_dict().items()
    return {name for name, v in state if v.is_floating_point() and "running_" not in name and name not in kept}


def _require_as_large(root: Path, config: Mapping[str, Any], given: int) -> None:
    """Refuse a config.json whose network is far larger than the weights beside it, before it takes any memory."""
    import timm  # noqa: F401 - on the meta device, torch 2.6 could not import what timm needs
    import torch

    with torch.device("meta"):
        try:
            planned = sum(tensor.numel() for tensor in _network(root, config).state_dict().values())
        except (NotImplementedError, RuntimeError):
            return  # a network that cannot be planned without numbers
    if planned > given + _MAX_EXCESS:
        raise LeukoscopeError(
            f"{root / CONFIG}: {config['architecture']} has {planned:,} numbers, {WEIGHTS} beside it {given:,}; "
            "restore both from one release"
        )


def _network(root: Path, config: Mapping[str, Any]) -> nn.Module:
    """The network of a config.json with random weights."""
    import timm

    if not timm.is_model(config["architecture"]):
        raise LeukoscopeError(f"{root / CONFIG}: timm has no architecture {config['architecture']!r}; update timm")
    # timm's own exports name the number of classes there as well.
    given = config.get("model_args") or {}
    if not isinstance(given, dict):
        raise LeukoscopeError(
            f"{root / CONFIG}: model_args is {reprlib.repr(given)}, not values by name; restore it from the release"
        )
    model_args = {key: value for key, value in given.items() if key != "num_classes"}
    for key, value in model_args.items():
        # Any other could read files or build a network of any size.
        if key not in _MODEL_ARGS or not _MODEL_ARGS[key](value):
            raise LeukoscopeError(
                f"{root / CONFIG}: model_args.{key} is {reprlib.repr(value)}; only {', '.join(_MODEL_ARGS)} are read, "
                "within their bounds — leave it out, or open the model with timm"
            )
    try:
        return timm.create_model(
            config["architecture"], pretrained=False, num_classes=config["num_classes"], **model_args
        )
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise LeukoscopeError(
            f"{root / CONFIG}: {config['architecture']} cannot be built with its model_args ({error}); restore it from "
            "the release"
        ) from None
