"""Build a recipe's network and load its start weights.

Start weights come from a safetensors file, from the Hub, or not at all (metrics.json records which). A file made for
another architecture is refused by name and shape; tensors that it lacks must be declared, or the network would start
half random without anyone knowing.
"""

from __future__ import annotations

import fnmatch
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file
from scipy.optimize import linprog
from timm.models import get_pretrained_cfg
from torch import nn

from leukoscope import ConfigError, ReleaseError
from leukoscope.files import first_line
from leukoscope.models.recipes import TIMM, Recipe
from leukoscope.models.release import WEIGHTS_FILE, open_safetensors
from leukoscope.models.weights import (
    TIMM_ERRORS,
    backbone_state,
    classifier_names,
    classifier_parameters,
    head_names,
    in_float32,
    prefixes,
)

# Names of start weights in metrics.json; the Hub's repository follows the second.
FROM_SCRATCH = "random initialisation (no pretrained weights)"
FROM_HUB = "pretrained weights "
_LEAST_LIFT = 6.0  # in standard deviations of a channel over places
_BEYOND_SEEN = 1.5  # how many times the largest deviation seen the lift is
_TOLERANCE = 1e-3  # largest difference between the logits of both networks
# Inception's auxiliary classifier, which steadied its first training; published files hold it, networks here lack it.
_AUXILIARY = "AuxLogits."
_LAST_NORM = "features.norm5."  # of a DenseNet


@dataclass(frozen=True)
class StartWeights:
    """Where a network starts from.

    Attributes:
        file: a safetensors file in timm's tensor names; None downloads `recipe.base_model` from the Hub.
        name: what the weights truly are, for the card; defaults to the file's name.
        may_miss: patterns (`blocks.6.1.conv_*`) of tensors the file is known to lack.
        from_scratch: start from random weights, without a download.
    """

    file: Path | None = None
    name: str = ""
    may_miss: tuple[str, ...] = ()
    from_scratch: bool = False


@dataclass(frozen=True)
class NetworkStart:
    """What a network starts from, and what follows from it.

    Attributes:
        name: what its weights truly are, for the card.
        remarks, notes: one line each, for a person; notes weaken the run's metrics and belong to the split.
        provenance: for the "training" block of metrics.json; {} unless a release is fine-tuned.
    """

    name: str
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


