"""Grad-CAM maps: computed from the last feature map, measured, and drawn over the picture.

A map is by default the evidence for a class relative to a blank picture; plain Grad-CAM remains as a method. Our own
code because pytorch-grad-cam runs the whole network again, forward and backward; here the backbone runs once, and
`explain_features` takes its feature map through the head alone, for the logits and every class's map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from leukoscope import LeukoscopeError
from leukoscope.data.images import foreground

if TYPE_CHECKING:
    import torch
    from torch import nn

# Inferno rises evenly in lightness, so it reads the same with any colour vision; without its black and purple part,
# which could not be told from a grey cell.
_COLORMAP, _COLDEST = "inferno", 0.35
# Okabe & Ito's blue stands out equally from a black background and from a pale smear; their sky blue from the map.
_FRAME_RGB = (0, 114, 178)
_OUTLINE_RGB = (86, 180, 233)
NO_MAP = (
    "has no Grad-CAM map: the last features of its network are no map of channels (a vision transformer's are tokens)"
)
BLACK_SHARE = 0.05
"""Of a picture at least; with less, it shows no cell cut out on black."""
EVIDENCE, GRADCAM = "evidence", "gradcam"
METHODS = (EVIDENCE, GRADCAM)
"""How a map is made: evidence relative to the blank picture, or Grad-CAM as published."""
OWN_AT_LEAST, ABOVE_ANOTHER_CELL = 0.6, 0.3
"""Correlations that `passes_map_checks` asks for."""


def explain_features(
    network: nn.Module, features: torch.Tensor, blank: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute logits and a map of every class from the last feature map.

    Both methods need the class score's gradient at this map and nothing before it, so only the head is
    differentiated, whatever layers it has.

    Args:
        network: a model in eval mode with `forward_head`.
        features: (B, C, h, w), what `network.forward_features` gave; may come from `torch.inference_mode`.
        blank: (1, C, h, w), the same of the blank picture; None for plain Grad-CAM.

    Returns:
        logits (B, K) and maps (B, K, h, w), both float32. With `blank`, evidence: at each position the sum over
        channels of the gradient there times the features less the blank's; signed, and through a linear head after
        average pooling its sum is the logit less the blank's. Without, Grad-CAM (Selvaraju et al. 2017,
        doi:10.1109/ICCV.2017.74): ≥ 0, the sum of the channels, each weighted by its mean gradient.

    Raises:
        LeukoscopeError: the network's last features are not a map of channels (transformers, for one).
    """
    import torch

    if not is_map_of_channels(network, features):
        found = f"have shape {tuple(features.shape)}" if hasattr(features, "shape") else "are several tensors"
        raise LeukoscopeError(
            f"{type(network).__name__}: its last features {found}, Grad-CAM needs (batch, channels, height, width); "
            "explain with a convolutional network"
        )
    # Autograd refuses tensors made in inference mode; a copy made outside it is an ordinary one.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = features.detach().clone().float().requires_grad_()
        logits = network.forward_head(leaf)  # type: ignore[operator]
        maps = []
        for k in range(logits.shape[1]):
            # Pictures do not meet in the head, so the gradient of the sum is each picture's own.
            (gradient,) = torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)
            if blank is None:
                maps.append(torch.einsum("bc,bchw->bhw", gradient.mean(dim=(2, 3)), leaf.detach()).relu())
            else:
                maps.append((gradient * (leaf.detach() - blank)).sum(dim=1))
    return logits.detach().float(), torch.stack(maps, dim=1)


def is_map_of_channels(network: nn.Module, features: torch.Tensor) -> bool:
    """Return whether a network's last features are (B, C, h, w); a transformer's tokens are not."""
    channels = getattr(network, "num_features", None)
    # Some networks, such as timm's CoaT, give a list of tensors.
    return getattr(features, "ndim", 0) == 4 and channels in (None, features.shape[1])


def linear_head_maps(features: np.ndarray, class_weights: np.ndarray, blank: np.ndarray | None = None) -> np.ndarray:
    """Compute maps where one linear layer follows average pooling: a class's gradient is then its row of weights.

    (B, C, h, w), weights (K, C) and perhaps `blank` (1, C, h, w) → (B, K, h, w) float32, as `explain_features`.
    """
    seen = features if blank is None else features - blank
    # Not `@`: the threads of numpy's matrix library stay busy afterwards, on the cores that the network needs next.
    maps = np.einsum("kc,bchw->bkhw", class_weights / features[0, 0].size, seen)
    return (np.maximum(maps, 0) if blank is None else maps).astype(np.float32)


def passes_map_checks(block: Mapping[str, Any]) -> bool:
    """Return whether a release's maps passed the checks that are needed to say that it looks at the cell.

    A cell's map must agree with itself when the cell is turned (mean correlation ≥ .6, and ≥ .3 above that with another
    cell's map), and taking away what it marks must lower the class's probability more than taking away random pixels
    (95 % interval above 0). A block `heat_maps` of metrics.json that lacks a measurement has not passed.
    """

    try:
        rotation, gain = block["rotation"], block["deletion"]["gain_over_random"]["low"]
        own, other = rotation["correlation"]["mean"], rotation["another_cell"]["mean"]
        return bool(own >= OWN_AT_LEAST and own - other >= ABOVE_ANOTHER_CELL and gain > 0)
    except (LookupError, TypeError):  # anybody's metrics.json is read: a block may hold anything
        return False


