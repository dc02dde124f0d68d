"""What was measured of a release: the content of its metrics.json as types, read once and passed on.

`models.release` reads and writes the file. Every block may be missing, and is then None; what a block holds beside its
fields is kept as it is. Shares are 0–1; `low` and `high` are the ends of a 95 % interval.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from leukoscope.data.registry import DATASETS, DatasetInfo

METRICS_FILE = "metrics.json"
SCHEMA_VERSION = 3  # of metrics.json

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = float | None
Shares = dict[str, float]
Counts = dict[str, int]
FromOne = Annotated[int, Field(ge=1)]
FromZero = Annotated[int, Field(ge=0)]
_Block = TypeVar("_Block")
# Of a block that may be missing, {} says the same.
MayBeMissing = Annotated[_Block | None, BeforeValidator(lambda block: None if block == {} else block)]


class Block(BaseModel):
    """A part of metrics.json."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow", populate_by_name=True)

    def content(self) -> dict[str, Any]:
        """It as it stands in the file: what was never set is left out."""
        return self.model_dump(by_alias=True, exclude_unset=True)


# Figures with their intervals


class Interval(Block):
    """A 95 % interval; an end is None where nobody was measured."""

    low: Number = None
    high: Number = None


class Estimate(Interval):
    """A metric with its interval."""

    value: Number = None


class Mean(Interval):
    """A mean over cells with its interval."""

    mean: Number = None


class Rate(Interval):
    """A share of subjects with its exact interval, and the counts behind it."""

    share: Share | None
    right: int = 0
    of: int = 0


class Difference(Interval):
    """A difference of two metrics with its interval."""

    difference: float


class Headline(Block):
    """The metrics that a table quotes, as of `evaluation.metrics.measure`."""

    accuracy: Number = None
    balanced_accuracy: Number = None
    f1_weighted: Number = None
    auroc: Number = None
    balanced_accuracy_by_subject: Number = None
    auroc_by_subject: Number = None
    auroc_equal_size: Number = None
    recall_by_subject: Shares = {}

    def figure(self, key: str) -> float | None:
        """A metric by its name; None where it was not measured."""
        return getattr(self, key, None)


# Data and training


class Data(Block):
    """The cells of the training; `unit` is what its groups are: "subject" or "block"."""

    name: str = ""
    title: str = ""
    licence: str = ""
    citation: str = ""
    copy_of: str = ""
    synthetic: bool = False
    unit: str = ""
    fingerprint: str | None = None
    cells: int = 0
    count_differences: list[str] = []


class PastTraining(Block):
    """The data of one training behind a release."""

    name: str | None = None
    fingerprint: str | None = None
    unit: str | None = None
    subjects: list[str] = []


class StartedFrom(Block):
    """The release that was fine-tuned; `seen` are the trainings behind it."""

    release: str = ""
    revision: str | None = None
    seen: list[PastTraining] = []


class Training(Block):
    """How the weights were made; probabilities assume the `output_frequencies`."""

    cells: int = 0
    subjects: list[str] = []
    class_frequencies: dict[str, Share] = {}
    output_frequencies: dict[str, Share] = {}
    split: str = ""
    start_weights: str = ""
    start_weights_sha256: str = ""
    command: str = ""
    created: str = ""
    hardware: str = ""
    versions: dict[str, str] = {}
    seconds: float = 0.0
    protocol_seconds: Number = None
    epochs_run: int = 0
    kept_epoch: int = 0
    started_from: StartedFrom | None = None


class RecipeUsed(Block):
    """The recipe of the training."""

    name: str = ""
    architecture: str = ""
    base_model: str | None = None
    image_size: int = 0
    frozen: list[str] = []


# Evaluations


class SubjectFigures(Block):
    """The cells of one subject, and how many of them got the right class."""

    label: str
    cells: int = 0
    accuracy: float


class ClassScores(Block):
    """The scores of one class, every cell counting the same."""

    recall: float


