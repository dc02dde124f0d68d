"""The prior systems rebuilt and measured twice: by their authors' protocol, and on unseen patients.

A row is one recipe under one protocol: a training run of its own, and one JSON file with its result beside the author's
claim. Rows that have their file are skipped and finished runs kept, so an interrupted command resumes where it stopped.
The README's table is rendered from these files.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.registry import entry_or_folders
from leukoscope.evaluation.bootstrap import BOOTSTRAP_SAMPLES, LEVEL, subject_intervals
from leukoscope.evaluation.metrics import CellPredictions, headline
from leukoscope.experiments.protocol import RANDOM_SPLIT, ProtocolRun, finish, other_cells
from leukoscope.models.release_files import read_metrics, write_json
from leukoscope.training.config import NOT_THE_RESULT, DataArguments, TrainingConfig
from leukoscope.training.plots import class_report
from leukoscope.training.run_folder import plain

PRIOR_RESULTS = Path("results/prior")
RANDOM, UNSEEN = "random", "unseen"
PROTOCOLS = (RANDOM, UNSEEN)


@dataclass(frozen=True)
class Claim:
    """What the author of a prior system claims.

    Attributes:
        recipe: our rebuilding of it, in `RECIPES`.
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


@dataclass(frozen=True)
class Row:
    """One recipe under one protocol: the run that measures it and the file that keeps the result."""

    claim: Claim
    protocol: str
    run: ProtocolRun
    file: Path

    def is_finished(self) -> bool:
        """True when its file holds this very row.

        Raises:
            LeukoscopeError: the file is damaged, or holds a row made with other settings, start weights or cells.
        """
        if not self.file.exists():
            return False
        try:
            made = json.loads(self.file.read_text())
        except ValueError as error:
            raise LeukoscopeError(f"{self.file}: damaged ({error}); restore it, or remove it to run the row") from None
        wanted, then = _flags(self.run.config), {**made["flags"], **_weights_in(made["training"]["command"])}
        if weights := self.run.config.weights_name:
            wanted["pretrained_weights"] = weights
        different = [f"{k}: {then.get(k)}" for k in sorted(wanted.keys() | then) if wanted.get(k) != then.get(k)]
        different += other_cells(made["data"], self.run.config)
        if different:
            raise LeukoscopeError(
                f"{self.file}: made with other settings ({', '.join(different)}); give another --output folder, or "
                "remove it to run the row anew"
            )
        return True


def _flags(config: TrainingConfig) -> dict[str, Any]:
    """The flags that determine a row's result and are not the defaults."""
    defaults = TrainingConfig().as_dict()
    return {k: plain(v) for k, v in config.as_dict().items() if k not in NOT_THE_RESULT and v != defaults[k]}


def _weights_in(command: str) -> dict[str, str]:
    """The start weights' file name, which a row keeps in its command alone; {} without."""
    words = shlex.split(command)
    return {flag[2:]: name for flag, name in pairwise(words) if flag == "--pretrained_weights"}


