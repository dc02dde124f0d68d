"""From a recipe to a network with its start weights.

Start weights come from a safetensors file, from the Hub, or not at all (said aloud). A file made for another
architecture is refused by name and shape; tensors it lacks must be declared, or the network would start half random
without anyone knowing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.ingredients import Recipe
from leukoscope.models.remote.networks import OWN_ARCHITECTURES, Classifier

FROM_SCRATCH = "random initialisation (no pretrained weights)"
# Inception's second answer, which steadied its first training; published files hold it, networks here lack it.
_AUXILIARY = "AuxLogits."


@dataclass(frozen=True)
class StartWeights:
    """Where a network starts from.

    Attributes:
        file: a safetensors file in timm's tensor names; None asks the Hub for `recipe.base_model`.
        name: what the weights truly are, for the card; defaults to the file's name.
        may_miss: patterns (`blocks.6.1.conv_*`) of tensors the file is known to lack.
        from_scratch: start from random weights and never ask the network.
    """

    file: Path | None = None
    name: str = ""
    may_miss: tuple[str, ...] = ()
    from_scratch: bool = False


def build_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's network with random weights, in channels-last memory.

    Returns:
        A timm model, or an `OwnNetwork` that offers the same where the head or the architecture is not timm's.
    """
    # DenseNet takes no drop_path_rate at all.
    depth: dict[str, Any] = {"drop_path_rate": recipe.drop_path_rate} if recipe.drop_path_rate else {}
    network = _build(recipe, num_classes, depth)
    _start_undecided(network)
    return network.to(memory_format=torch.channels_last)


def _build(recipe: Recipe, num_classes: int, depth: dict[str, Any]) -> nn.Module:
    if recipe.head is not None:
        return Classifier(recipe.architecture, num_classes, asdict(recipe.head), **depth)
    if recipe.architecture in OWN_ARCHITECTURES:
        return OWN_ARCHITECTURES[recipe.architecture](num_classes, recipe.drop_rate)
    import timm

    return timm.create_model(
        recipe.architecture, pretrained=False, num_classes=num_classes, drop_rate=recipe.drop_rate, **depth
    )


def _start_undecided(network: nn.Module) -> None:
    """Shrink a new linear head to torch's usual ±1/√inputs, so that training starts from small logits.

    timm draws EfficientNet's head from ±1/√outputs: with two classes and 1,536 features that starts confidently wrong,
    and a short fine-tuning spends its first epoch on unlearning it.
    """
    for weight in (p for p in classifier_parameters(network) if p.ndim > 1):
        bound = weight.shape[1] ** -0.5
        with torch.no_grad():
            weight.mul_((bound / weight.abs().max()).clamp(max=1.0))


def load_start_weights(network: nn.Module, recipe: Recipe, start: StartWeights) -> str:
    """Fill the backbone and return the true name of what it was filled with.

    Args:
        start: where from; a recipe without ImageNet weights starts from random ones unless a file is given.

    Raises:
        LeukoscopeError: missing or damaged file, weights of another architecture, undeclared missing tensors, or
            an unreachable Hub.
    """
    if start.from_scratch or (start.file is None and not recipe.base_model):
        return FROM_SCRATCH
    # A head of its own is new as a whole: the file's tensors carry the backbone's names.
    backbone = network.backbone if isinstance(network, Classifier) else network
    if start.file is None:
        _fill(backbone, _from_hub(recipe), recipe, f"{recipe.base_model}", start.may_miss)
        return hub_weights_name(recipe.base_model)
    _fill(backbone, read_safetensors(start.file), recipe, str(start.file), start.may_miss)
    return start.name or start.file.stem


