"""Predictions come with their source: which cells, which model, and which of the tested subjects trained it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drawn import place
from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.registry import dataset_info
from leukoscope.data.splits import make_split
from leukoscope.evaluation.evaluate import SelectedCells, build_evaluation, select_cells, training_overlap
from leukoscope.evaluation.predict import predict_cells
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.metrics import Metrics
from leukoscope.models.release import ReleaseInfo
from predicted import classifier


@pytest.fixture(scope="module")
def everything(phantom_data: LoadedCells) -> SelectedCells:
    return select_cells(phantom_data)


def predictions_for(cells: SelectedCells) -> CellPredictions:
    return predict_cells(classifier(), cells.data, cells.split.test)


def overlap_with(
    metrics: dict[str, Any], predictions: CellPredictions, cells: SelectedCells, folder: Path | None = None
) -> dict[str, Any]:
    """Of a release with this content of metrics.json, and the predictions that `folder` holds."""
    known = Metrics.from_content(metrics)
    release = ReleaseInfo(("ALL", "HEM"), Preprocessing(32, 1.0), known, "house/bright", "abc", folder)
    return training_overlap(release, predictions, cells)


@pytest.fixture(scope="module")
def predictions(everything: SelectedCells) -> CellPredictions:
    return predictions_for(everything)


def test_what_predict_decides_is_counted_under_the_names_of_the_data_set(everything: SelectedCells) -> None:
    outcomes = itertools.cycle(("blast", "abstain", "normal", "out of distribution"))
    names = {"blast": "ALL", "normal": "HEM"}
    model = classifier(("blast", "normal"), outcomes)
    answered = predict_cells(model, everything.data, everything.split.test, label_map=names)
    evaluation = build_evaluation(model.release, answered, everything, label_map=names)

    truth = answered.references
    right = sum(truth[::4] == 0) + sum(truth[2::4] == 1)
    quarter = len(truth) // 4
    counts = {"ALL": quarter, "HEM": quarter, "abstain": quarter, "out of distribution": quarter}
    assert evaluation["decisions"] == {"outcomes": counts, "given": 2 * quarter, "right": right}
    assert evaluation["model"] == {"name": "house/bright", "revision": "abc"}


def test_without_a_split_every_cell_is_predicted(
    phantom_data: LoadedCells, everything: SelectedCells, predictions: CellPredictions
) -> None:
    assert set(everything.split.test) == set(phantom_data.train["cell_id"][:])
    assert list(predictions.cell_ids) == phantom_data.train["cell_id"][:]
    assert predictions.subjects == tuple(phantom_data.train["subject"][:])
    assert predictions.references.tolist() == phantom_data.train["label"][:]


def test_a_split_asks_about_its_test_side(phantom_data: LoadedCells, tmp_path: Path) -> None:
    drawn = make_split(phantom_data, "subject-cv", fold=1, num_folds=3, validation=False)
    first = make_split(phantom_data, "subject-cv", validation=False)
    assert select_cells(phantom_data, "subject-cv").split.test == first.test
    drawn.save(tmp_path / "split.json")
    asked = select_cells(phantom_data, split_file=tmp_path / "split.json")
    assert asked.split == drawn
    assert set(predictions_for(asked).cell_ids) == set(drawn.test)


def test_fewer_cells_are_drawn_from_the_same_side(phantom_data: LoadedCells) -> None:
    whole = select_cells(phantom_data, "subject")
    some = select_cells(phantom_data, "subject", at_most=5)
    assert len(some.split.test) == 5 and set(some.split.test) < set(whole.split.test)
    assert some.about()["split"]["fingerprint"] == whole.split.fingerprint
    assert (some.about()["split"]["cells"], some.about()["split"]["drawn_from"]) == (5, len(whole.split.test))


def test_two_ways_to_choose_cells_are_refused(phantom_data: LoadedCells, tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match="--split subject --split_file x.json: both say which cells are tested"):
        select_cells(phantom_data, "subject", "x.json")
    with pytest.raises(LeukoscopeError, match="--split all: tests no cell; leave it out to predict every cell"):
        select_cells(phantom_data, "all")


def release_metrics(cells: SelectedCells, subjects: list[str], **more: Any) -> dict[str, Any]:
    return {
        "training": {"subjects": subjects},
        "data": {"name": cells.data.info.name, "title": "Phantoms", "fingerprint": cells.data.fingerprint},
        **more,
    }


def test_people_who_trained_the_weights_are_counted(everything: SelectedCells, predictions: CellPredictions) -> None:
    people = sorted(set(predictions.subjects))
    found = overlap_with(release_metrics(everything, [*people[:3], "someone else"]), predictions, everything)
    expected = f"These weights were trained on 3 of these {len(people)} subjects: not a test."
    assert found == {"verdict": "bad", "statement": expected, "subjects": 3}
    apart = overlap_with(release_metrics(everything, ["someone else"]), predictions, everything)
    assert (apart["verdict"], apart["subjects"]) == ("good", 0)


def test_people_who_trained_the_release_it_was_fine_tuned_from_are_counted(
    everything: SelectedCells, predictions: CellPredictions
) -> None:
    metrics = release_metrics(everything, ["someone else"])
    before = metrics["data"] | {"unit": "subject", "subjects": [min(predictions.subjects)]}
    metrics["training"]["started_from"] = {"seen": [before]}
    found = overlap_with(metrics, predictions, everything)
    assert (found["verdict"], found["subjects"]) == ("bad", 1)


def test_a_copy_on_the_hub_holds_the_same_subjects(everything: SelectedCells, predictions: CellPredictions) -> None:
    copied = replace(everything.data.info, name="lab/cells", copy_of=everything.data.info.name)
    on_copy = replace(everything, data=replace(everything.data, info=copied, fingerprint="another"))
    trained_on_original = release_metrics(everything, [min(predictions.subjects)])
    assert overlap_with(trained_on_original, predictions, on_copy)["subjects"] == 1
    trained_on_copy = release_metrics(on_copy, [min(predictions.subjects)])
    trained_on_copy["data"]["copy_of"] = copied.copy_of
    assert overlap_with(trained_on_copy, predictions, everything)["subjects"] == 1


def test_a_model_without_a_record_is_not_called_tested(everything: SelectedCells, predictions: CellPredictions) -> None:
    found = overlap_with({}, predictions, everything)
    assert found["verdict"] == "warning" and "What trained these weights is not recorded" in found["statement"]


def elsewhere(cells: SelectedCells, predictions: CellPredictions) -> dict[str, Any]:
    """A release of another data set whose subjects go by the same names."""
    return release_metrics(cells, list(predictions.subjects)) | {"data": {"name": "cnmc2019", "title": "C-NMC"}}


def test_another_data_set_s_subjects_are_other_people_where_its_cells_can_be_compared(
    everything: SelectedCells, predictions: CellPredictions, tmp_path: Path
) -> None:
    count = len(predictions.cell_ids)
    others = replace(
        predictions,
        cell_ids=tuple(f"another-{i}" for i in range(count)),
        pixel_hashes=tuple(f"{i:016x}" for i in range(count)),
    )
    (tmp_path / "predictions").mkdir()
    others.save(tmp_path / "predictions" / "subject_cv.parquet")
    found = overlap_with(elsewhere(everything, predictions), predictions, everything, tmp_path)
    assert found["verdict"] == "warning"
    assert found["statement"] == (
        "These weights were trained on another data set (C-NMC); none of these cells has the name or the exact pixels "
        "of one of its cells, but a renamed and re-encoded copy is not recognised."
    )
    # Without hashes, another name proves nothing.
    found = overlap_with(elsewhere(everything, predictions), predictions, everything)
    assert found["verdict"] == "warning"
    assert found["statement"].endswith("whether it holds some of these cells cannot be told.")


@pytest.mark.parametrize("by", ["pixels", "name"])
def test_training_cells_under_another_data_set_s_name_are_no_test(
    everything: SelectedCells, predictions: CellPredictions, tmp_path: Path, by: str
) -> None:
    """The release's own predictions give them away, in class folders of whatever name."""
    (tmp_path / "predictions").mkdir()
    kept = predictions if by == "pixels" else replace(predictions, pixel_hashes=None)
    if by == "pixels":
        kept = replace(kept, cell_ids=tuple(f"UID_{i}" for i in range(len(kept.cell_ids))))
    kept.save(tmp_path / "predictions" / "subject_cv.parquet")
    moved = replace(predictions, cell_ids=tuple(f"blasts/{cell}.png" for cell in predictions.cell_ids))
    found = overlap_with(elsewhere(everything, predictions), moved, everything, tmp_path)
    count = len(predictions.cell_ids)
    assert found["verdict"] == "bad"
    assert found["statement"] == (
        f"These weights were trained on another data set (C-NMC), which holds {count} of these {count} cells, too: "
        "not a test."
    )


