"""Predictions come with their source: which cells, which model, and which of the tested subjects trained it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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
from leukoscope.evaluation.evaluate import (
    SelectedCells,
    match_labels,
    predictions_of_model,
    select_cells,
    training_overlap,
)
from leukoscope.evaluation.overlap import KnownCells
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import Decision, Prediction
from leukoscope.models.release import ReleaseInfo


@pytest.fixture(scope="module")
def everything(phantom_data: LoadedCells) -> SelectedCells:
    return select_cells(phantom_data)


class Bright:
    """Says how bright a picture is; no network, but a predictor in every other respect."""

    def __init__(self, labels: tuple[str, ...] = ("ALL", "HEM"), outcomes: Iterator[str] | None = None) -> None:
        self.labels, self.outcomes = labels, outcomes or itertools.repeat(labels[0])
        self.release = ReleaseInfo(labels, Preprocessing(32, 1.0), {}, "house/bright", "abc")

    def __call__(self, pictures: list[Image.Image], *, batch_size: int) -> list[Prediction]:
        bright = [np.asarray(picture).mean() / 255 for picture in pictures]
        shares = [dict(zip(self.labels, (one, 1 - one), strict=True)) for one in bright]
        decided = [Decision(next(self.outcomes)) for _ in pictures]
        return [
            Prediction(decision, share, "", "house/bright", "abc", 0.0, None, (0, 0, 1, 1))
            for decision, share in zip(decided, shares, strict=True)
        ]


def classifier(labels: tuple[str, ...] = ("ALL", "HEM"), outcomes: Iterator[str] | None = None) -> Any:
    return Bright(labels, outcomes)


def test_what_predict_would_decide_is_counted_under_the_names_of_the_data_set(everything: SelectedCells) -> None:
    outcomes = itertools.cycle(("blast", "abstain", "normal", "out of distribution"))
    release = classifier(("blast", "normal"), outcomes)
    answered = predictions_of_model(release, everything, label_map={"blast": "ALL", "normal": "HEM"})

    truth = answered.predictions.references
    right = sum(truth[::4] == 0) + sum(truth[2::4] == 1)
    quarter = len(truth) // 4
    counts = {"ALL": quarter, "HEM": quarter, "abstain": quarter, "out of distribution": quarter}
    assert answered.decisions() == {"outcomes": counts, "given": 2 * quarter, "right": right}


def predictions_for(cells: SelectedCells) -> CellPredictions:
    return predictions_of_model(classifier(), cells).predictions


@pytest.fixture(scope="module")
def predictions(everything: SelectedCells) -> CellPredictions:
    return predictions_for(everything)


def test_without_a_split_every_cell_is_predicted(phantom_data: LoadedCells, everything: SelectedCells) -> None:
    assert set(everything.split.test) == set(phantom_data.train["cell_id"][:])
    answered = predictions_of_model(classifier(), everything)
    assert list(answered.predictions.cell_ids) == phantom_data.train["cell_id"][:]
    assert answered.predictions.subjects == tuple(phantom_data.train["subject"][:])
    assert answered.predictions.references.tolist() == phantom_data.train["label"][:]
    assert answered.name == "house/bright"


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
    found = training_overlap(
        release_metrics(everything, [*people[:3], "someone else"]), predictions, everything, KnownCells()
    )
    expected = f"These weights were trained on 3 of these {len(people)} subjects: not a test."
    assert found == {"verdict": "bad", "statement": expected, "subjects": 3}
    apart = training_overlap(release_metrics(everything, ["someone else"]), predictions, everything, KnownCells())
    assert (apart["verdict"], apart["subjects"]) == ("good", 0)


def test_people_who_trained_the_release_it_was_fine_tuned_from_are_counted(
    everything: SelectedCells, predictions: CellPredictions
) -> None:
    metrics = release_metrics(everything, ["someone else"])
    before = metrics["data"] | {"unit": "subject", "subjects": [min(predictions.subjects)]}
    metrics["training"]["started_from"] = {"seen": [before]}
    found = training_overlap(metrics, predictions, everything, KnownCells())
    assert (found["verdict"], found["subjects"]) == ("bad", 1)


def test_a_copy_on_the_hub_holds_the_same_subjects(everything: SelectedCells, predictions: CellPredictions) -> None:
    copied = replace(everything.data.info, name="lab/cells", copy_of=everything.data.info.name)
    on_copy = replace(everything, data=replace(everything.data, info=copied, fingerprint="another"))
    trained_on_original = release_metrics(everything, [min(predictions.subjects)])
    assert training_overlap(trained_on_original, predictions, on_copy, KnownCells())["subjects"] == 1
    trained_on_copy = release_metrics(on_copy, [min(predictions.subjects)])
    trained_on_copy["data"]["copy_of"] = copied.copy_of
    assert training_overlap(trained_on_copy, predictions, everything, KnownCells())["subjects"] == 1


def test_a_model_without_a_record_is_not_called_tested(everything: SelectedCells, predictions: CellPredictions) -> None:
    found = training_overlap({}, predictions, everything, KnownCells())
    assert found["verdict"] == "warning" and "What trained these weights is not recorded" in found["statement"]


def elsewhere(cells: SelectedCells, predictions: CellPredictions) -> dict[str, Any]:
    """A release of another data set whose subjects go by the same names."""
    return release_metrics(cells, list(predictions.subjects)) | {"data": {"name": "cnmc2019", "title": "C-NMC"}}


def test_another_data_set_s_subjects_are_other_people_where_its_cells_can_be_compared(
    everything: SelectedCells, predictions: CellPredictions
) -> None:
    others = KnownCells(hashes=frozenset({"0123456789abcdef"}))
    found = training_overlap(elsewhere(everything, predictions), predictions, everything, others)
    assert found["verdict"] == "warning"
    assert found["statement"] == (
        "These weights were trained on another data set (C-NMC); none of these cells has the name or the exact pixels "
        "of one of its cells, but a renamed and re-encoded copy is not recognised."
    )
    # Without hashes, another name proves nothing.
    found = training_overlap(elsewhere(everything, predictions), predictions, everything, KnownCells())
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
    known = KnownCells.of_release(tmp_path)
    found = training_overlap(elsewhere(everything, predictions), moved, everything, known)
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
    assert training_overlap(metrics, named, cnmc, KnownCells())["verdict"] == "bad"


def test_without_subject_ids_only_the_training_split_proves_a_test(phantom_data: LoadedCells) -> None:
    asked = select_cells(phantom_data, "subject")
    nameless = replace(predictions_for(asked), subjects=("",) * len(asked.split.test))
    metrics = release_metrics(asked, [])
    assert training_overlap(metrics, nameless, asked, KnownCells())["verdict"] == "bad"
    for key in ("fingerprint", "test_fingerprint"):  # the second is newer
        metrics["evaluations"] = [{"split": {key: asked.split.about()[key]}}]
        assert training_overlap(metrics, nameless, asked, KnownCells())["verdict"] == "good"


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
        assert training_overlap(metrics, nameless, asked, KnownCells())["verdict"] == verdict


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


def test_class_folders_with_splits_of_their_own_are_told_how_to_test_only_the_test_split(tmp_path: Path) -> None:
    files = ["/".join(parts) for parts in product(("train", "test"), ("ALL", "HEM"), (f"{n}.png" for n in range(8)))]
    data = load_cells("imagefolder", place(tmp_path, *files))
    trained, asked, every = make_split(data, "given"), select_cells(data, "given"), select_cells(data)
    assert trained.validation and trained.fingerprint != asked.whole.fingerprint
    metrics = release_metrics(asked, []) | {"evaluations": [{"split": trained.about()}]}
    assert training_overlap(metrics, predictions_for(asked), asked, KnownCells())["verdict"] == "good"
    found = training_overlap(metrics, predictions_for(every), every, KnownCells())
    assert found["verdict"] == "bad"
    assert found["statement"].endswith("not a test. --split given tests the cells of the test split alone.")


def test_classes_meet_by_name_whatever_the_case_and_several_of_a_model_may_be_one_of_ours() -> None:
    assert match_labels("m", ["hem", "All"], ["ALL", "HEM"], {}) == (1, 0)
    names = {"Early": "ALL", "Pre": "ALL", "Pro": "ALL", "benign": "HEM"}
    assert match_labels("m", ["Benign", "Early", "Pre", "Pro"], ["ALL", "HEM"], names) == (1, 0, 0, 0)


def refusal_of(theirs: list[str], ours: list[str], names: dict[str, str] | None = None) -> str:
    with pytest.raises(LeukoscopeError) as error:
        match_labels("some/model", theirs, ours, names or {})
    message = str(error.value)
    start = f"some/model: its classes are {', '.join(theirs)}, but the data set has {', '.join(ours)}; "
    assert message.startswith(start)
    return message.removeprefix(start)


ASKED = "name the class of the data set for each class of the model: --label_map THEIRS=OURS, once per class"


@pytest.mark.parametrize("names", [{}, {"LABEL_0": "ALL"}, {"LABEL_0": "ALL", "LABEL_1": "all"}, {"LABEL_0": "none"}])
def test_classes_without_a_counterpart_are_named_on_both_sides(names: dict[str, str]) -> None:
    assert refusal_of(["LABEL_0", "LABEL_1"], ["ALL", "HEM"], names) == ASKED


def test_a_class_that_the_model_lacks_cannot_be_named() -> None:
    assert refusal_of(["ALL", "HEM"], ["ALL", "HEM", "AML"]).startswith(
        "leave out the cells of the classes that it lacks"
    )


# What identifies a cell that a release was made from; what follows from it is tested with `training_overlap`


def test_short_names_identify_no_cell() -> None:
    known = KnownCells(names=frozenset({"12", "UID_1_1_1_all"}))
    assert known.among(["ALL/12.png", "ALL/UID_1_1_1_all.bmp"], None) == 1
