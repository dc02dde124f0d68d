"""The repository of the benchmark `cnmc2019-subjects`: folds by subject of C-NMC 2019, without a single picture.

`make docs` renders card, eval.yaml and croissant.json from cells.csv and the committed results. The folds are those of
version 1.0.0 for good.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import yaml

from leukoscope.benchmark import EVALUATION_FRAMEWORK, Benchmark, read_benchmark
from leukoscope.files import file_sha256, write_atomic
from leukoscope.models.metrics import Evaluation
from leukoscope.models.release import read_metrics, write_json
from leukoscope.reports.tables import Table, count, metric_name, share, with_interval
from research.tables import by_protocol, read_results

NAME = "cnmc2019-subjects"
FOLDER = ROOT / "benchmarks" / NAME
RELEASE = "leukoscope-densenet169-cnmc"  # whose cross-validation has these folds
CELLS = "cells.csv"
CARD, EVAL_YAML, CROISSANT, BASELINES = "README.md", "eval.yaml", "croissant.json", "baselines.json"
COLUMNS = {
    "file": "Name of the image, as published.",
    "label": "Class: ALL, a leukaemic blast, or HEM, a normal precursor.",
    "subject": "The person, with all ids of one person joined.",
    "published_subject": "The person's id in the name.",
    "fold": "Fold of the benchmark, 0 to 4; all cells of a subject are in one.",
    "official_fold": "Fold in which the image is published, 0 to 2; for the cross-batch protocol.",
}
_CROISSANT_TERMS = (
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject"),
    *("fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5"),
    *("parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator"),
    *("source", "subField", "transform"),
)
METRICS = ("auroc_by_subject", "balanced_accuracy_by_subject", "accuracy", "auroc_equal_size")


def baselines() -> list[dict[str, Any]]:
    """What our releases, the rebuilt systems and cell size alone reach, from committed results; the best first."""
    rows = []
    for path in sorted((ROOT / "model_card").glob("*-cnmc/metrics.json")):
        evaluation = read_metrics(path.parent).evaluations[0].content()
        rows.append(_baseline(path.parent.name, "release of Leukoscope", evaluation))
    for (recipe, protocol), row in by_protocol(read_results(ROOT / "results" / "prior")).items():
        if protocol == "unseen" and row["data"]["name"] == "cnmc2019":
            rows.append(_baseline(recipe, f"system {row['claim']['system']}, rebuilt", row))
    cells = evaluation["metrics"]["cells"]
    size = {key: evaluation["size_only_baseline"][key] for key in METRICS}
    rows.append({"model": "cell size alone", "kind": "no network", "cells": cells, "metrics": size})
    return sorted(rows, key=lambda row: -row["metrics"]["auroc_by_subject"])


def _baseline(name: str, kind: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": name,
        "kind": kind,
        "cells": evaluation["metrics"]["cells"],
        "metrics": {key: evaluation["metrics"][key] for key in METRICS if key in evaluation["metrics"]},
        "intervals": {
            "by_subject": {
                key: interval for key, interval in evaluation["intervals"]["by_subject"].items() if key in METRICS
            }
        },
    }


def baselines_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The baselines as the card shows them."""
    shown = []
    for row in rows:
        block = Evaluation.model_validate({key: row[key] for key in ("metrics", "intervals") if key in row})
        figures = [with_interval(block, key) for key in METRICS[:2]]
        shown.append((row["model"], row["kind"], *figures, *(share(row["metrics"].get(key)) for key in METRICS[2:])))
    return Table(("model", "what it is", *map(metric_name, METRICS)), shown, text_columns=2)


def eval_yaml(benchmark: Benchmark) -> str:
    """The file that makes a data set repository of the Hub a benchmark."""
    content = {
        "name": benchmark.title,
        "description": (
            "Leukaemic and normal white blood cells of C-NMC 2019, each predicted by a network that saw no cell of the "
            "same person. For research only, never for diagnosis. The images come from The Cancer Imaging Archive; "
            "this repository holds names, subjects and folds."
        ),
        "evaluation_framework": EVALUATION_FRAMEWORK,
        "tasks": [{"id": benchmark.task_id, "config": "default", "split": "test"}],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _croissant_context() -> dict[str, Any]:
    """What the terms of Croissant 1.1 mean, as its specification lists them."""
    terms = {name: f"cr:{name}" for name in _CROISSANT_TERMS}
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "dct": "http://purl.org/dc/terms/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
        **terms,
        "conformsTo": "dct:conformsTo",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "description": {"@container": "@language"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "name": {"@container": "@language"},
    }


def croissant(benchmark: Benchmark, folder: Path, *, url: str = "") -> dict[str, Any]:
    """Croissant 1.1 metadata of cells.csv.

    Args:
        url: the repository's address; "" until it is published.
    """
    info = benchmark.info
    cells = folder / CELLS
    fields = []
    for column, description in COLUMNS.items():
        is_number = column in ("fold", "official_fold")
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"cells/{column}",
                "name": column,
                "description": description,
                "dataType": "sc:Integer" if is_number else "sc:Text",
                "source": {"fileObject": {"@id": CELLS}, "extract": {"column": column}},
            }
        )
    return {
        "@context": _croissant_context(),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": benchmark.name,
        "description": yaml.safe_load(eval_yaml(benchmark))["description"],
        "version": benchmark.version,
        "license": "https://creativecommons.org/licenses/by/3.0/",
        "url": url or info.url,
        "citeAs": info.citation,
        "isBasedOn": info.url,
        "creator": {"@type": "sc:Organization", "name": "Leukoscope"},
        "datePublished": "2026-11-28",
        "isLiveDataset": False,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": CELLS,
                "name": CELLS,
                "description": "One row for each image of the training set.",
                "contentUrl": CELLS,
                "contentSize": f"{cells.stat().st_size} B",
                "encodingFormat": "text/csv",
                "sha256": file_sha256(cells),
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "cells",
                "name": "cells",
                "description": "Images, subjects and folds.",
                "key": {"@id": "cells/file"},
                "field": fields,
            }
        ],
    }


