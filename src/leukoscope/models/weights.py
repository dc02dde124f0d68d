"""The weights of a release: load its network, and save one as a release.

model.safetensors holds the backbone in half precision (computed with in float32) and the small classifier in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from leukoscope import ConfigError, ReleaseError
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.models.metrics import Metrics
from leukoscope.models.release import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ReleaseInfo,
    atomic_release,
    open_safetensors,
    read_release,
    require_undamaged,
    write_json,
    write_metrics,
)

if TYPE_CHECKING:  # a Space holds no recipes
    from leukoscope.models.recipes import Recipe


TIMM_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What timm raises for arguments, pictures and weights that a network does not take."""


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
    metrics: Metrics,
    description: str = "",
    model_args: Mapping[str, Any] | None = None,
) -> Path:
    """Write a release directory of a network that timm builds from `architecture` and `model_args`, or nothing.

    Raises:
        LeukoscopeError: the disk refuses.
    """
    target = Path(directory)
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
    with atomic_release(target) as folder:
        folder.mkdir(parents=True)
        save_weights(network, folder)
        # A rounded crop_pct would resize to a pixel less than training did.
        write_json(folder / CONFIG_FILE, config, exact=True)
        write_metrics(folder, metrics)
    return target


def save_weights(network: nn.Module, directory: Path) -> None:
    """Write model.safetensors into a release's folder; `OSError` or `SafetensorError` where the disk refuses."""
    state = network.state_dict()
    halved = {name: state[name].half() for name in _stored_halved(network)}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in (state | halved).items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves the file readable by its owner alone


def rescale_classifier(network: nn.Module, temperature: float) -> nn.Module:
    """Fold a temperature into the last linear layer, in place: its plain softmax is then calibrated everywhere.

    Temperature scaling divides the logits by T (Guo et al. 2017), and a linear layer of W/T and b/T gives just those.
    T must be positive.
    """
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature {temperature}: not a positive number; fit it on out-of-fold predictions")
    with torch.no_grad():
        for parameter in classifier_parameters(network):
            parameter.div_(temperature)
    return network


def training_frequencies(recipe: Recipe, class_counts: torch.Tensor) -> torch.Tensor:
    """(K,) class frequencies that a network assumes after training: equal, or those of the cells."""
    if recipe.class_weighted or recipe.sampling != "cells":
        class_counts = torch.ones_like(class_counts)
    return _sum_to_one(class_counts)


def output_frequencies(flag_words: Sequence[str], labels: Sequence[str], class_counts: torch.Tensor) -> torch.Tensor:
    """Compute the (K,) class frequencies that a release's probabilities assume, from --class_frequencies.

    Empty stands for "equal" with two classes, and for "data", the (K,) `class_counts` of training cells, with more.

    Raises:
        ConfigError: a class that is unknown, missing or given twice, or a share that is not above 0.
    """
    default = "equal" if len(labels) == 2 else "data"
    words = list(flag_words) or [default]
    if words == ["equal"]:
        return _sum_to_one(torch.ones_like(class_counts))
    if words == ["data"]:
        return _sum_to_one(class_counts)
    share_of = dict(word.rpartition("=")[::2] for word in words)
    with suppress(KeyError, ValueError):
        shares = [float(share_of[label]) for label in labels]
        if len(words) == len(labels) and all(0 < share < math.inf for share in shares):
            return _sum_to_one(torch.tensor(shares))
    raise ConfigError(
        f"--class_frequencies {' '.join(words)}: give equal, data, or a share above 0 for each class once: "
        + " ".join(f"{label}={1 / len(labels):.2g}" for label in labels)
    )


def shift_class_frequencies(network: nn.Module, before: torch.Tensor, after: torch.Tensor) -> None:
    """Make a network's probabilities assume the (K,) class frequencies `after` instead of `before`.

    The logarithm of their ratio is added to the last bias, which is exact where classes look the same at any frequency
    (Saerens et al. 2002, doi:10.1162/089976602753284446).
    """
    shift = torch.log(after / before)
    with torch.no_grad():
        # timm's distilled networks have two last layers and predict the mean of both.
        for bias in (parameter for parameter in classifier_parameters(network) if parameter.ndim == 1):
            bias.add_((shift - shift.mean()).to(bias.device))


def _sum_to_one(counts: torch.Tensor) -> torch.Tensor:
    return counts / counts.sum()