class Figures(Headline):
    """All metrics of one set of predictions; rows of the confusion matrix are true classes."""

    cells: int = 0
    per_class: dict[str, ClassScores] = {}
    confusion_matrix: list[list[int]] = []
    subjects: dict[str, SubjectFigures] = {}


class SplitUsed(Block):
    """Which cells were tested; `disjoint_by` is what no two sides share: "subject", "block" or "cell"."""

    detail: str = ""
    disjoint_by: str = ""
    seed: int = 0
    fingerprint: str | None = None
    test_fingerprint: str | None = None


class Intervals(Block):
    """The intervals of an evaluation's metrics, from bootstrap samples of subjects and of cells."""

    level: float = 0.95
    by_cell: dict[str, Interval] = {}
    by_subject: dict[str, Interval] = {}


class Evaluation(Block):
    """One test: what its metrics estimate, on which cells, and the metrics."""

    name: str = ""
    estimates: str = ""
    split: SplitUsed = SplitUsed()
    metrics: Figures = Figures()
    size_only_baseline: MayBeMissing[Headline] = None
    folds: list[Block] = []
    intervals: Intervals = Intervals()

    @property
    def is_unseen(self) -> bool:
        """Whether no subject's cells were in training and test."""
        return self.split.disjoint_by != "cell"

    @property
    def recalls(self) -> dict[str, tuple[float, Interval | None]]:
        """Class → share of its cells that were recognised, each subject weighing the same, and its interval.

        {} where cells of one subject were in training and test, or subjects are not known.
        """
        if not self.is_unseen or not self.metrics.subjects:
            return {}
        intervals = self.intervals.by_subject
        return {
            label: (recall, intervals.get(f"recall_{label}_by_subject"))
            for label, recall in self.metrics.recall_by_subject.items()
        }


class OutsideFigures(Block):
    """The metrics of an outside check, each an `Estimate` under its name."""

    __pydantic_extra__: dict[str, Estimate]
    cells: int = 0
    subjects: int = 0
    subjects_with_at_most_3_cells: int | None = None

    @property
    def figures(self) -> dict[str, Estimate]:
        """Metric → its value and interval."""
        return self.__pydantic_extra__

    def recall(self, label: str) -> Estimate | None:
        """The share of a class's cells that were recognised, each subject weighing the same."""
        return self.figures.get(f"recall_{label}_by_subject")


class FurtherSubjects(OutsideFigures):
    """The outside check, on people that trained no weights.

    Attributes:
        data, estimates: which cells they are, and what was chosen with them in view, for a reader.
        chosen_in_view: whether the default network or the class frequencies were chosen after looking at their figures.
        sha256: of the weights that were measured; `earlier_weights` where the release has others now.
        by_batch: the same figures for each part of these people.
    """

    data: str = ""
    estimates: str = ""
    chosen_in_view: bool | None = None
    measured: str = ""
    sha256: str = ""
    earlier_weights: bool = False
    by_batch: dict[str, OutsideFigures] = {}


class Direction(Block):
    """The share of all cells that a change moves from one class to another."""

    before: str = Field(alias="from")
    after: str = Field(alias="to")
    share: float


class Ranking(Headline):
    """AUROC and recalls of some cells, by subject where subjects are known."""

    intervals: MayBeMissing[dict[str, Interval | None]] = None

    @property
    def auroc_shown(self) -> float | None:
        """The AUROC by subject, or over cells where subjects are not known."""
        return self.auroc if self.auroc_by_subject is None else self.auroc_by_subject

    def interval(self, key: str) -> Interval | None:
        """The interval of a figure; None where there is none."""
        return (self.intervals or {}).get(key)


class ChangeEffect(Ranking):
    """What one small change of the pictures does: shares of cells, and the ranking that is left."""

    family: str
    shows: str
    changed: float
    class_changed: float
    refused: float
    abstained: float
    directions: list[Direction] = []


class Measured(Block):
    """A block that was measured on the cells of an evaluation, or on those that chose the epoch: `cells_of`."""

    estimates: str = ""
    cells_of: Literal["test", "validation"] = "test"


