"""Build a recipe's network, load its start weights, and rewrite a trained one as a plain timm model.

Start weights come from a safetensors file, from the Hub, or not at all (metrics.json records which). A file made for
another architecture is refused by name and shape; tensors that it lacks must be declared, or the network would start
half random without anyone knowing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from leukoscope import LeukoscopeError
from leukoscope.models.hub_download import first_line
from leukoscope.models.recipes import RECIPES, TIMM, Recipe
from leukoscope.models.release_files import load_safetensors
from leukoscope.models.remote.networks import OWN_ARCHITECTURES, Classifier

FROM_SCRATCH = "random initialisation (no pretrained weights)"
# Inception's auxiliary classifier, which steadied its first training; published files hold it, networks here lack it.
_AUXILIARY = "AuxLogits."


@dataclass(frozen=True)
class StartWeights:
    """Where a network starts from.

    Attributes:
        file: a safetensors file in timm's tensor names; None downloads `recipe.base_model` from the Hub.
        name: what the weights truly are, for the card; defaults to the file's name.
        may_miss: patterns (`blocks.6.1.conv_*`) of tensors the file is known to lack.
        from_scratch: start from random weights, without a download.
        ignore_mismatched: leave out tensors of another shape than the network's.
    """

    file: Path | None = None
    name: str = ""
    may_miss: tuple[str, ...] = ()
    from_scratch: bool = False
    ignore_mismatched: bool = False


def build_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's network with random weights, in channels-last memory.

    Returns:
        A timm model, or an `OwnNetwork` that offers the same where the head or the architecture is not timm's.

    Raises:
        LeukoscopeError: a model of timm that takes no picture of this size, or not this recipe's arguments.
    """
    import timm

    # DenseNet takes no drop_path_rate at all.
    depth: dict[str, Any] = {"drop_path_rate": recipe.drop_path_rate} if recipe.drop_path_rate else {}
    network: nn.Module
    try:
        if recipe.head is not None:
            network = Classifier(recipe.architecture, num_classes, asdict(recipe.head), **depth)
        elif recipe.architecture in OWN_ARCHITECTURES:
            network = OWN_ARCHITECTURES[recipe.architecture](num_classes, recipe.drop_rate)
        else:
            network = timm.create_model(
                recipe.architecture, num_classes=num_classes, drop_rate=recipe.drop_rate, **depth, **model_args(recipe)
            )
        if recipe.name not in RECIPES:
            _try_picture(network, recipe.image_size)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LeukoscopeError(
            f"{recipe.name}: cannot be built for pictures of {recipe.image_size} px ({reason}); give another "
            "--image_size, or leave out what --override changes"
        ) from None
    # timm initialises EfficientNet's head within ±1/√outputs: with two classes and 1,536 features that starts
    # confidently wrong, and a short fine-tuning spends its first epoch on unlearning it. torch's usual bound is
    # ±1/√inputs.
    for weight in (p for p in classifier_parameters(network) if p.ndim > 1):
        bound = weight.shape[1] ** -0.5
        with torch.no_grad():
            weight.mul_((bound / weight.abs().max()).clamp(max=1.0))
    # In place, autograd copies the input of each: a twentieth of EfficientNet's training time on a CPU.
    for activation in (module for module in network.modules() if isinstance(module, nn.SiLU)):
        activation.inplace = False
    return with_matrix_products(network.to(memory_format=torch.channels_last))