def card(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], *, hub_id: str = "") -> str:
    """The README of the repository: what it holds, its rules, metrics and baselines."""
    info = benchmark.info
    named = hub_id or benchmark.name
    cross_batch = read_results(ROOT / "results", "cross_batch.json")[0]
    over_the_three = cross_batch["over_the_three"]
    front_matter = {
        "license": "cc-by-3.0",
        "pretty_name": benchmark.title,
        "task_categories": ["image-classification"],
        "tags": ["benchmark", "medical", "leukaemia", "blood-cells", "leukoscope"],
        "size_categories": ["10K<n<100K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "test", "path": CELLS}]}],
    }
    columns = Table(
        ("column", "what it holds"), [(f"`{name}`", text) for name, text in COLUMNS.items()], text_columns=2
    )
    ids = defaultdict(list)
    published = _published_subjects()
    for alias, subject in info.subject_aliases.items():
        if alias in published:
            ids[subject].append(alias)
    aliases = "; ".join(f"{subject} = {', '.join(sorted(others))}" for subject, others in sorted(ids.items()))
    cells = max(row["cells"] for row in rows)
    sizes = _sizes(benchmark)
    return f"""---
{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True).rstrip()}
---

# {benchmark.title}

How well does a classifier recognise leukaemic cells of **people it never saw**? This benchmark divides the
{count(benchmark.cells)} training cells of [{info.title}]({info.url}) into {len(benchmark.folds)} folds by subject.
**For research only; not a medical device, never for diagnosis.**

No picture is here. `{CELLS}` has a row for each image, under the name that it has in The Cancer Imaging Archive:

{columns}

The names hold {len(published)} ids of subjects. Some are one person: the same cells, identical or photographed
again, are found under each of these ids. They are joined here to {len(benchmark.fold_of)} subjects: {aliases}.

{sizes}

## Rules

1. A cell is predicted by a model that was trained on no cell of its subject's fold: one model for each fold, or one
   model that saw no cell of C-NMC 2019.
2. Copies and augmented images of a cell stay in its fold. Epochs, thresholds and sizes are chosen on the other folds.
3. Every cell is predicted, also those that a model would refuse.

**The result** is the AUROC by subject: the area under the ROC curve in which a cell weighs 1 / (cells of its subject),
so that each subject counts the same. Its 95 % interval is a bootstrap over subjects. Reported beside it: balanced
accuracy by subject, accuracy over cells, and the AUROC among cells of equal size (within deciles of the area), because
leukaemic cells are larger and size alone goes far.

**Cross-batch protocol**: train on two official folds, test on the third, three times. Leave each subject that is also
tested out of training. One network of ours ({cross_batch["recipe"]}) has an AUROC by subject of
{share(over_the_three["auroc_by_subject"])} so.

## Measure a model

```sh
pip install leukoscope
leukoscope evaluate --benchmark {named} MODEL --train_dir C-NMC_Leukemia
leukoscope evaluate --benchmark {named} 'runs/fold{{fold}}/release' --train_dir C-NMC_Leukemia
leukoscope evaluate --benchmark {named} predictions.csv
```

MODEL is any model that transformers' `pipeline` loads; with `{{fold}}` in its name, the model not trained on that fold.
A table has the columns file, ALL and HEM (probabilities). With the repository's full id, the command also writes the
entry for `.eval_results/` of the model's repository.

## Baselines

Rendered from the results in Leukoscope's repository. They cover {count(cells)} of {count(benchmark.cells)} cells: those
of the archive's fold 2 that we did not have are missing. Intervals are by subject, each row has one seed, and the
settings of our releases were chosen with these folds in view.

{baselines_table(rows)}

## Cite

{info.citation}

Names, subjects and official folds are from that data set (CC BY 3.0). Folds and joined ids are by Leukoscope.
"""


def _published_subjects() -> set[str]:
    """Ids of subjects in the names."""
    with (FOLDER / CELLS).open(encoding="utf-8", newline="") as file:
        return {row["published_subject"] for row in csv.DictReader(file)}


def _sizes(benchmark: Benchmark) -> Table:
    """Subjects and cells of each fold."""
    with (FOLDER / CELLS).open(encoding="utf-8", newline="") as file:
        cells = Counter((row["fold"], row["label"]) for row in csv.DictReader(file))
    labels = benchmark.info.labels
    rows = [
        (str(fold), str(len(subjects)), *(count(cells[str(fold), label]) for label in labels))
        for fold, subjects in enumerate(benchmark.folds)
    ]
    return Table(("fold", "subjects", *labels), rows)


def write_repository(folder: Path, *, hub_id: str = "", url: str = "") -> None:
    """Render card, eval.yaml, croissant.json and baselines.json beside cells.csv.

    Args:
        hub_id, url: of the repository on the Hub; "" until it is published.
    """
    benchmark = read_benchmark(NAME)
    rows = baselines()
    write_json(folder / BASELINES, {"benchmark": NAME, "version": benchmark.version, "results": rows})
    write_json(folder / CROISSANT, croissant(benchmark, folder, url=url))
    write_atomic(folder / EVAL_YAML, eval_yaml(benchmark))
    write_atomic(folder / CARD, card(benchmark, rows, hub_id=hub_id))


if __name__ == "__main__":
    write_repository(FOLDER)
    print(FOLDER.relative_to(ROOT))
