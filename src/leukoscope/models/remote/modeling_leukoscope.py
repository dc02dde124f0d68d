"""A Leukoscope release for transformers: its configuration, its classifier and its image processor.

transformers runs this copy from the release's folder when asked with `trust_remote_code=True`. It imports nothing of
Leukoscope and downloads nothing. For research only; not a medical device, never use it for diagnosis.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_data_config
from transformers import BaseImageProcessor, BatchFeature, PretrainedConfig, PreTrainedModel
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import ImageClassifierOutput

from .framing import cell_box, framed_cell  # type: ignore[import-untyped]  # beside it in a release, not here
from .networks import build_own


class LeukoscopeConfig(PretrainedConfig):
    """config.json of a release.

    Attributes:
        architecture: a timm model, or a network of `networks.py`.
        head: settings of `networks.HeadLayers`; None for the architecture's own head.
    """

    model_type = "leukoscope"

    architecture: str = ""
    head: dict[str, Any] | None = None


class LeukoscopeForImageClassification(PreTrainedModel):
    """The release's network as transformers wants it."""

    config_class = LeukoscopeConfig
    main_input_name = "pixel_values"

    def __init__(self, config: LeukoscopeConfig):
        super().__init__(config)
        self.network = build_own(config.architecture, len(config.id2label or ()), config.head)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        # transformers builds a network without numbers; those of such a buffer stand in no file.
        compute: Any = getattr(module, "init_non_persistent_buffers", None)
        if compute is not None:
            compute()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """(B, 3, S, S) from the image processor → logits (B, K); the loss too where (B,) labels are given."""
        logits = self.network(pixel_values.to(self.device, self.dtype))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class LeukoscopeImageProcessor(BaseImageProcessor):
    """timm's evaluation transform over the release's own preprocessing, behind its framing of the cell.

    Args:
        pretrained_cfg: input_size, crop_pct, interpolation, mean, std and framing, as in config.json.
    """

    def __init__(self, pretrained_cfg: dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.pretrained_cfg = pretrained_cfg

    def preprocess(self, images: Any, return_tensors: str = "pt", **_: Any) -> BatchFeature:
        """One picture or several (PIL, or arrays) → pixel_values (B, 3, S, S) float32."""
        cfg = self.pretrained_cfg
        transform = create_transform(**resolve_data_config(cfg))
        # A cell that is framed already is kept as it is.
        keep = create_transform(**resolve_data_config(cfg | {"crop_pct": 1.0}))
        pictures: Any = make_flat_list_of_images(images)
        prepared = []
        for picture in pictures:
            whole = to_pil_image(picture).convert("RGB")
            box = cell_box(whole) if cfg.get("framing") == "cell" else None
            if box is None:
                prepared.append(transform(whole))
            else:
                prepared.append(keep(framed_cell(whole, box, cfg["input_size"][-1], cfg["interpolation"])))
        pixels = torch.stack(prepared)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)