class Robustness(Measured):
    """How the answers hold under small changes of the pictures; `subjects` is None where they are not known."""

    weighted_by: str = "subject"
    cells: int
    subjects: int | None = None
    unchanged: Ranking
    changes: dict[str, ChangeEffect]

    def worst_of_families(self, by: str = "changed") -> list[ChangeEffect]:
        """The worst change of each family by one of its shares, the worst family first."""
        families: dict[str, list[ChangeEffect]] = {}
        for change in self.changes.values():
            families.setdefault(change.family, []).append(change)
        worst = [max(changes, key=attrgetter(by)) for changes in families.values()]
        return sorted(worst, key=attrgetter(by), reverse=True)

    @property
    def worst(self) -> ChangeEffect:
        """The change under which most cells get another class."""
        return self.worst_of_families("class_changed")[0]


# What decides


class Calibration(Block):
    """The temperature that the weights hold, fitted with every "subject" or every "cell" counting the same."""

    temperature: Positive
    weighted_by: Literal["subject", "cell"] = "subject"


class Selective(Block):
    """What a threshold does to some cells: the share that gets a class, and the share of these that is wrong."""

    coverage: Number = None
    coverage_by_subject: Number = None
    risk_by_subject: Number = None


class Threshold(Selective):
    """The probability below which no class is given."""

    threshold: Share
    per_class: dict[str, Selective] = {}


class Abstention(Block):
    """The threshold in use."""

    default: Threshold


class Decisions(Measured):
    """When no class is given."""

    abstention: MayBeMissing[Abstention] = None


class RuleUsed(Block):
    """The logistic regression on pooled logits."""

    pooling: Literal["quantiles"]
    coefficients: Annotated[list[float], Field(min_length=5, max_length=5)]
    intercept: float


class RuleFigures(Block):
    """What a rule for subjects reached on subjects that did not fit it."""

    subjects: int = 0
    auroc: Estimate | None = None
    sensitivity: Rate | None = None
    specificity: Rate | None = None
    given_a_class: int = 0
    difference: Difference | None = None


class RuleMeasured(RuleFigures):
    """The release's own rule, with its errors among the subjects that got a class."""

    error_rate: MayBeMissing[Rate]


class SubjectRuleBlock(Measured):
    """The rule from a subject's cells to a class."""

    positive_label: str
    least_cells: FromOne
    least_cells_suffice: bool = True
    rule: RuleUsed
    measured: RuleMeasured
    size_only: MayBeMissing[RuleFigures] = None


class Recalibration(Block):
    """The cells of another laboratory that temperature, thresholds and detector were fitted on."""

    source: str = Field(default="", alias="from")
    data: str = ""
    cells: int = 0
    subjects: int = 0
    previous_temperature: Positive = 1.0


class HeldOut(Block):
    """Cells that the OOD detector was not fitted on; the shares of them that it keeps."""

    kept_share: Number = None
    kept_share_by_subject: Number = None


class HealthyCells(Block):
    """White cells of healthy donors: what became of them, and their most probable class."""

    cells: int
    outcomes: Counts = {}
    most_probable: Counts = {}


class Ood(Block):
    """What the OOD detector keeps and refuses; `healthy` has sources of cells, then kinds."""

    held_out: HeldOut = HeldOut()
    healthy: dict[str, dict[str, HealthyCells]] = {}


# Maps


class EvidenceScale(Block):
    """How strong the maps of a method usually are; percentiles of measured cells."""

    method: str = ""
    p05: NotNegative | None
    p95: NotNegative | None
    median: Number = None
    on_cell_p05: Share | None = None

    def divided(self, factor: float) -> EvidenceScale:
        """It for maps whose logits were divided by a factor."""
        strengths = {"p05": self.p05, "median": self.median, "p95": self.p95}
        return self.model_copy(
            update={name: strength / factor for name, strength in strengths.items() if strength is not None}
        )