def test_known_aliases_are_one_subject(everything: SelectedCells, predictions: CellPredictions) -> None:
    named = replace(predictions, subjects=tuple("78" for _ in predictions.subjects))
    cnmc = replace(everything, data=replace(everything.data, info=dataset_info("cnmc2019")))
    metrics = {"training": {"subjects": ["51"]}, "data": {"name": "cnmc2019"}}
    assert overlap_with(metrics, named, cnmc)["verdict"] == "bad"


def test_without_subject_ids_only_the_training_split_proves_a_test(phantom_data: LoadedCells) -> None:
    asked = select_cells(phantom_data, "subject")
    nameless = replace(predictions_for(asked), subjects=("",) * len(asked.split.test))
    metrics = release_metrics(asked, [])
    assert overlap_with(metrics, nameless, asked)["verdict"] == "bad"
    for key in ("fingerprint", "test_fingerprint"):  # the second is newer
        metrics["evaluations"] = [{"split": {key: asked.split.about()[key]}}]
        assert overlap_with(metrics, nameless, asked)["verdict"] == "good"


def test_the_test_side_alone_proves_a_test_whatever_part_of_train_was_the_validation_side(
    phantom_data: LoadedCells,
) -> None:
    """`select_cells` draws no validation side; a training run does."""
    asked = select_cells(phantom_data, "random-cv")
    nameless = replace(predictions_for(asked), subjects=("",) * len(asked.split.test))
    trained, other = (make_split(phantom_data, "random-cv", fold=fold) for fold in (0, 1))
    assert trained.validation and trained.fingerprint != asked.whole.fingerprint
    metrics = release_metrics(asked, [])
    for split, verdict in ((trained, "good"), (other, "bad")):
        metrics["evaluations"] = [{"split": split.about()}]
        assert overlap_with(metrics, nameless, asked)["verdict"] == verdict


