"""Plots of a release that its card alone shows: phantoms with its predictions, and the stages of its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from leukoscope.data.registry import DATASETS, trained_on
from leukoscope.evaluation.plots import SAMPLES, network_plot, samples_plot
from leukoscope.models.layers import frozen_modules
from leukoscope.models.release import Release
from leukoscope.models.release_files import ReleaseInfo
from leukoscope.synthetic import PHANTOM_LABELS, SMEAR_LABELS, draw_cell, knows_smears, smear_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A module with more than this share of the parameters is shown by its parts instead of one row.
_TOO_LARGE = 0.75


def phantom_samples(release: Release) -> Figure:
    """Phantoms with a release's predictions: they may be published, since no patient's cell is shown.

    Phantoms are drawn as ALL and HEM or, for a release of the four-class B-ALL set, as smears of its classes; where the
    release has none of these classes, its predictions are marked neither right nor wrong.
    """
    phantoms, frame = list(phantoms_for(release)), release.preprocessing.frame
    pixels = torch.from_numpy(np.stack([frame(Image.fromarray(image)) for _, image in phantoms])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        probabilities = release.network(release.preprocessing.normalise(pixels)).softmax(dim=1)
    shown = [
        (image, release.labels[int(row.argmax())], float(row.max()), label if label in release.labels else "")
        for (label, image), row in zip(phantoms, probabilities, strict=True)
    ]
    return samples_plot(shown, "phantoms: synthetic cells, none of a patient; their predictions measure nothing")


def phantoms_for(release: ReleaseInfo) -> Iterator[tuple[str, np.ndarray]]:
    """Label and picture of each phantom that a release is shown with."""
    if knows_smears(release.labels):
        for i, label in zip(range(SAMPLES), cycle(SMEAR_LABELS), strict=False):
            yield label, smear_picture(label, i // len(SMEAR_LABELS))
        return
    background = (trained_on(release.metrics) or DATASETS["imagefolder"]).background
    side = 2 * release.preprocessing.image_size
    for i, label in zip(range(SAMPLES), cycle(PHANTOM_LABELS), strict=False):
        yield label, draw_cell(label, subject=i, size=side, background=background).image


@dataclass(frozen=True)
class Stage:
    """One row of a network's structure; `output` is the shape for one picture, without the batch."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    trains: bool


def structure_figure(network: nn.Module, image_size: int, frozen: Sequence[str] = ()) -> Figure:
    """A network's stages with their outputs and parameters, as a table; arguments as for `network_stages`."""
    stages = network_stages(network, image_size, frozen)
    total = sum(p.numel() for p in network.parameters())
    rows = [
        (
            stage.name,
            stage.kind,
            " × ".join(map(str, stage.output)),
            f"{stage.parameters:,}" if stage.parameters else "–",
            ("yes" if stage.trains else "frozen") if stage.parameters else "–",
        )
        for stage in stages
    ]
    picture = ("picture", "", f"3 × {image_size} × {image_size}", "", "")
    return network_plot(
        ("stage", "layer", "output", "parameters", "trains"), [picture, *rows, ("all", "", "", f"{total:,}", "")]
    )


def network_stages(network: nn.Module, image_size: int, frozen: Sequence[str] = ()) -> list[Stage]:
    """The stages that one picture passes through, in their order.

    A module that holds most of the network is shown by its parts, and so is what follows the pooling, where classifiers
    of one backbone differ. The network is left in evaluation mode. `frozen` are a recipe's modules: a released network
    does not record them.
    """
    outputs: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs[module] = tuple(output.shape[1:])

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    picture = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    try:
        with torch.inference_mode():
            network.eval()(picture)
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(p.numel() for p in network.parameters())
    still, stages = frozen_modules(network, frozen) if "backbone" in frozen else frozen, []
    for name, module in _rows(network, outputs, total):
        parameters = sum(p.numel() for p in module.parameters())
        is_frozen = any(f"{name}.".startswith(f"{prefix}.") for prefix in still)
        trains = parameters > 0 and not is_frozen
        stages.append(Stage(name, type(module).__name__, outputs[module], parameters, trains))
    return stages


def _rows(
    network: nn.Module, outputs: Mapping[nn.Module, tuple[int, ...]], total: int, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_children():
        size = sum(p.numel() for p in module.parameters())
        seen = module in outputs and not isinstance(module, nn.Identity)
        behind_pooling = len(outputs.get(module, ())) == 1 and size > 0
        if any(module.children()) and (size > _TOO_LARGE * total or behind_pooling):
            yield from _rows(module, outputs, total, f"{prefix}{name}.")
        elif seen:
            yield f"{prefix}{name}", module