class Deletion(Block):
    """What removing marked pixels does to the class's probability."""

    gain_over_random: MayBeMissing[Mean] = None


class Rotation(Block):
    """Correlations of a cell's map with that of the turned cell."""

    correlation: Mean | None = None
    untrained: Mean | None = None
    silhouette: Mean | None = None


EVIDENCE_METHOD = "evidence"
"""The `method` of a map from one pass through the network: Grad-CAM relative to a blank picture."""
OCCLUSION_METHOD = "occlusion"
"""The `method` of a map by covering: how far the class's margin falls when a place of the picture is blurred."""
MAP_NAMES = {EVIDENCE_METHOD: "Grad-CAM map", OCCLUSION_METHOD: "map by covering"}


class MapChecks(Block):
    """What the checks of the maps of a method found; `passed` is None where they were not checked.

    `research.map_checks` runs the checks. A map that failed them looks as plausible as one that passed, so whatever
    shows a map says what they found.
    """

    method: str = EVIDENCE_METHOD
    cells: int = 0
    passed: bool | None = None
    deletion: MayBeMissing[Deletion] = None
    rotation: MayBeMissing[Rotation] = None

    @property
    def name(self) -> str:
        """What a map of this method is called."""
        return MAP_NAMES[self.method]

    @property
    def deletion_gain(self) -> float | None:
        """How much lower the class's mean probability is after removing marked pixels than after random ones."""
        gain = self.deletion and self.deletion.gain_over_random
        return gain.mean if gain else None

    @property
    def text(self) -> str:
        """The finding in one or two sentences."""
        maps = f"This model's {self.name.replace('map', 'maps')}"
        if self.passed is None:
            return f"{maps} were not checked."
        finding = f"{maps} {'passed' if self.passed else 'failed'} our checks."
        gain = self.deletion_gain
        if gain is None or self.passed != (gain > 0):  # another check decided
            return finding
        difference = f"{abs(gain):.2f} {'lower' if gain > 0 else 'higher'}"
        compared = f"the class's probability {difference} than removing random pixels"
        return f"{finding} Removing what they mark leaves {compared}."

    def to_dict(self) -> dict[str, Any]:
        """Return the finding ready for JSON."""
        names = ("method", "passed", "deletion_gain", "text")
        return {name: getattr(self, name) for name in names}


