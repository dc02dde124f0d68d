"""From a picture to network input.

`Preprocessing` is written into a release's config.json; training, evaluation, prediction, the demo and transformers'
`pipeline()` read it from there. It has two steps: `frame` (Pillow: resize, centre crop; cached in training) and
`normalise` (tensors: scale, standardise). Only the second needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

if TYPE_CHECKING:
    import torch

# Anybody's config.json is read: what it asks for must not take a machine's memory.
MAX_INPUT = 1024
MAX_RESIZED = 4096
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Pixels are scaled to 0–1 first: beside such a deviation, a mean of pixels in 0–255 leaves nothing of a picture.
LEAST_STD = 1e-3
_Mean = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(ge=LEAST_STD, le=1)]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes network input; the names are those of timm's `pretrained_cfg`."""

    image_size: Annotated[int, Field(ge=1, le=MAX_INPUT)]  # side of the square input in pixels
    crop_pct: Annotated[float, Field(gt=0, le=1)]  # the share of the shorter side that is kept, centred
    interpolation: Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"] = "bicubic"
    mean: tuple[_Mean, _Mean, _Mean] = IMAGENET_MEAN
    std: tuple[_Deviation, _Deviation, _Deviation] = IMAGENET_STD

    @classmethod
    def from_pretrained_cfg(cls, cfg: Mapping[str, Any]) -> Preprocessing:
        """Read the preprocessing back out of a release's config.json.

        Raises:
            KeyError, TypeError, ValueError: keys that are missing, an input that is no square, a crop that is not
                central, or a setting of another type or out of its range.
        """
        _, height, width = cfg["input_size"]
        if height != width:
            raise ValueError(f"input_size is {cfg['input_size']}, not a square; only square inputs are supported")
        if cfg.get("crop_mode", "center") != "center":
            raise ValueError(f"crop_mode is {cfg['crop_mode']!r}; only the central crop, 'center', is supported")
        settings = {"image_size": width} | {key: cfg[key] for key in ("crop_pct", "interpolation", "mean", "std")}
        try:
            preprocessing = TypeAdapter(cls).validate_json(json.dumps(settings), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = str(first["loc"][0])
            raise ValueError(f"{key} is {settings[key]!r}; {first['msg'].lower()}") from None
        if preprocessing.resized_side > MAX_RESIZED:
            raise ValueError(
                f"crop_pct is {preprocessing.crop_pct!r} at {width} pixels: every picture would be resized to "
                f"{preprocessing.resized_side} pixels, more than {MAX_RESIZED}"
            )
        return preprocessing

    def to_pretrained_cfg(self) -> dict[str, Any]:
        """The keys that timm and transformers read from config.json."""
        return {
            "input_size": [3, self.image_size, self.image_size],
            "fixed_input_size": False,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": "center",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def frame(self, image: Image.Image) -> np.ndarray:
        """An RGB picture of any size → the (S, S, 3) uint8 pixels the network sees.

        To the pixel what timm's evaluation transform does, so that `pipeline()` sees the same: the shorter side becomes
        `image_size / crop_pct` pixels, rounded down, and the central square of `image_size` is kept.
        """
        size, (left, top) = self._resized(image)
        resized = image.resize(size, Image.Resampling[self.interpolation.upper()])
        return np.asarray(resized.crop((left, top, left + self.image_size, top + self.image_size)))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) pixels, 0–255 of any dtype → scaled and standardised, float32, channels-last in memory."""
        import torch

        mean, std = (_on_device(values, pixels.device).view(1, 3, 1, 1) * 255 for values in (self.mean, self.std))
        return ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)

    def view_box(self, image: Image.Image) -> tuple[float, float, float, float]:
        """The part of a picture that the network sees, as (left, top, right, bottom) in its own pixels."""
        (width, height), (left, top) = self._resized(image)
        across = image.width / width
        down = image.height / height
        right = left + self.image_size
        bottom = top + self.image_size
        return left * across, top * down, right * across, bottom * down

    def _resized(self, image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) that a picture is resized to, and (left, top) of the square that is then kept."""
        side = self.resized_side
        shorter = min(image.size)
        width, height = (side if edge == shorter else int(side * edge / shorter) for edge in image.size)
        return (width, height), (round((width - self.image_size) / 2), round((height - self.image_size) / 2))

    @property
    def resized_side(self) -> int:
        """What the shorter side of a picture is resized to, in pixels."""
        return math.floor(self.image_size / self.crop_pct)


@lru_cache(maxsize=16)
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """A constant, copied once: every copy to a GPU would make the processor wait for it."""
    import torch

    # Made in inference mode, it could not be used in training.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