class MatrixProduct(nn.Conv2d):
    """A convolution whose kernel is as large as its input, computed as the matrix product that it is."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if maps.shape[-2:] != self.kernel_size:
            return super().forward(maps)
        return F.linear(maps.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


def with_matrix_products(network: nn.Module) -> nn.Module:
    """Compute VGG's dense layers as matrix products; names, shapes and results stay timm's.

    timm writes them as convolutions. A training step on a CPU would spend about half of its time on copying their 120
    million weights from one memory layout to another.
    """
    from timm.models.vgg import ConvMlp

    dense = [module for module in network.modules() if isinstance(module, ConvMlp)]
    for layer in (layer for module in dense for layer in module.children() if isinstance(layer, nn.Conv2d)):
        layer.__class__ = MatrixProduct
        layer.weight.data = layer.weight.data.contiguous()
    return network


def _try_picture(network: nn.Module, image_size: int) -> None:
    """Predict one empty picture: what a recipe was not written for may not fit it."""
    if not network.pretrained_cfg.get("classifier"):  # type: ignore[operator, union-attr]
        raise ValueError("it has no last layer that gives classes")
    side = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    side = side[-1] if isinstance(side, tuple) else side
    if image_size % side:
        raise ValueError(f"its patches are {side} px wide: the size must be a multiple of that")
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    network.train()


def model_args(recipe: Recipe) -> dict[str, Any]:
    """What `timm.create_model` builds the recipe's network with besides, as a release's config.json keeps it."""
    from timm.models import get_pretrained_cfg

    args: dict[str, Any] = {"block_config": list(recipe.block_config)} if recipe.block_config else {}
    own = recipe.architecture in OWN_ARCHITECTURES
    cfg = None if own else get_pretrained_cfg(recipe.architecture)
    # To timm a fixed size means that the model has an argument for it (vision transformers, for one).
    return args | ({"img_size": recipe.image_size} if cfg is not None and cfg.fixed_input_size else {})


def load_start_weights(network: nn.Module, recipe: Recipe, start: StartWeights) -> str:
    """Load start weights into the backbone.

    Args:
        start: where from; a recipe of `RECIPES` without pretrained weights starts from random ones unless a file is
            given.

    Returns:
        the true name of these weights.

    Raises:
        LeukoscopeError: missing or damaged file, weights of another architecture, undeclared missing tensors, an
            unreachable Hub, or a model of timm whose weights are not on it.
    """
    if recipe.name.startswith(TIMM) and not (start.from_scratch or start.file or recipe.base_model):
        raise LeukoscopeError(
            f"{recipe.name}: the Hub has no weights of it; give --pretrained_weights FILE.safetensors, or train with "
            "--from_scratch"
        )
    if start.from_scratch or (start.file is None and not recipe.base_model):
        return FROM_SCRATCH
    # A head of its own is new as a whole: the file's tensors carry the backbone's names.
    backbone = network.backbone if isinstance(network, Classifier) else network
    if start.file is not None:
        left_out = _fill(backbone, read_safetensors(start.file), recipe, str(start.file), start)
        return (start.name or start.file.stem) + left_out
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(recipe.base_model, "model.safetensors", etag_timeout=5)
    except (HTTPError, HFValidationError, OSError) as error:
        # Asked for what is not cached, the client does not say why it asked nobody.
        offline = constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError)
        reason = "HF_HUB_OFFLINE is set" if offline else first_line(error)
        raise LeukoscopeError(
            f"{recipe.base_model}: its weights cannot be fetched from the Hub ({reason}); check the network, give "
            "--pretrained_weights FILE.safetensors, or train with --from_scratch"
        ) from None
    left_out = _fill(backbone, read_safetensors(Path(path)), recipe, recipe.base_model, start)
    return hub_weights_name(recipe.base_model) + left_out


def hub_weights_name(base_model: str) -> str:
    """The name of start weights from the Hub in metrics.json."""
    return f"pretrained weights {base_model}"


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; any other format, pickle above all, is refused."""
    from safetensors.torch import load_file

    if path.is_file() and path.suffix != ".safetensors":
        raise LeukoscopeError(
            f"{path}: is a {path.suffix or 'nameless'} file; only .safetensors is read: pickled weights can run code"
        )
    return load_safetensors(path, load_file)


def _fill(
    network: nn.Module, tensors: dict[str, torch.Tensor], recipe: Recipe, source: str, start: StartWeights
) -> str:
    """Copy tensors into a backbone; the classifier always stays new.

    Returns:
        what was left out as of another shape, to follow the weights' name; "" for nothing.
    """
    # timm's own reading of published files: position embeddings for another picture size, other projects' names.
    if (converted := getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)) is not None:
        # It expects weights of its architecture; others are left as they are, and named below.
        with suppress(AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            tensors = converted(dict(tensors), network)
    head = {f"{name}.{part}" for name in _classifier_names(network) for part in ("weight", "bias")}
    wanted = {k: v for k, v in network.state_dict().items() if k not in head and not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in tensors.items() if k not in head and not k.startswith(_AUXILIARY)}
    unknown = sorted(k for k in given if k not in wanted and not k.endswith("num_batches_tracked"))
    if recipe.block_config:
        # The last BatchNorm stands behind another block than in the file.
        wanted, given = ({k: v for k, v in tensors.items() if "norm5" not in k} for tensors in (wanted, given))
        unknown = [k for k in unknown if "norm5" not in k]
    if recipe.block_config or (recipe.head is not None and recipe.head.levels):
        # What lies above the levels that are read is no part of the network.
        import timm

        above = timm.create_model(recipe.architecture, num_classes=0).state_dict().keys()
        unknown = [k for k in unknown if k not in above]
        given = {k: v for k, v in given.items() if k in wanted or k in unknown}
    reshaped = sorted(k for k in given if k in wanted and given[k].shape != wanted[k].shape)
    left_out = reshaped if start.ignore_mismatched else []
    wanted, given = ({k: v for k, v in tensors.items() if k not in left_out} for tensors in (wanted, given))
    if unknown or len(reshaped) > len(left_out):
        example = unknown[0] if unknown else f"{reshaped[0]} has shape {tuple(given[reshaped[0]].shape)}"
        raise LeukoscopeError(
            f"{source}: these weights are not for {recipe.architecture} ({len(unknown)} unknown and {len(reshaped)} "
            f"differently shaped tensors, e.g. {example}); give weights of {recipe.architecture}"
        )
    missing = sorted(k for k in wanted if k not in given and not any(fnmatch(k, p) for p in start.may_miss))
    if missing:
        raise LeukoscopeError(
            f"{source}: lacks {len(missing)} tensors of {recipe.architecture}, e.g. {missing[0]}; give a complete "
            "file, or declare the gap with --pretrained_may_miss PATTERN"
        )
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in given.items()}, strict=False)
    return f" without {len(left_out)} tensor(s) of another shape, e.g. {left_out[0]}" if left_out else ""


