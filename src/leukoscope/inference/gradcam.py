"""Grad-CAM maps: computed from the last feature map, measured, and drawn over the picture.

A map is the evidence for a class relative to a blank picture. Our own code because pytorch-grad-cam runs the whole
network again, forward and backward; here the backbone runs once, and `explain_features` takes its feature map through
the head alone, for the logits and every class's map.
"""

from __future__ import annotations

from functools import lru_cache, reduce
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from leukoscope.data.images import foreground

if TYPE_CHECKING:
    import torch
    from torch import nn

# Inferno rises evenly in lightness, so it reads the same with any colour vision; without its black and purple part,
# which could not be told from a grey cell.
_COLORMAP = "inferno"
_COLDEST = 0.35
# Without a hue, which would stand for a class: a grey that stands out equally from a black background and from a pale
# smear, and white, which stands out from the map beside a cell.
FRAME_RGB = (118, 118, 118)
OUTLINE_RGB = (255, 255, 255)
BLACK_SHARE = 0.05
"""Of a picture at least; with less, it shows no cell cut out on black."""


def explain_features(
    network: nn.Module, features: torch.Tensor, blank: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute logits and a map of every class from the last feature map.

    Only the class score's gradient at this map is needed, so only the head is differentiated, whatever layers it has.

    Args:
        network: a model in eval mode with `forward_head`.
        features: (B, C, h, w), what `network.forward_features` gave; may come from `torch.inference_mode`.
        blank: (1, C, h, w), the same of the blank picture.

    Returns:
        logits (B, K) and maps (B, K, h, w), both float32: at each position the sum over channels of the gradient there
        times the features less the blank's; signed, and through a linear head after average pooling its sum is the
        logit less the blank's.
    """
    import torch

    # Autograd refuses tensors made in inference mode; a copy made outside it is an ordinary one.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = features.detach().clone().float().requires_grad_()
        logits = network.forward_head(leaf)  # type: ignore[operator]
        maps = []
        for k in range(logits.shape[1]):
            # Pictures do not meet in the head, so the gradient of the sum is each picture's own.
            (gradient,) = torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)
            maps.append((gradient * (leaf.detach() - blank)).sum(dim=1))
    return logits.detach().float(), torch.stack(maps, dim=1)


def is_map_of_channels(network: nn.Module, features: torch.Tensor) -> bool:
    """Return whether a network's last features are (B, C, h, w); a transformer's tokens are not."""
    channels = getattr(network, "num_features", None)
    # Some networks, such as timm's CoaT, give a list of tensors.
    return getattr(features, "ndim", 0) == 4 and channels in (None, features.shape[1])


def linear_head_maps(features: np.ndarray, class_weights: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Compute maps where one linear layer follows average pooling: a class's gradient is then its row of weights.

    (B, C, h, w), weights (K, C) and `blank` (1, C, h, w) → (B, K, h, w) float32, as `explain_features`.
    """
    # Not `@`: the threads of numpy's matrix library stay busy afterwards, on the cores that the network needs next.
    return np.einsum("kc,bchw->bkhw", class_weights / blank[0, 0].size, features - blank).astype(np.float32)


def share_on_cell(heatmap: np.ndarray, pixels: np.ndarray) -> float | None:
    """Compute the share, 0–1, of a map's sum (h, w) that lies on a cell cut out on black in `pixels` (S, S, 3) uint8.

    None for a map that is zero everywhere, and for a picture that is not mostly a cell on black.
    """
    cell = foreground(pixels)
    if float(heatmap.sum()) <= 0 or not cell.any() or (~cell).mean() < BLACK_SHARE:
        return None
    height, width = cell.shape
    spread = np.asarray(Image.fromarray(heatmap.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    return float(spread[cell].sum()) / float(spread.sum())


def overlay(
    image: Image.Image,
    evidence: np.ndarray,
    view_box: tuple[float, float, float, float],
    *,
    opacity: float = 0.5,
    peak: float | None = None,
) -> Image.Image:
    """Draw a Grad-CAM map over the part of a picture that the network saw.

    The picture is grey, so that all colour is the map's. Colour covers it in proportion to the values, fully from half
    the peak on: where they are 0, the grey picture stays as it is. A thin frame marks the view where it is smaller than
    the picture, a thin line the outline of a cell that is cut out on black.

    Args:
        image: the upright picture the map was made from; what is drawn is RGB of its size.
        evidence: (h, w) float32, ≥ 0, as `HeatMap.evidence` holds it.
        view_box: (left, top, right, bottom) of the view in the picture's pixels.
        opacity: how much the hottest point is covered, 0–1.
        peak: the evidence shown hottest; its own maximum when None. Give classes one peak to compare them.
    """
    left, top, right, bottom = map(round, view_box)
    if peak is None:
        peak = float(evidence.max())
    warmth = np.clip(evidence / peak, 0, 1) if peak > 0 else np.zeros_like(evidence)
    size = (right - left, bottom - top)
    warmth = np.asarray(Image.fromarray(warmth.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    colours = Image.fromarray(np.rint(warmth * 255).astype(np.uint8))
    colours.putpalette(map_colours(256).tobytes())
    cover = Image.fromarray(np.rint(opacity * np.clip(2 * warmth, 0, 1) * 255).astype(np.uint8))
    drawn = image.convert("L").convert("RGB")
    drawn.paste(colours.convert("RGB"), (left, top), cover)
    cell = foreground(np.asarray(image.convert("RGB")))
    if cell.any() and (~cell).mean() >= BLACK_SHARE:
        # Eroded by a square, one axis after the other: scipy would take longer to import than a map to draw.
        side = 3 + 2 * (min(image.size) // 300)
        padded = np.pad(cell, side // 2, mode="edge")
        # Not `np.logical_and.reduce`, which copies all shifts: a gigabyte for a photograph.
        inner = reduce(np.logical_and, (padded[shift : shift + len(cell)] for shift in range(side)))
        inner = reduce(np.logical_and, (inner[:, shift : shift + cell.shape[1]] for shift in range(side)))
        drawn.paste(OUTLINE_RGB, mask=Image.fromarray(cell & ~inner))
    if size[0] < image.width or size[1] < image.height:
        corners = (max(0, left), max(0, top), min(right, image.width) - 1, min(bottom, image.height) - 1)
        ImageDraw.Draw(drawn).rectangle(corners, outline=FRAME_RGB, width=max(1, round(min(drawn.size) / 200)))
    return drawn


@lru_cache(maxsize=4)
def map_colours(number: int) -> np.ndarray:
    """Return the overlay's colours from the lowest value to the peak, (number, 3) uint8."""
    from matplotlib import colormaps

    return colormaps[_COLORMAP](np.linspace(_COLDEST, 1, number), bytes=True)[:, :3]
