"""What the authors of five published systems claim, and the two protocols that measure our rebuildings of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RANDOM, UNSEEN = "random", "unseen"
PROTOCOLS = (RANDOM, UNSEEN)


@dataclass(frozen=True)
class Claim:
    """What the author of a prior system claims.

    Attributes:
        recipe: our rebuilding of it, in `PRIOR_RECIPES`.
        system: its letter; several networks of one comparison share it.
        source: where it is published.
        dataset: the data set it is rebuilt on, in `DATASETS`.
        figures: shares, 0–1, as published.
        remark: how to read them.
    """

    recipe: str
    system: str
    source: str
    dataset: str
    figures: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""


_SISTERS = "github.com/aryannverse/"
_FOUR_NETS = "a comparison of four networks in TensorFlow"
_THREE_NETS = "a comparison of three networks on C-NMC"
_ONE_FOR_FOUR: dict[str, Any] = {
    "figures": {"accuracy": 0.98, "precision": 0.97, "recall": 0.98, "f1": 0.975},
    "remark": "given once for four networks, presumably for its best; names neither the cells nor the split",
}
_NO_SPLIT = "does not say how it splits"

# In the order they are made: the most informative for its computing time comes first.
CLAIMS: dict[str, Claim] = {
    claim.recipe: claim
    for claim in (
        Claim(
            "prior_e_densenet121_frozen",
            "E",
            f"{_SISTERS}Leukemia-Detection-Using-DenseNet121-CNN",
            "cnmc2019",
            {"accuracy": 0.955},
            "splits by image; the published notebook itself shows 0.8675, with a HEM recall of 0.70",
        ),
        Claim(
            "prior_a_efficientnet_b3",
            "A",
            f"{_SISTERS}CNN-Leukemia-Detection-EfficientNetB3",
            "cnmc2019",
            {"accuracy": 0.955},
            "splits by image",
        ),
        Claim(
            "prior_b_densenet201",
            "B",
            "github.com/sanyuktaadap/leukemia-classification",
            "ball4",
            {"accuracy": 0.996, "specificity": 0.999, "precision": 0.98, "recall": 0.978, "f1": 0.978},
            "an accuracy so far above the recall suggests one-vs-rest accuracy; its data carries no patient ids, so it "
            "can only have split by image",
        ),
        Claim("prior_d_baseline_cnn", "D", _THREE_NETS, "cnmc2019", {"accuracy": 0.56}, _NO_SPLIT),
        Claim("prior_d_inception", "D", _THREE_NETS, "cnmc2019", {"accuracy": 0.78}, _NO_SPLIT),
        Claim("prior_d_resnet", "D", _THREE_NETS, "cnmc2019", {"accuracy": 0.82}, _NO_SPLIT),
        Claim("prior_c_resnet50", "C", _FOUR_NETS, "cnmc2019", **_ONE_FOR_FOUR),
        Claim("prior_c_efficientnet_b3", "C", _FOUR_NETS, "cnmc2019", **_ONE_FOR_FOUR),
        Claim("prior_c_alexnet", "C", _FOUR_NETS, "cnmc2019", **_ONE_FOR_FOUR),
        Claim("prior_c_vgg16", "C", _FOUR_NETS, "cnmc2019", **_ONE_FOR_FOUR),
    )
}
