"""The label-preserving augmentation of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field

from leukoscope.data.changes import drawn_change
from leukoscope.data.images import BACKGROUND_LEVEL

View = int  # one of a picture's eight views: quarter turns, 4 to 7 mirrored before
_VIEWS: dict[str, tuple[View, ...]] = {
    "none": (0,),
    "horizontal": (0, 4),
    "both": (0, 4, 6, 2),
    "dihedral": tuple(range(8)),
}


def in_view(pixels: torch.Tensor, view: View) -> torch.Tensor:
    """(B, C, S, S) pictures in one of the eight views, mirrored left to right before they are turned."""
    return torch.rot90(pixels if view < 4 else pixels.flip(3), view % 4, (2, 3))


@dataclass(frozen=True)
class Augmentation:
    """Label-preserving changes, sampled anew for every cell and epoch.

    No crop: a cell cut at the border has lost its nucleus-to-cytoplasm ratio. Size jitter weakens the shortcut
    "small = normal"; stain jitter moves haematoxylin and eosin apart in optical density (after Tellez et al. 2018,
    doi:10.1109/TMI.2018.2820199).

    Attributes:
        scale, brightness, contrast: largest relative change, both ways (scale 0.25: ×1/1.25 … ×1.25).
        stain: largest relative change of each stain's optical density.
        rotation: largest angle in degrees, both ways. 180 is any angle; half of the cells then turn by right angles
            only, at their size, so that their pixels are not resampled.
        flips: mirrored left to right half of the time ("horizontal"), upside down as well ("both"), or never ("none").
            "dihedral" is like "both", and without any other change shows each of the eight views equally often.
        small_changes: share of the pictures that get one of `changes.TRAINING_RANGES` beside: another lamp, lens, focus
            or file.
        versions: of a cell, where `only_views` and there are small changes: the picture as it is, and copies that have
            one of the `views` and a small change of their own. A copy is the same in every epoch, so that a frozen
            backbone's features of it can be kept.
    """

    scale: Annotated[float, Field(ge=0)] = 0.25
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.2
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.15
    stain: Annotated[float, Field(ge=0, le=1)] = 0.2
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    flips: Literal["both", "horizontal", "none", "dihedral"] = "both"
    small_changes: Annotated[float, Field(ge=0, le=1)] = 0.0
    versions: Annotated[int, Field(ge=2)] = 4

    @property
    def views(self) -> tuple[View, ...]:
        """The views in which a cell is shown, where `only_views`; the first is the picture as it is."""
        return _VIEWS[self.flips]

    @property
    def only_views(self) -> bool:
        """True if a cell has finitely many versions: it is mirrored, turned by right angles, and changed a little."""
        return not any((self.scale, self.brightness, self.contrast, self.stain, self.rotation))

    @property
    def version_count(self) -> int:
        """How many versions a cell has, where `only_views`."""
        return self.versions if self.small_changes else len(self.views)


# Haematoxylin, eosin and residual as rows of optical density in R, G, B (Ruifrok & Johnston 2001).
_STAIN_OD = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_OD_TO_STAIN = torch.linalg.inv(_STAIN_OD)

_DRAWS = 10  # numbers drawn for a cell and epoch


class Augmenter:
    """Augments batches; the changes of a cell depend only on (seed, epoch, its row), not on the number of processes."""

    def __init__(self, augmentation: Augmentation, background: str, seed: int):
        """Take the settings; `background` is "black" or "smear", as in `DatasetInfo`."""
        self.augmentation = augmentation
        self.padding_mode = "zeros" if background == "black" else "reflection"
        self.black_background = background == "black"
        self.seed = seed
        self._drawn: tuple[int, torch.Tensor] = (-1, torch.empty(0, _DRAWS))

    def __call__(self, pixels: torch.Tensor, rows: Sequence[int], epoch: int) -> torch.Tensor:
        """(B, 3, S, S) uint8 pixels → float32, 0–255, augmented; `rows` are the cells' numbers in the data set."""
        if self.augmentation.only_views:
            chosen = self.versions_of(rows, epoch)
            out = pixels.clone()
            for number in range(self.augmentation.version_count):
                some = torch.nonzero(chosen == number).flatten()
                if len(some):
                    there = some.to(pixels.device)
                    out[there] = self.version(pixels[there], [rows[place] for place in some.tolist()], number)
            return out.float()
        draws = self._draws(rows, epoch)
        changed = self._change(pixels, [(self.seed, epoch, row) for row in rows])
        return self._colour(self._warp(changed.float(), draws), draws)

    def version(self, pixels: torch.Tensor, rows: Sequence[int], number: int) -> torch.Tensor:
        """(B, 3, S, S) uint8 cells in the version of that number; number 0 is the picture as it is."""
        views = self.augmentation.views
        if not self.augmentation.small_changes or number == 0:
            return in_view(pixels, views[number])
        seeds = [(row, number) for row in rows]
        changed = self._change(pixels, seeds)
        for place, seed in enumerate(seeds):
            # Not the numbers that `_change` draws.
            view = views[np.random.default_rng((*seed, 1)).integers(len(views))]
            changed[place : place + 1] = in_view(changed[place : place + 1], view)
        return changed

    def _change(self, pixels: torch.Tensor, seeds: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """(B, 3, S, S) uint8 pictures, a share of them with one small change, drawn for each by its own seed."""
        if not self.augmentation.small_changes:
            return pixels
        changed = pixels.clone()
        for place, seed in enumerate(seeds):
            rng = np.random.default_rng(seed)
            if rng.random() >= self.augmentation.small_changes:
                continue
            change = drawn_change(rng)
            picture = Image.fromarray(pixels[place].permute(1, 2, 0).cpu().numpy())
            new = np.array(change(picture, black=self.black_background))
            changed[place] = torch.from_numpy(new).permute(2, 0, 1).to(pixels.device)
        return changed

    def versions_of(self, rows: Sequence[int], epoch: int) -> torch.Tensor:
        """(B,) which of its versions each cell shows in this epoch."""
        draws = self._draws(rows, epoch)
        if self.augmentation.small_changes:
            count = self.augmentation.version_count
            return ((draws[:, 0] + 1) / 2 * count).long().clamp(max=count - 1)
        if self.augmentation.flips == "dihedral":
            return self._right_angles(draws)
        across, down = (flip < 0 for flip in self._flips(draws))
        return across.long() + 2 * down.long()

    def _draws(self, rows: Sequence[int], epoch: int) -> torch.Tensor:
        """(B, 10) numbers in −1…1, on the CPU.

        Angle, log-size, left–right flip, brightness, contrast, three stains, resampled?, up–down flip.
        """
        drawn_for, table = self._drawn
        if drawn_for != epoch or len(table) <= max(rows):
            # One stream an epoch, in the order of the rows: a longer table begins with the shorter one.
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            shape = (1 << int(max(rows)).bit_length(), _DRAWS)
            table = torch.from_numpy(rng.uniform(-1, 1, size=shape).astype(np.float32))
            self._drawn = (epoch, table)
        return table[torch.as_tensor(rows)]

    def _flips(self, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) each, −1 where a cell is mirrored: left to right, upside down."""
        a = self.augmentation
        across = torch.ones(len(draws), device=draws.device)
        down = across
        if a.flips != "none":
            across = torch.where(draws[:, 2] < 0, -1.0, 1.0)
        # A rotation by 180° and a flip across are a flip upside down.
        if a.flips in ("both", "dihedral") and a.rotation < 180:
            down = torch.where(draws[:, 9] < 0, -1.0, 1.0)
        return across, down

    def _right_angles(self, draws: torch.Tensor) -> torch.Tensor:
        """(B,) a view for each cell: every number of quarter turns equally often, mirrored or not."""
        across, _ = self._flips(draws)
        return ((draws[:, 0] + 1) * 2).long().clamp(max=3) + 4 * (across < 0).long()

    def _warp(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Rotation, size and flips; over the full circle half of the cells turn by right angles only, at their size."""
        if self.augmentation.rotation < 180:
            return self._resampled(pixels, draws)
        out = torch.empty_like(pixels)
        resampled = draws[:, 8] < 0
        views = torch.where(resampled, -1, self._right_angles(draws))
        for view in range(8):
            some = _where(views == view, pixels.device)
            out[some] = in_view(pixels[some], view)
        if resampled.any():
            some = _where(resampled, pixels.device)
            out[some] = self._resampled(pixels[some], draws[resampled])
        return out

    def _resampled(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Rotation, size and flips as one resampling."""
        angle = draws[:, 0] * math.radians(self.augmentation.rotation)
        # grid_sample maps output to input coordinates: dividing by the scale enlarges.
        shrink = 1 / torch.exp(draws[:, 1] * math.log1p(self.augmentation.scale))
        across, down = self._flips(draws)
        cos = torch.cos(angle) * shrink
        sin = torch.sin(angle) * shrink
        zero = torch.zeros_like(cos)
        theta = torch.stack([cos * across, -sin * down, zero, sin * across, cos * down, zero], dim=1).view(-1, 2, 3)
        theta = theta.to(pixels.device, non_blocking=True)
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
        # Bicubic, because bilinear resampling takes a third of the fine chromatin contrast away: a network trained on
        # such blurred cells meets crisp ones in use and leans to one class.
        warped = F.grid_sample(pixels, grid, mode="bicubic", padding_mode=self.padding_mode, align_corners=False)
        return warped.clamp(0, 255)

    def _colour(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Stain, brightness and contrast; a black background stays black."""
        a = self.augmentation
        cell = (pixels.amax(dim=1, keepdim=True) > BACKGROUND_LEVEL).float() if self.black_background else 1.0
        density = -torch.log((pixels + 1) / 256)
        # One 3×3 matrix a cell: to stain space, each stain scaled, and back.
        mixing = _OD_TO_STAIN @ torch.diag_embed(1 + draws[:, 5:8] * a.stain) @ _STAIN_OD
        density = torch.einsum("bchw,bcd->bdhw", density, mixing.to(pixels.device, non_blocking=True))
        changed = 256 * torch.exp(-density) - 1
        mean = changed.mean(dim=(1, 2, 3), keepdim=True)
        column = draws.view(len(draws), -1, 1, 1, 1).to(pixels.device, non_blocking=True)
        changed = (changed - mean) * (1 + column[:, 4] * a.contrast) + mean
        return (changed * (1 + column[:, 3] * a.brightness)).clamp(0, 255) * cell


def _where(chosen: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Indices of the true values of (B,), computed on the CPU: on a GPU, the processor would wait for the count."""
    return chosen.nonzero().flatten().to(device, non_blocking=True)