class Metrics(Block):
    """The content of a release's metrics.json; `filled_in` says what an older file lacked."""

    schema_version: int = SCHEMA_VERSION
    notice: str = ""
    recipe: RecipeUsed = RecipeUsed()
    labels: list[str] = []
    positive_label: str = ""
    data: Data = Data()
    training: Training = Training()
    evaluations: list[Evaluation] = []
    calibration: MayBeMissing[Calibration] = None
    decisions: MayBeMissing[Decisions] = None
    subject_rule: MayBeMissing[SubjectRuleBlock] = None
    subject_rule_missing: MayBeMissing[str] = None
    ood: MayBeMissing[Ood] = None
    robustness: MayBeMissing[Robustness] = None
    further_subjects: MayBeMissing[FurtherSubjects] = None
    recalibration: MayBeMissing[Recalibration] = None
    heat_maps: MayBeMissing[MapChecks] = None
    evidence_scale: MayBeMissing[EvidenceScale] = None
    occlusion_maps: MayBeMissing[MapChecks] = None
    occlusion_scale: MayBeMissing[EvidenceScale] = None
    sha256: dict[str, str] = {}
    filled_in: list[str] = Field(default=[], exclude=True)

    @classmethod
    def from_content(cls, content: Any) -> Metrics:
        """Read the content of a metrics.json; what an older file lacks is filled in, and `filled_in` says what.

        Raises:
            pydantic.ValidationError: a block of another shape.
        """
        metrics = cls.model_validate(content)
        metrics.filled_in = _fill_in(metrics)
        return metrics

    def changed(self, **blocks: Any) -> Metrics:
        """It with other blocks, each typed, as it stands in the file, or None to leave it out."""
        changed = {**self.content(), **blocks}
        return Metrics.model_validate({name: block for name, block in changed.items() if block is not None})

    def content(self) -> dict[str, Any]:
        """It as it stands in the file, without blocks that are missing."""
        return {name: block for name, block in super().content().items() if block is not None}

    @property
    def dataset(self) -> DatasetInfo | None:
        """The registry's entry of the training cells; None where it has none."""
        return DATASETS.get(self.data.name) or DATASETS.get(self.data.copy_of)

    @property
    def takes_cut_outs(self) -> bool | None:
        """Whether it was trained on cells cut out on black; None where its data set does not say, as folders do not."""
        info = self.dataset
        if info is None or info.name == "imagefolder":
            return None
        return info.background == "black"

    @property
    def takes_fields(self) -> bool:
        """Whether it was trained on fields of view, each with several cells."""
        info = DATASETS.get(self.data.name)
        return info is not None and info.pictures.startswith("fields of view")

    @property
    def first_evaluation(self) -> Evaluation | None:
        """The test that comes first; None without any."""
        return next(iter(self.evaluations), None)

    @property
    def on_people(self) -> Evaluation | None:
        """The first test, where it tested people of every class that the networks never saw."""
        first = self.first_evaluation
        if first is None or first.split.disjoint_by != "subject" or not first.recalls:
            return None
        return first if set(first.recalls) == set(self.labels) else None

    @property
    def unseen_evaluation(self) -> Evaluation | None:
        """The first test on subjects that the networks never saw, None without any.

        A recalibrated release has one on its own cells, the last, which is returned instead.
        """
        unseen = [evaluation for evaluation in self.evaluations if evaluation.is_unseen]
        if not unseen:
            return None
        if self.recalibration:
            return unseen[-1]
        return unseen[0]

    @property
    def trainings(self) -> list[PastTraining]:
        """The trainings behind the weights: their own, then those of the releases that they were fine-tuned from."""
        training = self.training
        if not training.model_fields_set:
            return []
        data = self.data
        # A copy on the Hub holds the same subjects, called the same.
        own = PastTraining(
            name=data.copy_of or data.name, fingerprint=data.fingerprint, unit=data.unit, subjects=training.subjects
        )
        return [own, *(training.started_from or StartedFrom()).seen]

    @property
    def map_check(self) -> MapChecks:
        """What the checks of its Grad-CAM maps found; a block about maps of another method says nothing about these."""
        if self.heat_maps is None or self.heat_maps.method != EVIDENCE_METHOD:
            return MapChecks()
        return self.heat_maps

    @property
    def class_changes(self) -> dict[str, float]:
        """Small change of the picture → share of cells that get another class; {} where it was not measured."""
        if self.robustness is None:
            return {}
        return {name: change.class_changed for name, change in self.robustness.changes.items()}

    @property
    def temperature(self) -> float:
        """The temperature in the weights since they were last fitted."""
        return (self.calibration or Calibration(temperature=1.0)).temperature

    @property
    def earlier_temperature(self) -> float:
        """The product of the temperatures of earlier fits, which the weights hold as well."""
        return (self.recalibration or Recalibration()).previous_temperature


def _fill_in(metrics: Metrics) -> list[str]:
    """Fill in what an older file lacks, and say what."""
    filled_in = []
    training = metrics.training
    if training.class_frequencies and not training.output_frequencies:
        training.output_frequencies = training.class_frequencies
        filled_in.append("training.output_frequencies: those of the training cells")
    first = metrics.first_evaluation
    is_cross_validated = metrics.recalibration or (first and first.folds)
    for block in (metrics.decisions, metrics.subject_rule, metrics.robustness):
        if block and "cells_of" not in block.model_fields_set:
            block.cells_of = "test" if is_cross_validated else "validation"
            filled_in.append(f"cells_of of what {block.estimates or 'is not said'} estimates: {block.cells_of}")
    return filled_in