@pytest.mark.parametrize("split", ["random", "random-cv", "subject"])
def test_a_damaged_picture_changes_no_split(tmp_path: Path, cache_in_tmp: pytest.MonkeyPatch, split: str) -> None:
    """Training leaves it out before it draws the split."""
    for label, subject, cell in product(("ALL", "HEM"), range(8), range(3)):
        (tmp_path / "cells" / label).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng((len(label), subject, cell)).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "cells" / label / f"{label}{subject}_{cell}.png")
    damaged = tmp_path / "cells" / "ALL" / "ALL3_1.png"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    data = load_cells("imagefolder", tmp_path / "cells", subject_pattern=r"/(?P<subject>\w+)_")
    trained = make_split(frame_cells(data, Preprocessing(32, 1.0)).data, split)
    asked = select_cells(data, split)
    assert set(asked.whole.test) == set(trained.test)
    assert len(data.unreadable) == 0 and "ALL3_1" in asked.data.unreadable[0]


def test_of_class_folders_with_splits_of_their_own_only_the_test_split_is_a_test(tmp_path: Path) -> None:
    files = ["/".join(parts) for parts in product(("train", "test"), ("ALL", "HEM"), (f"{n}.png" for n in range(8)))]
    data = load_cells("imagefolder", place(tmp_path, *files))
    trained, asked, every = make_split(data, "given"), select_cells(data, "given"), select_cells(data)
    assert trained.validation and trained.fingerprint != asked.whole.fingerprint
    metrics = release_metrics(asked, []) | {"evaluations": [{"split": trained.about()}]}
    assert overlap_with(metrics, predictions_for(asked), asked)["verdict"] == "good"
    assert overlap_with(metrics, predictions_for(every), every)["verdict"] == "bad"


def test_short_names_identify_no_cell(everything: SelectedCells, predictions: CellPredictions, tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    two = replace(predictions.take([0, 1]), pixel_hashes=None)
    replace(two, cell_ids=("12", "UID_1_1_1_all")).save(tmp_path / "predictions" / "subject_cv.parquet")
    tested = replace(two, cell_ids=("ALL/12.png", "ALL/UID_1_1_1_all.bmp"))
    found = overlap_with(elsewhere(everything, predictions), tested, everything, tmp_path)
    assert "holds 1 of these 2 cells" in found["statement"]
