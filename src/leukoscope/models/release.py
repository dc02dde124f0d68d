"""A release: one directory in Hub format that timm, transformers' `pipeline()` and Leukoscope all load alike.

config.json carries the labels and the preprocessing, model.safetensors the backbone in half precision (computed with
in float32) and the small classifier in full, metrics.json how far to trust them. A network that timm does not know
brings its code along for transformers (`trust_remote_code=True`); Leukoscope itself never runs code from a release. A
local folder and a Hub repository hold exactly the same files.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.cells.files import appearing_whole, write_whole
from leukoscope.cells.transforms import Preprocessing
from leukoscope.models.build import classifier_parameters, read_safetensors
from leukoscope.models.release_code import NETWORK, code_config, needs_code, network_of, save_code
from leukoscope.models.remote.networks import OwnNetwork

SCHEMA_VERSION = 2  # of metrics.json; metrics.schema.json beside this file says what stands in it
CONFIG, WEIGHTS, METRICS, CARD = "config.json", "model.safetensors", "metrics.json", "README.md"
PREDICTIONS = "predictions"  # folder of a protocol's answers, one Parquet file an evaluation; no pixels
FIGURES = "figures"  # pictures of the card
GUARD = "guard.safetensors"  # may be missing: releases made elsewhere, or before their cells were at hand


@dataclass(frozen=True)
class Release:
    """A loaded release.

    Attributes:
        network: the timm model or `OwnNetwork` in eval mode, float32, channels-last.
        labels: class names in the order of the network's outputs.
        preprocessing: how a picture must be shown to it.
        metrics: the content of metrics.json ({} where a foreign model has none).
        name: the directory or Hub id it came from.
        revision: Hub commit, or "" for a local folder.
        folder: where its files lie on this machine; None for a network that was never saved.
    """

    network: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: Mapping[str, Any]
    name: str
    revision: str = ""
    folder: Path | None = None


def save_release(
    directory: str | Path,
    network: nn.Module,
    *,
    architecture: str,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    metrics: Mapping[str, Any],
    description: str = "",
) -> Path:
    """Write a release directory; it appears whole or not at all.

    Args:
        network: a timm model with its own head, or an `OwnNetwork`, whose code is saved beside it.
        architecture: its name, of the backbone where the head is its own.

    Raises:
        LeukoscopeError: the number of labels is not the number of outputs, or the disk refuses.
    """
    target = Path(directory)
    outputs = network.num_classes
    if outputs != len(labels):
        raise LeukoscopeError(
            f"{target}: {len(labels)} labels for a head with {outputs} outputs; give one label an output"
        )
    with _release_appearing(target) as aside:
        aside.mkdir(parents=True)
        save_weights(network, aside)
        # A rounded crop_pct would resize to a pixel less than training did.
        write_json(aside / CONFIG, _config(network, architecture, labels, preprocessing, description), exact=True)
        write_json(aside / METRICS, metrics)
        if isinstance(network, OwnNetwork):
            save_code(aside, preprocessing)
    return target


def save_weights(network: nn.Module, directory: Path) -> None:
    """Write model.safetensors into a release's folder.

    Raises:
        OSError, SafetensorError: the disk refuses.
    """
    from safetensors.torch import save_file

    save_file(_stored_tensors(network), directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors leaves the file readable by its owner alone


@contextmanager
def rewritten(source: Path, target: Path | None = None) -> Iterator[Path]:
    """A copy of a release to be changed, which takes the place of `target` (of `source` itself) when all went well.

    Raises:
        LeukoscopeError: the disk refuses; `target` is then as it was.
    """
    with _release_appearing(target or source) as aside:
        shutil.copytree(source, aside)
        yield aside


@contextmanager
def _release_appearing(target: Path) -> Iterator[Path]:
    """A release's folder to be made, which takes the place of `target` when all went well."""
    from safetensors import SafetensorError

    try:
        with appearing_whole(target) as aside:
            yield aside
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LeukoscopeError(f"{target}: the release cannot be written there ({reason}); free some space") from None


def rescale_classifier(network: nn.Module, temperature: float) -> nn.Module:
    """Fold a temperature into the last linear layer, W/T and b/T: its plain softmax is then calibrated everywhere.

    Temperature scaling divides the logits by T (Guo et al. 2017), and a linear layer gives just that divided logit.

    Args:
        network: as `build_network` makes it; it is changed in place.
        temperature: above 0; 1 changes nothing.

    Returns:
        `network`.

    Raises:
        LeukoscopeError: a temperature that is no positive number.
    """
    if not 0 < temperature < math.inf:
        raise LeukoscopeError(f"temperature {temperature}: not a positive number; fit it on out-of-fold answers")
    with torch.no_grad():
        for parameter in classifier_parameters(network):
            parameter.div_(temperature)
    return network