def hub_weights_name(base_model: str) -> str:
    """What start weights from the Hub are called in metrics.json."""
    return f"ImageNet weights {base_model}"


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; any other format, pickle above all, is refused."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise LeukoscopeError(f"{path}: no such weights file; give a .safetensors file")
    if path.suffix != ".safetensors":
        raise LeukoscopeError(
            f"{path}: is a {path.suffix or 'nameless'} file; only .safetensors is read: pickled weights can run code"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise LeukoscopeError(f"{path}: not a whole safetensors file ({error}); download or copy it again") from None


def _fill(
    network: nn.Module, tensors: dict[str, torch.Tensor], recipe: Recipe, source: str, may_miss: Sequence[str]
) -> None:
    """Copy a backbone's tensors in; the classifier always stays new."""
    head = {f"{name}.{part}" for name in _classifier_names(network) for part in ("weight", "bias")}
    wanted = {k: v for k, v in network.state_dict().items() if k not in head and not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in tensors.items() if k not in head and not k.startswith(_AUXILIARY)}
    unknown = sorted(k for k in given if k not in wanted and not k.endswith("num_batches_tracked"))
    if recipe.head is not None and recipe.head.levels:
        # What lies above the levels that are read is no part of the network.
        import timm

        above = timm.create_model(recipe.architecture, num_classes=0).state_dict().keys()
        unknown = [k for k in unknown if k not in above]
        given = {k: v for k, v in given.items() if k in wanted or k in unknown}
    reshaped = sorted(k for k in given if k in wanted and given[k].shape != wanted[k].shape)
    if unknown or reshaped:
        example = unknown[0] if unknown else f"{reshaped[0]} has shape {tuple(given[reshaped[0]].shape)}"
        raise LeukoscopeError(
            f"{source}: these weights are not for {recipe.architecture} ({len(unknown)} unknown and {len(reshaped)} "
            f"differently shaped tensors, e.g. {example}); give weights of {recipe.architecture}"
        )
    missing = sorted(k for k in wanted if k not in given and not any(fnmatch(k, p) for p in may_miss))
    if missing:
        raise LeukoscopeError(
            f"{source}: lacks {len(missing)} tensors of {recipe.architecture}, e.g. {missing[0]}; give a complete "
            "file, or declare the gap with --pretrained_may_miss PATTERN"
        )
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in given.items()}, strict=False)


def continue_from(network: nn.Module, donor: nn.Module, outputs: Sequence[int] | None, *, source: str) -> None:
    """Fill a network with all tensors of another that was built alike.

    Args:
        outputs: for each output of `network`, which of the donor's it goes on from; None leaves the last linear layer
            as it is.
        source: what the donor is called, for messages.

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


def penalty(network: nn.Module, recipe: Recipe) -> torch.Tensor:
    """What the recipe adds to the loss for the linear layers hidden in its head.

    Keras's L1 and L2 regularisers: strength times the sum of absolute or squared values, without a factor of one half.

    Args:
        network: as `build_network` made it, not wrapped for training.

    Returns:
        () float32; 0 for a network without a head of its own.
    """
    total = next(network.parameters()).new_zeros(())
    if not isinstance(network, Classifier):
        return total
    strengths = recipe.penalty
    for layer in network.head.hidden.modules():
        if isinstance(layer, nn.Linear):
            total = total + strengths.weight_l2 * layer.weight.square().sum()
            total = total + strengths.weight_l1 * layer.weight.abs().sum()
            total = total + strengths.bias_l2 * layer.bias.square().sum()
            total = total + strengths.bias_l1 * layer.bias.abs().sum()
    return total


def _classifier_names(network: nn.Module) -> list[str]:
    names = network.pretrained_cfg["classifier"]  # type: ignore[index]
    return [names] if isinstance(names, str) else list(names)


def _from_hub(recipe: Recipe) -> dict[str, torch.Tensor]:
    """ImageNet weights from the Hub, asked for once and as safetensors only."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        path = hf_hub_download(recipe.base_model, "model.safetensors", etag_timeout=5)
    except (HTTPError, HFValidationError, OSError) as error:
        raise LeukoscopeError(
            f"{recipe.base_model}: its weights cannot be fetched from the Hub ({type(error).__name__}); check the "
            "network, give --pretrained_weights FILE.safetensors, or train with --from_scratch"
        ) from None
    return read_safetensors(Path(path))