def build_network(recipe: Recipe, num_classes: int, create: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The recipe's network with random weights, in channels-last memory, made by `timm.create_model` or its like.

    A model of timm that takes no image of this size, or not this recipe's arguments, is an error.
    """
    if create is None:
        create = pooled_norm_densenet if recipe.pooled_norm else timm.create_model
    arguments: dict[str, Any] = {"drop_rate": recipe.drop_rate}
    if recipe.drop_path_rate:  # DenseNet takes no drop_path_rate at all
        arguments["drop_path_rate"] = recipe.drop_path_rate
    try:
        arguments |= model_args(recipe)
        network: Any = create(recipe.architecture, num_classes=num_classes, **arguments)
        if not network.pretrained_cfg.get("classifier"):
            raise ValueError("it has no last layer that gives classes")
        patch = int(np.max(getattr(getattr(network, "patch_embed", None), "patch_size", 1)))
        if recipe.image_size % patch:
            raise ValueError(f"its patches are {patch} px wide: the size must be a multiple of that")
        with torch.inference_mode():  # an empty picture, to find out whether the network accepts its size
            network.eval()(torch.zeros(1, 3, recipe.image_size, recipe.image_size))
    except TIMM_ERRORS as error:
        raise ConfigError(
            f"{recipe.name}: cannot be built for pictures of {recipe.image_size} px ({first_line(error)}); give "
            "another --image_size, or leave out what --override changes"
        ) from None
    # timm initialises EfficientNet's head within ±1/√outputs: with two classes and 1,536 features that starts
    # confidently wrong, and a short fine-tuning spends its first epoch on unlearning it. torch's usual bound is
    # ±1/√inputs.
    for parameter in classifier_parameters(network):
        if parameter.ndim > 1:
            bound = parameter.shape[1] ** -0.5
            with torch.no_grad():
                parameter.mul_((bound / parameter.abs().max()).clamp(max=1.0))
    # In place, autograd copies the input of each: a twentieth of EfficientNet's training time on a CPU.
    for module in network.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = False
    return network.train().to(memory_format=torch.channels_last)


def model_args(recipe: Recipe) -> dict[str, Any]:
    """Further arguments of `timm.create_model` for the recipe's network, kept in a release's config.json."""
    args: dict[str, Any] = {}
    if recipe.block_config:
        args["block_config"] = list(recipe.block_config)
    cfg = get_pretrained_cfg(recipe.architecture)
    # In timm a fixed size means that the model has an argument for it, as vision transformers have.
    if cfg is not None and cfg.fixed_input_size:
        args["img_size"] = recipe.image_size
    return args


def start_file(recipe: Recipe, start: StartWeights) -> Path | None:
    """The file of the start weights, downloaded first where they are on the Hub; None for random ones.

    Raises:
        ReleaseError: an unreachable Hub, or a model of timm without weights on it.
    """
    if start.from_scratch or not (start.file or recipe.base_model or recipe.name.startswith(TIMM)):
        return None
    instead = "give --pretrained_weights FILE.safetensors, or train with --from_scratch"
    if not (start.file or recipe.base_model):
        raise ReleaseError(f"{recipe.name}: the Hub has no weights of it; {instead}")
    try:
        return start.file or Path(hf_hub_download(recipe.base_model, WEIGHTS_FILE, etag_timeout=5))
    except (HTTPError, HFValidationError, OSError) as error:
        # Asked for what is not cached, the client does not say why it asked nobody.
        offline = constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError)
        reason = "HF_HUB_OFFLINE is set" if offline else first_line(error)
        raise ReleaseError(
            f"{recipe.base_model}: its weights cannot be fetched from the Hub ({reason}); check the network, {instead}"
        ) from None


def load_start_weights(network: nn.Module, recipe: Recipe, start: StartWeights) -> str:
    """Load start weights into the backbone, and return their true name; the classifier stays new.

    Raises:
        ReleaseError: missing or damaged file, weights of another architecture, undeclared missing tensors, or as
            `start_file`.
    """
    file = start_file(recipe, start)
    if file is None:
        return FROM_SCRATCH
    source = str(start.file or recipe.base_model)
    architecture = recipe.architecture
    # Where the network adds a head of its own, the file's tensors have the backbone's names.
    backbone = getattr(network, "backbone", network)
    left_alone = [*prefixes(head_names(backbone)), _AUXILIARY]
    of_other_blocks: Mapping[str, torch.Tensor] = {}
    if recipe.block_config:
        left_alone.append(_LAST_NORM)  # it stands behind another block than in the file
        with torch.device("meta"):  # without memory: only the names are needed
            of_other_blocks = timm.create_model(architecture, num_classes=0).state_dict()
    tensors = in_float32(_read_as_timm(file, backbone))
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(left_alone))}
    try:
        differences = backbone.load_state_dict(weights, strict=False)
        problems = [f"unknown tensor {name}" for name in differences.unexpected_keys if name not in of_other_blocks]
    except RuntimeError as error:
        _, *problems = str(error).splitlines()
        problems = problems or [str(error)]
    if problems:
        raise ReleaseError(
            f"{source}: these weights are not for {architecture} ({len(problems)} tensors differ, e.g. "
            f"{problems[0].strip()}); give weights of {architecture}"
        )
    declared = {name for pattern in start.may_miss for name in fnmatch.filter(differences.missing_keys, pattern)}
    missing = [
        name for name in differences.missing_keys if not name.startswith(tuple(left_alone)) and name not in declared
    ]
    if missing:
        raise ReleaseError(
            f"{source}: lacks {len(missing)} tensors of {architecture}, e.g. {min(missing)}; give a complete "
            "file, or declare the gap with --pretrained_may_miss PATTERN"
        )
    if start.file is None:
        return f"{FROM_HUB}{recipe.base_model}"
    return start.name or start.file.stem


def _read_as_timm(file: Path, backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Read a file of weights as timm does: position embeddings for another picture size, other projects' names."""
    tensors = open_safetensors(file, load_file)
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    # It expects weights of its architecture; others stay as they are, and are named when they are loaded.
    with suppress(*TIMM_ERRORS):
        tensors = convert(dict(tensors), backbone)
    return tensors


def copy_weights(network: nn.Module, donor: nn.Module, outputs: Sequence[int] | None, *, source: str) -> None:
    """Copy all tensors of a network into another, an error where they differ in more than their number of outputs.

    Args:
        outputs: for each output of `network`, the donor's output whose weights it takes; None leaves the last linear
            layer as it is.
        source: the donor's name, for messages.
    """
    state = network.state_dict()
    copied = dict(donor.state_dict())
    for classifier in classifier_names(network):
        for name in (f"{classifier}.weight", f"{classifier}.bias"):
            if outputs is None or name not in copied:
                copied[name] = state[name]
            else:
                copied[name] = copied[name][list(outputs)]
    try:
        network.load_state_dict(copied)
    except RuntimeError as error:
        reason = shorten(str(error).splitlines()[1], 200, placeholder=" …")
        raise ReleaseError(
            f"{source}: is not the recipe's network ({reason}); give the recipe and --override of its training"
        ) from None


# A DenseNet that is trained with BatchNorm after pooling, and released as a plain one
#
# timm's DenseNet ends in BatchNorm and ReLU before pooling. A linear head on an earlier block learns faster from its
# pooled features, normalised. The plain network lifts every channel so far above zero that its ReLU changes nothing.


def pooled_norm_densenet(architecture: str, num_classes: int, drop_rate: float = 0.0, **timm_args: Any) -> nn.Module:
    """A DenseNet of timm with BatchNorm after pooling, not before; random weights. `ValueError` for another network."""
    network: Any = timm.create_model(architecture, num_classes=num_classes, **timm_args)
    if "features.norm5" not in dict(network.named_modules()):
        raise ValueError("pooled_norm is for DenseNets")
    network.features.norm5 = nn.Identity()
    layers = OrderedDict(norm=nn.BatchNorm1d(network.num_features), drop=nn.Dropout(drop_rate), last=network.classifier)
    network.classifier = nn.Sequential(layers)
    network.pretrained_cfg = {**network.pretrained_cfg, "classifier": "classifier.last"}
    return network


def rewrite_for_timm(network: nn.Module, plain: Any, pixels: torch.Tensor) -> nn.Module:
    """Rewrite a `pooled_norm_densenet` as the plain DenseNet with the same predictions; an error if its logits differ.

    Args:
        plain: timm's DenseNet of as many blocks and classes; filled in place and returned, in eval mode.
        pixels: (B, 3, S, S) standardised images of the kind the network is for; the range of every channel is measured
            on them.
    """
    # On the CPU, where both are computed in the same precision.
    ours: Any = deepcopy(network.eval()).cpu()
    pixels = pixels.cpu()
    plain.load_state_dict(backbone_state(ours), strict=False)
    with torch.no_grad():
        maps = ours.forward_features(pixels).double().transpose(0, 1).flatten(1)  # (C, B·h·w)
        mean = maps.mean(dim=1)
        deviation = maps.std(dim=1).clamp(min=1e-3)
        extreme = ((maps - mean[:, None]).abs() / deviation[:, None]).amax(dim=1)
        # The head as one linear layer: first on the pooled features, then on these in standard deviations.
        norm = ours.classifier.norm
        last = ours.classifier.last
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - scale * norm.running_mean.double()
        weight = last.weight.double() * scale
        bias = last.bias.double() + last.weight.double() @ shift
        bias = bias + weight @ mean
        weight = weight * deviation
        # Softmax ignores what all classes share.
        weight = weight - weight.mean(dim=0)
        bias = bias - bias.mean()
        lift = _balanced_lift(weight, (extreme * _BEYOND_SEEN).clamp(min=_LEAST_LIFT))
        end = plain.features.norm5
        end.running_mean.copy_(mean - lift * deviation)
        end.running_var.copy_(deviation.square() - end.eps)
        plain.classifier.weight.copy_(weight)
        plain.classifier.bias.copy_(bias - weight @ lift)
        plain.eval().requires_grad_(False)
        logits = ours(pixels).double()
        difference = float((logits - logits.mean(dim=1, keepdim=True) - plain(pixels).double()).abs().max())
    if difference > _TOLERANCE:
        raise ReleaseError(f"the network rewritten for timm has logits that differ by {difference:.2g}; report this")
    return plain


def _balanced_lift(weight: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """(C,) lifts, each at least `least`, that every row of the (K, C) weights takes to zero where this is possible.

    A class activation map is the weighted sum of the channels: so balanced it is zero where a place looks like the
    average place, as if nothing had been lifted; other packages' Grad-CAM would show the lift.
    """
    low = least.numpy()
    bounds = np.stack([low, 4 * low], axis=1)
    rows = weight[:-1].numpy()  # the last row follows: together they are zero
    solution = linprog(np.ones(len(low)), A_eq=rows, b_eq=np.zeros(len(rows)), bounds=bounds)
    if solution.status != 0:  # no solution exists
        return least
    return torch.from_numpy(solution.x)
