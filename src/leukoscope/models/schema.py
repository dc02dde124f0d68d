"""What a release's config.json and metrics.json must say for a prediction to rest on it.

`Config` and `Metrics` check the types and ranges of everything that predicts or decides. More keys are allowed, and
what only reports show is not checked.
"""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator

from leukoscope.data.preprocessing import MAX_INPUT

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FromOne = Annotated[int, Field(ge=1)]
FromZero = Annotated[int, Field(ge=0)]
_Block = TypeVar("_Block")
# The default of a block that may be missing; a null in its place is refused.
_MISSING: Any = None
# Of a block that may be missing, {} says the same.
_MayBeEmpty = Annotated[_Block, WrapValidator(lambda value, check: None if value == {} else check(value))]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ModelArgs(_Checked, extra="forbid"):
    """Arguments of timm's builders; any other could read files or build a network of any size."""

    block_config: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=4)] = []
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    global_pool: str = ""
    img_size: Annotated[int, Field(ge=1, le=MAX_INPUT)] = MAX_INPUT
    in_chans: Literal[3] = 3
    num_classes: Any = None  # timm's own exports name it here as well


class Config(_Checked):
    """config.json; its `pretrained_cfg` is checked by `Preprocessing.from_pretrained_cfg`."""

    architecture: str
    num_classes: int
    label_names: list[Any]
    pretrained_cfg: dict[str, Any]
    model_args: ModelArgs | None = None
    id2label: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _labels_are_those_of_the_head(self) -> Config:
        labels, shown = self.label_names, f"label_names is {reprlib.repr(self.label_names)}"
        if len(labels) != self.num_classes:
            raise ValueError(f"label_names has {len(labels)} entries but the head has {self.num_classes} outputs")
        if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
            raise ValueError(f"{shown}; the labels must be different texts")
        if len(labels) < 2:
            raise ValueError(f"{shown}; a classifier needs two or more classes")
        if self.id2label is not None and self.id2label != {str(k): label for k, label in enumerate(labels)}:
            raise ValueError(f"{shown}, and id2label {reprlib.repr(self.id2label)}")
        return self


class _Data(_Checked):
    name: str = ""
    copy_of: str = ""


class _Training(_Checked):
    subjects: list[Any] = []
    class_frequencies: dict[str, Share] = {}
    output_frequencies: dict[str, Share] = {}


class _Calibration(_Checked):
    temperature: Positive


class _Point(_Checked):
    threshold: Share


class _Abstention(_Checked):
    default: _Point


class _Decisions(_Checked):
    abstention: _MayBeEmpty[_Abstention] = _MISSING


class _Rule(_Checked):
    pooling: Literal["quantiles"]
    coefficients: Annotated[list[float], Field(min_length=5, max_length=5)]
    intercept: float


class _ErrorRate(_Checked):
    share: Share | None
    low: Share | None
    high: Share | None


class _Measured(_Checked):
    error_rate: _MayBeEmpty[_ErrorRate]


class _SubjectRule(_Checked):
    positive_label: str
    least_cells: FromOne
    rule: _Rule
    measured: _Measured


class _EvidenceScale(_Checked):
    p05: NotNegative
    p95: NotNegative
    on_cell_p05: Share = 0.0


class _Recalibration(_Checked):
    previous_temperature: Positive = 1.0


class Metrics(_Checked):
    """metrics.json; every block may be missing."""

    labels: list[str] = []
    positive_label: str = ""
    data: _Data = _MISSING
    training: _Training = _MISSING
    evaluations: list[dict[str, Any]] = []
    calibration: _MayBeEmpty[_Calibration] = _MISSING
    decisions: _Decisions = _MISSING
    subject_rule: _MayBeEmpty[_SubjectRule] = _MISSING
    evidence_scale: _MayBeEmpty[_EvidenceScale] = _MISSING
    recalibration: _Recalibration = _MISSING
    recipe: dict[str, Any] = {}
    ood: dict[str, Any] = {}
    heat_maps: dict[str, Any] = {}
    views: dict[str, Any] = {}
    sha256: dict[str, str] = {}


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, with its place and value."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])[1:] or "its content"
    if first["type"] == "missing":
        return f"{place} is missing"
    said = first["msg"].partition(" or instance of ")[0]
    return f"{place} is {reprlib.repr(first['input'])}; {said[0].lower()}{said[1:]}"