def copy_weights(network: nn.Module, donor: nn.Module, outputs: Sequence[int] | None, *, source: str) -> None:
    """Copy all tensors of a network into another of the same architecture.

    Args:
        outputs: for each output of `network`, the donor's output whose weights it takes; None leaves the last linear
            layer as it is.
        source: the donor's name, for messages.

    Raises:
        LeukoscopeError: networks that differ in more than their number of outputs.
    """
    ours, theirs = network.state_dict(), donor.state_dict()
    head = {f"{name}.{part}" for name in _classifier_names(network) for part in ("weight", "bias")}
    body = (ours.keys() | theirs.keys()) - head
    unlike = sorted(k for k in body if k not in ours or k not in theirs or ours[k].shape != theirs[k].shape)
    if unlike or not head <= theirs.keys():
        raise LeukoscopeError(
            f"{source}: is another network than the recipe's ({len(unlike)} tensors differ, e.g. "
            f"{[*unlike, *sorted(head)][0]}); follow the release's own recipe"
        )
    given = {k: theirs[k] for k in body}
    if outputs is not None:
        given |= {k: theirs[k][list(outputs)] for k in head}
    network.load_state_dict(given, strict=False)


def classifier_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the last linear layer."""
    return [p for name in _classifier_names(network) for p in network.get_submodule(name).parameters()]


def head_parameters(network: nn.Module) -> list[nn.Parameter]:
    """All that is new in a network started from ImageNet: a head of its own as a whole, else the last linear layer."""
    return list(network.head.parameters()) if isinstance(network, Classifier) else classifier_parameters(network)


def backbone_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and statistics of all but the head, by name."""
    if isinstance(network, Classifier):
        return network.backbone.state_dict()
    last = tuple(f"{name}." for name in _classifier_names(network))
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(last)}


def frozen_modules(network: nn.Module, frozen: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that a recipe's `frozen` names; "backbone" of a timm model is all but its last linear layer."""
    if "backbone" not in frozen or hasattr(network, "backbone"):
        return {name: network.get_submodule(name) for name in frozen}
    last = [f"{name}." for name in _classifier_names(network)]
    modules = network.named_modules()
    return {name: module for name, module in modules if name and not any(one.startswith(f"{name}.") for one in last)}


def freeze(network: nn.Module, frozen: Sequence[str]) -> None:
    """Keep the weights and statistics of what a recipe's `frozen` names; called after `network.train()`."""
    for module in frozen_modules(network, frozen).values():
        module.requires_grad_(False).eval()
    if "backbone" in frozen:
        # Some parameters are of no module within: a vision transformer's position embedding.
        trained = {id(parameter) for parameter in head_parameters(network)}
        for parameter in network.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)


def penalty(network: nn.Module, recipe: Recipe) -> torch.Tensor:
    """The regularisation that the recipe adds to the loss, for the hidden linear layers of its head.

    Keras's L1 and L2 regularisers: strength times the sum of absolute or squared values, without a factor of one half.

    Args:
        network: as `build_network` made it, not wrapped for training.

    Returns:
        () float32; 0 for a network without a head of its own.
    """
    total = next(network.parameters()).new_zeros(())
    if not isinstance(network, Classifier):
        return total
    for layer in network.head.hidden.modules():
        if isinstance(layer, nn.Linear):
            for name, values in (("weight", layer.weight), ("bias", layer.bias)):
                total = total + getattr(recipe.penalty, f"{name}_l2") * values.square().sum()
                total = total + getattr(recipe.penalty, f"{name}_l1") * values.abs().sum()
    return total