def load_release(release: str | Path | ReleaseInfo, *, name: str = "", revision: str = "") -> Release:
    """Load a release with its network; arguments as of `read_release`, or what that read.

    Raises:
        ReleaseError: no such folder, a file missing or damaged, labels that do not match the head, an
            architecture timm does not know, or no safetensors.
    """
    if not isinstance(release, ReleaseInfo):
        release = read_release(release, name=name, revision=revision)
    assert release.folder is not None
    root = release.folder
    config = release.config
    require_undamaged(root, release.metrics)  # they may have changed since it was read
    state = in_float32(open_safetensors(root / WEIGHTS_FILE, load_file))
    try:
        # First without memory, which a config.json of a far larger network would use up.
        with torch.device("meta"):
            _network(root, config).load_state_dict(state, assign=True)
        network = _network(root, config)
        network.load_state_dict(state)
    except RuntimeError as error:
        # The first line only says that loading failed.
        problem = "".join(str(error).splitlines()[1:2]).strip() or str(error)
        raise ReleaseError(
            f"{root / WEIGHTS_FILE}: not the weights of {config['architecture']} with {len(release.labels)} labels "
            f"({problem}); restore config.json and model.safetensors from one release"
        ) from None
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Release(**{**vars(release), "network": network})


def in_float32(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by name, those of floating point in float32."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def round_as_stored(network: nn.Module, *, head: bool = True) -> None:
    """Round weights in place to what the release will hold, so that what is measured is what is released.

    Without `head`, those of the head stay as they are.
    """
    state = network.state_dict()
    not_rounded: tuple[str, ...] = ()
    if not head:
        not_rounded = prefixes(head_names(network))
    with torch.no_grad():
        for name in _stored_halved(network):
            if not name.startswith(not_rounded):
                state[name].copy_(state[name].half())


def _stored_halved(network: nn.Module) -> list[str]:
    """The names of the tensors that are stored in half precision.

    BatchNorm statistics stay float32, since running variances can leave half precision's range, and so does the
    classifier, a few kilobytes, since a temperature folded into it would be rounded away.
    """
    classifier = prefixes(classifier_names(network))
    names = []
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and "running_" not in name and not name.startswith(classifier):
            names.append(name)
    return names


def _network(root: Path, config: Mapping[str, Any]) -> nn.Module:
    """The network of a config.json with random weights."""
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise ReleaseError(f"{root / CONFIG_FILE}: timm has no architecture {architecture!r}; update timm")
    # timm's own exports name the number of classes there as well.
    arguments = {**(config.get("model_args") or {}), "num_classes": config["num_classes"]}
    try:
        return timm.create_model(architecture, pretrained=False, **arguments)
    except TIMM_ERRORS as error:
        raise ReleaseError(
            f"{root / CONFIG_FILE}: {architecture} cannot be built with its model_args ({error}); restore it from "
            "the release"
        ) from None


# Which parameters are the last layer, the head and the backbone


def classifier_names(network: nn.Module) -> list[str]:
    """The names of the last linear layer; timm's distilled networks have two."""
    names = network.pretrained_cfg["classifier"]  # type: ignore[index]
    if isinstance(names, str):
        return [names]
    return list(names)


def classifier_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the last linear layer."""
    return [parameter for name in classifier_names(network) for parameter in network.get_submodule(name).parameters()]


def head_names(network: Any) -> list[str]:
    """The names of what follows the pooled features: the last linear layer, and what else is new in front of it."""
    modules = network.get_classifier()
    if not isinstance(modules, tuple):
        modules = (modules,)
    ids = set(map(id, modules))
    return [name for name, module in network.named_modules() if id(module) in ids]


def prefixes(modules: Iterable[str]) -> tuple[str, ...]:
    """How the names of the tensors of these modules begin, for `str.startswith`."""
    return tuple(f"{name}." for name in modules)


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are new in a network with pretrained weights."""
    return [parameter for name in head_names(network) for parameter in network.get_submodule(name).parameters()]


def backbone_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and statistics of all but the head, by name."""
    head = prefixes(head_names(network))
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(head)}


def freeze(network: nn.Module, frozen: Sequence[str]) -> None:
    """Keep the weights and statistics of what a recipe's `frozen` names; called after `network.train()`.

    "backbone" is all but the head.
    """
    if "backbone" not in frozen:
        for name in frozen:
            network.get_submodule(name).requires_grad_(False).eval()
        return
    head = prefixes(head_names(network))
    # Parameter by parameter: some, such as a vision transformer's position embedding, belong to no module inside.
    for name, parameter in network.named_parameters():
        if not name.startswith(head):
            parameter.requires_grad_(False)
    for name, module in network.named_modules():
        prefix = f"{name}."
        holds_head = any(of_head.startswith(prefix) for of_head in head)
        if name and not holds_head and not prefix.startswith(head):
            module.eval()
