"""A release: one directory in Hub format that timm, transformers' `pipeline()` and Leukoscope all load alike.

config.json carries the labels and the preprocessing, model.safetensors the backbone in half precision (computed with
in float32) and the small classifier in full, metrics.json how far to trust them. A network that timm does not know
brings its code along for transformers (`trust_remote_code=True`); Leukoscope itself never runs code from a release. A
local folder and a Hub repository hold exactly the same files.
"""

from __future__ import annotations

import math
import reprlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.cells.files import appearing_whole
from leukoscope.cells.preprocessing import MAX_INPUT, Preprocessing
from leukoscope.models.build import classifier_parameters, read_safetensors
from leukoscope.models.release_code import NETWORK, code_config, needs_code, network_of, save_code
from leukoscope.models.release_files import CONFIG, METRICS, WEIGHTS, ReleaseInfo, read_config, read_release, write_json
from leukoscope.models.remote.networks import OwnNetwork

# Of numbers: a network this much larger than its weights is refused before it is built.
_MOST_BEYOND_WEIGHTS = 50_000_000
# Arguments of timm's builders that a config.json may give, and what may be given.
_MODEL_ARGS: dict[str, Callable[[Any], bool]] = {
    "drop_path_rate": lambda value: isinstance(value, int | float) and 0 <= value < 1,
    "drop_rate": lambda value: isinstance(value, int | float) and 0 <= value < 1,
    "global_pool": lambda value: isinstance(value, str),
    "img_size": lambda value: isinstance(value, int) and 1 <= value <= MAX_INPUT,
    "in_chans": lambda value: value == 3,
}


@dataclass(frozen=True)
class Release(ReleaseInfo):
    """A loaded release.

    Attributes:
        network: the timm model or `OwnNetwork` in eval mode, float32, channels-last.
    """

    network: nn.Module = field(kw_only=True)


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
    if preprocessing.framing != "picture" and not isinstance(network, OwnNetwork):
        raise LeukoscopeError(
            f"{target}: timm frames no cell, so that plain pipeline() would show this network other pixels than "
            "training did; give the recipe a head of its own (--override head.pooling=avg), whose release brings code"
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


def load_release(directory: str | Path, *, name: str = "", revision: str = "") -> Release:
    """Load a release directory.

    Args:
        directory: a local folder in Hub format.
        name, revision: what to call it, when the folder is a cached Hub snapshot.

    Raises:
        LeukoscopeError: no such folder, a file missing or damaged, labels that do not match the head, an
            architecture timm does not know, or pickle-only weights.
    """
    root, info = Path(directory), read_release(directory, name=name, revision=revision)
    config = read_config(root)
    tensors = _read_weights(root)
    _require_as_large(root, config, len(info.labels), sum(tensor.numel() for tensor in tensors.values()))
    network = _network(root, config, len(info.labels))
    if needs_code(config):
        tensors = {k.removeprefix(NETWORK): v for k, v in tensors.items()}
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise LeukoscopeError(
            f"{root / WEIGHTS}: not the weights of {config['architecture']} with {len(info.labels)} labels ({first}); "
            "restore config.json and model.safetensors from one release"
        ) from None
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Release(**vars(info), network=network)


def _stored_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """What model.safetensors holds.

    BatchNorm statistics stay float32, since running variances can leave half precision's range, and so does the
    classifier, a few kilobytes, since a temperature folded into it would be rounded away.
    """
    halved = _stored_halved(network)
    tensors = {k: (v.half() if k in halved else v).contiguous().cpu() for k, v in network.state_dict().items()}
    return {NETWORK + k: v for k, v in tensors.items()} if isinstance(network, OwnNetwork) else tensors


def round_as_stored(network: nn.Module) -> None:
    """Round a network's weights, in place, to what its release will hold: what is measured is then what is released."""
    state = network.state_dict()
    with torch.no_grad():
        for name in _stored_halved(network):
            state[name].copy_(state[name].half())


def _stored_halved(network: nn.Module) -> set[str]:
    """The names of the tensors that are stored in half precision."""
    whole = {id(parameter) for parameter in classifier_parameters(network)}
    kept = {name for name, parameter in network.named_parameters() if id(parameter) in whole}
    state = network.state_dict().items()
    return {name for name, v in state if v.is_floating_point() and "running_" not in name and name not in kept}


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


def _read_weights(root: Path) -> dict[str, torch.Tensor]:
    if not (root / WEIGHTS).exists() and (pickles := [p.name for p in root.glob("*.bin")]):
        raise LeukoscopeError(
            f"{root}: holds only {pickles[0]}; pickled weights can run code and are never loaded — "
            "convert to safetensors"
        )
    return read_safetensors(root / WEIGHTS)


def _require_as_large(root: Path, config: Mapping[str, Any], num_classes: int, given: int) -> None:
    """Refuse a config.json whose network is far larger than the weights beside it, before it takes any memory."""
    with torch.device("meta"):
        try:
            planned = sum(tensor.numel() for tensor in _network(root, config, num_classes).state_dict().values())
        except (NotImplementedError, RuntimeError):
            return  # a network that cannot be planned without numbers
    if planned > given + _MOST_BEYOND_WEIGHTS:
        raise LeukoscopeError(
            f"{root / CONFIG}: {config['architecture']} has {planned:,} numbers, {WEIGHTS} beside it {given:,}; "
            "restore both from one release"
        )


def _network(root: Path, config: Mapping[str, Any], num_classes: int) -> nn.Module:
    if needs_code(config):
        return network_of(config, root / CONFIG)
    import timm

    if not timm.is_model(config["architecture"]):
        raise LeukoscopeError(f"{root / CONFIG}: timm has no architecture {config['architecture']!r}; update timm")
    # timm's own exports name the number of classes there as well.
    model_args = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    for key, value in model_args.items():
        # Any other could read files or build a network of any size.
        if key not in _MODEL_ARGS or not _MODEL_ARGS[key](value):
            raise LeukoscopeError(
                f"{root / CONFIG}: model_args.{key} is {reprlib.repr(value)}; only {', '.join(_MODEL_ARGS)} are read, "
                "within their bounds — leave it out, or open the model with timm"
            )
    try:
        return timm.create_model(config["architecture"], pretrained=False, num_classes=num_classes, **model_args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LeukoscopeError(
            f"{root / CONFIG}: {config['architecture']} cannot be built with its model_args ({error}); restore it from "
            "the release"
        ) from None