@dataclass(frozen=True)
class HeatMap:
    """One class's map of one picture.

    Attributes:
        evidence: (h, w) float32, ≥ 0: the positive part of the evidence relative to the blank picture, in units of the
            logit, or plain Grad-CAM where that was asked for; one scale for all classes of a picture.
    """

    evidence: np.ndarray
    label: str


def share_on_cell(heatmap: np.ndarray, pixels: np.ndarray) -> float | None:
    """Compute the share, 0–1, of a map's sum (h, w) that lies on a cell cut out on black in `pixels` (S, S, 3) uint8.

    None for a map that is zero everywhere, and for a picture that is not mostly a cell on black.
    """
    cell = foreground(pixels)
    if float(heatmap.sum()) <= 0 or not cell.any() or (~cell).mean() < BLACK_SHARE:
        return None
    return share_within(heatmap, cell)


def share_within(heatmap: np.ndarray, region: np.ndarray) -> float:
    """Compute the share, 0–1, of a map's sum (h, w) that lies in a region (H, W) bool of what the network saw."""
    height, width = region.shape
    spread = np.asarray(Image.fromarray(heatmap.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    return float(spread[region].sum()) / float(spread.sum())


@dataclass(frozen=True)
class EvidenceScale:
    """The usual range of a release's maps, so that weak evidence looks weak in any picture.

    Of a cell's strongest evidence for any class, one cell in twenty exceeds `strong`, the upper end of the release's
    colour scale, and one in twenty stays below `weak`. None where it was not measured.
    """

    strong: float | None = None
    weak: float | None = None

    def strength(self, peak: float) -> str:
        """ "weak", "usual" or "strong" for a picture's largest value; "" where the release was not measured."""
        if self.strong is None or self.weak is None:
            return ""
        return "weak" if peak < self.weak else "strong" if peak > self.strong else "usual"

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any], method: str = EVIDENCE) -> EvidenceScale:
        """Read that of a release's metrics.json for maps of a method; empty where none was measured."""
        measured = metrics.get("evidence_scale") or {}
        # Before there were two methods, Grad-CAM was measured; its values are on another scale.
        if measured.get("method", GRADCAM) != method:
            return cls()
        return cls(strong=measured.get("p95") or None, weak=measured.get("p05"))


def overlay(
    image: Image.Image,
    heatmap: HeatMap,
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
        image: the upright picture the map was made from.
        view_box: (left, top, right, bottom) of the view in the picture's pixels.
        opacity: how much the hottest point is covered, 0–1.
        peak: the evidence shown hottest; its own maximum when None. Give classes one peak to compare them, and
            pictures their release's (`EvidenceScale`).

    Returns:
        RGB, the size of `image`.
    """
    left, top, right, bottom = view_box
    columns = slice(max(0, round(left)), min(image.width, round(right)))
    rows = slice(max(0, round(top)), min(image.height, round(bottom)))
    height, width = heatmap.evidence.shape
    seen = np.array([columns.start - left, rows.start - top, columns.stop - left, rows.stop - top])
    in_map = seen * np.tile([width / (right - left), height / (bottom - top)], 2)
    x0, y0, x1, y1 = np.clip(in_map, 0, [width, height] * 2).tolist()

    peak = float(heatmap.evidence.max()) if peak is None else peak
    warmth = np.clip(heatmap.evidence / peak, 0, 1) if peak > 0 else np.zeros_like(heatmap.evidence)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    enlarged = Image.fromarray(warmth.astype(np.float32)).resize(size, Image.Resampling.BILINEAR, (x0, y0, x1, y1))
    warmth = np.clip(np.asarray(enlarged), 0, 1)

    colours = Image.fromarray(np.rint(warmth * 255).astype(np.uint8))
    colours.putpalette(map_colours(256).tobytes())
    cover = Image.fromarray(np.rint(opacity * np.clip(2 * warmth, 0, 1) * 255).astype(np.uint8))
    drawn = image.convert("L").convert("RGB")
    drawn.paste(colours.convert("RGB"), (columns.start, rows.start), cover)
    cell = foreground(np.asarray(image.convert("RGB")))
    if cell.any() and (~cell).mean() >= BLACK_SHARE:
        # Eroded by a square, one axis after the other: scipy would take longer to import than a map to draw.
        side = 3 + 2 * (min(image.size) // 300)
        padded = np.pad(cell, side // 2, mode="edge")
        # Not `np.logical_and.reduce`, which copies all shifts: a gigabyte for a photograph.
        inner = reduce(np.logical_and, (padded[shift : shift + len(cell)] for shift in range(side)))
        inner = reduce(np.logical_and, (inner[:, shift : shift + cell.shape[1]] for shift in range(side)))
        drawn.paste(_OUTLINE_RGB, mask=Image.fromarray(cell & ~inner))
    if right - left <= image.width - 1 or bottom - top <= image.height - 1:
        corners = (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
        ImageDraw.Draw(drawn).rectangle(corners, outline=_FRAME_RGB, width=max(1, round(min(drawn.size) / 200)))
    return drawn


@lru_cache(maxsize=4)
def map_colours(number: int) -> np.ndarray:
    """Return the overlay's colours from the lowest value to the peak, (number, 3) uint8."""
    from matplotlib import colormaps

    return colormaps[_COLORMAP](np.linspace(_COLDEST, 1, number), bytes=True)[:, :3]