def _classifier_names(network: nn.Module) -> list[str]:
    names = network.pretrained_cfg["classifier"]  # type: ignore[index]
    return [names] if isinstance(names, str) else list(names)


# In standard deviations of a channel over places: the smallest lift, and how far the lift exceeds the extremes seen.
_LEAST_LIFT = 6.0
_BEYOND_SEEN = 1.5
# Largest difference between the logits of both networks.
_TOLERANCE = 1e-3


def is_rewritable(network: nn.Module) -> TypeGuard[Classifier]:
    """Whether `rewrite_for_timm` applies: a DenseNet read at one dense block by mean pooling and one linear layer."""
    if not isinstance(network, Classifier) or network.head_settings is None:
        return False
    from timm.models.densenet import DenseNet

    one_block = len(network.levels) == 1 and network.levels[0] >= 1
    plain_head = network.head_settings.get("pooling", "avg") == "avg" and not network.head_settings.get("hidden")
    return isinstance(network.backbone, DenseNet) and one_block and plain_head


def rewrite_for_timm(network: Classifier, architecture: str, pixels: torch.Tensor) -> tuple[nn.Module, dict[str, Any]]:
    """Rewrite a network for which `is_rewritable` is true as a plain timm DenseNet with the same predictions.

    Args:
        architecture: timm's name of the backbone.
        pixels: (B, 3, S, S) standardised pictures of the kind the network is for; the range of every channel is
            measured on them.

    Returns:
        The timm model (in eval mode, on the CPU, without gradients) and the `model_args` that `timm.create_model`
        builds it with.

    Raises:
        LeukoscopeError: the two networks' logits differ.
    """
    import timm

    blocks = [len(module) for name, module in network.backbone.features.named_children() if "denseblock" in name]
    built_with: dict[str, Any] = {"block_config": blocks}
    plain: Any = timm.create_model(architecture, num_classes=network.num_classes, **built_with)
    plain.load_state_dict(network.backbone.state_dict(), strict=False)

    # On the CPU, where both are computed in the same precision.
    network, pixels = deepcopy(network.eval()).cpu(), pixels.cpu()
    with torch.no_grad():
        maps = network.forward_features(pixels).double().transpose(0, 1).flatten(1)  # (C, B·h·w)
        mean, deviation = maps.mean(dim=1), maps.std(dim=1).clamp(min=1e-3)
        extreme = ((maps - mean[:, None]).abs() / deviation[:, None]).amax(dim=1)
        weight, bias = _linear(network)
        weight, bias = weight * deviation, bias + weight @ mean
        # Softmax does not see what all classes share.
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
        lift = _balanced_lift(weight, (extreme * _BEYOND_SEEN).clamp(min=_LEAST_LIFT))
        last = plain.features.norm5
        last.running_mean.copy_(mean - lift * deviation)
        last.running_var.copy_(deviation.square() - last.eps)
        plain.classifier.weight.copy_(weight)
        plain.classifier.bias.copy_(bias - weight @ lift)
        ours = network(pixels).double()
        plain = plain.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        theirs = plain(pixels).double()
    difference = float((ours - ours.mean(dim=1, keepdim=True) - theirs).abs().max())
    if difference > _TOLERANCE:
        raise LeukoscopeError(f"{architecture}: rewritten for timm its logits differ by {difference:.2g}; report this")
    return plain, built_with


def _linear(network: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    """The head as one linear layer on the pooled features: (K, C) and (K,) float64."""
    head = network.head
    weight, bias = head.classifier.weight.double(), head.classifier.bias.double()
    if isinstance(head.norm, nn.BatchNorm1d):
        norm = head.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - scale * norm.running_mean.double()
        weight, bias = weight * scale, bias + weight @ shift
    return weight, bias


def _balanced_lift(weight: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """(C,) lifts, each at least `least`, that every row of the (K, C) weights takes to zero where this can be had.

    A class activation map is the weighted sum of the channels: so balanced it is zero where a place looks like the
    average place, as if nothing had been lifted.
    """
    from scipy.optimize import linprog

    low = least.numpy()
    bounds = np.stack([low, 4 * low], axis=1)
    rows = weight[:-1].numpy()  # the last row follows: together they are zero
    found = linprog(np.ones(len(low)), A_eq=rows, b_eq=np.zeros(len(rows)), bounds=bounds)
    return torch.from_numpy(found.x) if found.status == 0 else least