def write_json(path: Path, content: Mapping[str, Any], *, exact: bool = False) -> None:
    """Write JSON aside, then rename; unless `exact`, floats keep six significant digits, more would be noise."""
    write_whole(path, json.dumps(content if exact else _rounded(content), indent=1, ensure_ascii=False) + "\n")


def load_release(directory: str | Path, *, name: str = "", revision: str = "") -> Release:
    """Load a release directory.

    Args:
        directory: a local folder in Hub format.
        name, revision: what to call it, when the folder is a cached Hub snapshot.

    Raises:
        LeukoscopeError: no such folder, a file missing or damaged, labels that do not match the head, an
            architecture timm does not know, or pickle-only weights.
    """
    root = Path(directory)
    config = _read_config(root)
    labels = tuple(config["label_names"])
    preprocessing = _preprocessing(root, config["pretrained_cfg"])
    tensors = _read_weights(root)
    network = _network(root, config, len(labels))
    if needs_code(config):
        tensors = {k.removeprefix(NETWORK): v for k, v in tensors.items()}
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise LeukoscopeError(
            f"{root / WEIGHTS}: not the weights of {config['architecture']} with {len(labels)} labels ({first}); "
            "restore config.json and model.safetensors from one release"
        ) from None
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Release(network, labels, preprocessing, read_metrics(root), name or str(root), revision, root)


def folder_name(release: Path) -> str:
    """What a local release is called: its folder's name; a run folder's `release` is called by the run."""
    folder = release.resolve()
    return folder.parent.name if folder.name == "release" else folder.name


def read_metrics(root: Path) -> dict[str, Any]:
    """The release's metrics.json, {} where there is none."""
    path = root / METRICS
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise LeukoscopeError(f"{path}: damaged ({error}); restore it from the release") from None


def _stored_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """What model.safetensors holds.

    BatchNorm statistics stay float32, since running variances can leave half precision's range, and so does the
    classifier, a few kilobytes, since a temperature folded into it would be rounded away.
    """
    whole = {id(parameter) for parameter in classifier_parameters(network)}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in whole}
    tensors = {
        k: (v.half() if v.is_floating_point() and "running_" not in k and k not in names else v).contiguous().cpu()
        for k, v in network.state_dict().items()
    }
    return {NETWORK + k: v for k, v in tensors.items()} if isinstance(network, OwnNetwork) else tensors


def _config(
    network: nn.Module, architecture: str, labels: Sequence[str], preprocessing: Preprocessing, description: str
) -> dict[str, Any]:
    """config.json as timm and transformers read it.

    `num_classes` must not stand in `model_args` (transformers would pass it twice), and "dtype" makes `pipeline()`
    compute in float32 from half-precision files.
    """
    cfg: Any = network.pretrained_cfg
    config = {
        "architecture": architecture,
        "num_classes": len(labels),
        "num_features": network.num_features,
        "label_names": list(labels),
        "dtype": "float32",
        "pretrained_cfg": {
            **preprocessing.to_pretrained_cfg(),
            "tag": "leukoscope",
            "custom_load": False,
            "num_classes": len(labels),
            "pool_size": None,
            "first_conv": cfg["first_conv"],
            "classifier": cfg["classifier"],
            "description": description,
        },
    }
    return config | code_config(network, labels) if isinstance(network, OwnNetwork) else config


def _read_config(root: Path) -> dict[str, Any]:
    path = root / CONFIG
    if not root.is_dir():
        raise LeukoscopeError(f"{root}: no such model folder; give a release folder or a Hub id like owner/name")
    if not path.is_file():
        raise LeukoscopeError(f"{root}: has no config.json; give the folder of a release")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
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
    return config


def _preprocessing(root: Path, cfg: Mapping[str, Any]) -> Preprocessing:
    try:
        return Preprocessing.from_pretrained_cfg(cfg)
    except (KeyError, TypeError, IndexError) as error:
        raise LeukoscopeError(
            f"{root / CONFIG}: pretrained_cfg does not say how to prepare a picture ({error}); restore it"
        ) from None


def _read_weights(root: Path) -> dict[str, torch.Tensor]:
    if not (root / WEIGHTS).exists() and (pickles := [p.name for p in root.glob("*.bin")]):
        raise LeukoscopeError(
            f"{root}: holds only {pickles[0]}; pickled weights can run code and are never loaded — "
            "convert to safetensors"
        )
    return read_safetensors(root / WEIGHTS)


def _network(root: Path, config: Mapping[str, Any], num_classes: int) -> nn.Module:
    if needs_code(config):
        return network_of(config, root / CONFIG)
    import timm

    if not timm.is_model(config["architecture"]):
        raise LeukoscopeError(f"{root / CONFIG}: timm has no architecture {config['architecture']!r}; update timm")
    # timm's own exports name the number of classes there as well.
    model_args = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    try:
        return timm.create_model(config["architecture"], pretrained=False, num_classes=num_classes, **model_args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LeukoscopeError(
            f"{root / CONFIG}: {config['architecture']} cannot be built with its model_args ({error}); restore it from "
            "the release"
        ) from None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value