def prior_rows(
    config: TrainingConfig, recipes: Sequence[str], protocols: Sequence[str], results: Path = PRIOR_RESULTS
) -> list[Row]:
    """List the rows to make, in their order.

    Args:
        config: data, start weights and other flags of every row; its recipe and split are replaced.
        recipes: names in `CLAIMS`; none means all that are rebuilt on the configuration's data set.
        protocols: of `PROTOCOLS`; none means both.

    Raises:
        LeukoscopeError: an unknown recipe or protocol, flags that a row sets itself, one weights file for several
            recipes, or cells on which the system is not rebuilt without a `results` folder of their own.
    """
    data, defaults = config.data, DataArguments()
    given = {
        "split": data.split != defaults.split,
        "split_file": data.split_file,
        "no_validation": data.no_validation,
        "push_to_hub": config.run.push_to_hub,
    }
    for flag in (flag for flag, is_given in given.items() if is_given):
        raise LeukoscopeError(f"--{flag}: the protocols make their own splits and publish nothing; leave it out")
    for flag, names, known in (("recipe", recipes, tuple(CLAIMS)), ("protocol", protocols, PROTOCOLS)):
        for name in names:
            if name not in known:
                raise LeukoscopeError(f"--{flag} {name}: unknown; choose one of {', '.join(known)}")
    dataset = data.dataset_name
    chosen = recipes or [name for name, claim in CLAIMS.items() if claim.dataset == dataset] or list(CLAIMS)
    if config.model.pretrained_weights and len(chosen) > 1:
        raise LeukoscopeError(
            f"--pretrained_weights {config.model.pretrained_weights}: fits one network, and {len(chosen)} recipes are "
            "asked for; name one with --recipe"
        )
    for name in chosen:
        if CLAIMS[name].dataset != dataset and results.resolve() == PRIOR_RESULTS.resolve():
            raise LeukoscopeError(
                f"--dataset_name {dataset}: {name} is rebuilt on {CLAIMS[name].dataset}; rows on other cells go into a "
                "folder of their own, named with --output DIR"
            )
    # Blocks of neighbouring images stand for subjects where a data set names none.
    unit = entry_or_folders(dataset).group
    splits = {RANDOM: ("random", RANDOM_SPLIT), UNSEEN: (unit, f"recipe (one split by {unit})")}
    rows = []
    for recipe, protocol in product(chosen, protocols or PROTOCOLS):
        (split, estimates), name = splits[protocol], f"{recipe}-{protocol}"
        its_config = TrainingConfig(
            replace(data, split=split),
            replace(config.model, recipe=recipe),
            replace(config.run, output_dir=str(Path(config.run.output_dir or "runs/prior") / name)),
        )
        rows.append(Row(CLAIMS[recipe], protocol, ProtocolRun(name, its_config, estimates), results / f"{name}.json"))
    return rows


def reproduce(rows: Sequence[Row]) -> Iterator[Path]:
    """Make every row that has no file yet, and yield each row's file in turn.

    Raises:
        LeukoscopeError: a recipe that does not exist or a row made with other settings, before anything is trained; or
            a run that fails.
    """
    from accelerate import PartialState

    finished = []
    for row in rows:
        row.run.config.resolve()
        finished.append(row.is_finished())
    for number, (row, is_finished) in enumerate(zip(rows, finished, strict=True), start=1):
        state = "has its row, skipped" if is_finished else row.run.estimates
        print(f"row {number} of {len(rows)}, {row.run.name}: {state}", flush=True)
        if not is_finished:
            finish([row.run])
            if PartialState().is_main_process:
                row.file.parent.mkdir(parents=True, exist_ok=True)
                write_json(row.file, result(row))
        yield row.file


def result(row: Row) -> dict[str, Any]:
    """The result of a finished run beside the claim, ready for `write_json`."""
    metrics = read_metrics(row.run.folder)
    block, training = metrics["evaluations"][0], metrics["training"]
    measured = block["metrics"]
    report = class_report(measured)
    kept = ("cells", "epochs_run", "kept_epoch", "seconds", "start_weights", "seed", "created", "hardware", "versions")
    return {
        "notice": RESEARCH_NOTICE,
        "protocol": row.protocol,
        "estimates": row.run.estimates,
        "claim": asdict(row.claim),
        "recipe": metrics["recipe"],
        "flags": _flags(row.run.config),
        "data": {k: metrics["data"][k] for k in ("name", "title", "fingerprint", "cells", "unit", "citation")},
        "split": block["split"],
        "training": {"command": row.run.config.command(), **{key: training[key] for key in kept}},
        "metrics": {
            "cells": measured["cells"],
            **headline(measured),
            "one_vs_rest_accuracy": report["mean"]["one_vs_rest_accuracy"],
            "mean_over_classes": report["mean"],
            "per_class": report["classes"],
            "confusion_matrix": measured["confusion_matrix"],
            "subjects": len(measured["subjects"]),
        },
        "intervals": _intervals(row),
        "size_only_baseline": block.get("size_only_baseline"),
    }


def _intervals(row: Row) -> dict[str, Any]:
    """Bootstrap intervals by subject (or block); {} for a random split, where subjects are on both sides."""
    if row.protocol == RANDOM:
        return {}
    predictions = CellPredictions.load(row.run.folder / "predictions.parquet")
    try:
        return {"level": LEVEL, "draws": BOOTSTRAP_SAMPLES, "seed": 0, "by_subject": subject_intervals(predictions)}
    except LeukoscopeError:
        # Too few subjects of a class are tested.
        return {}
