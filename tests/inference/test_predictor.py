"""The predictor must predict alike however a picture arrives, name why it refuses one, and load from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drawn import save_cell
from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Prediction, Predictor
from leukoscope.data.changes import most_telling
from leukoscope.data.images import UnreadableImage, is_cut_out, open_image
from leukoscope.inference.gradcam import overlay, share_on_cell
from leukoscope.inference.prediction import (
    NOT_A_CELL,
    NUM_VIEWS,
    OUT_OF_DISTRIBUTION,
    HeatMap,
    Reason,
    disagreement,
    turned,
    turned_back,
)
from leukoscope.inference.runtime import TorchBackend
from leukoscope.synthetic import draw_cell, draw_smear, example_cell


@pytest.fixture(scope="module")
def predictor(tiny_release: Path) -> Predictor:
    return Predictor.from_pretrained(tiny_release)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five phantoms of three sizes, saved as PNG."""
    folder = tmp_path_factory.mktemp("cells")
    sizes, labels = (450, 128, 64, 450, 128), ("HEM", "ALL", "HEM", "ALL", "HEM")
    paths = [save_cell(folder / f"cell-{i}.png", labels[i], subject=i, size=sizes[i]) for i in range(5)]
    # Of this one the small network has evidence for its most probable class.
    Image.fromarray(example_cell("HEM", 0)).save(paths[0])
    return paths


def shares(prediction: Prediction) -> list[float]:
    return list(prediction.probabilities.values())


def heatmaps(prediction: Prediction) -> dict[str, HeatMap]:
    assert prediction.heatmaps is not None
    return prediction.heatmaps


def ood_score(prediction: Prediction) -> float:
    assert prediction.checks.ood_score is not None
    return prediction.checks.ood_score


def mean_map(predictor: Predictor, picture: np.ndarray) -> np.ndarray:
    """The signed maps (K, h, w) of a picture's eight views, turned back and averaged."""
    framed, found = predictor.release.preprocessing.frame(Image.fromarray(picture))[None], []
    for view in range(NUM_VIEWS):
        maps = predictor.backend(turned(framed, view), explain=True).maps
        assert maps is not None
        found.append(turned_back(maps[0], view))
    return np.mean(found, axis=0)


def network_of(predictor: Predictor) -> Any:
    """Of timm, whose layers `nn.Module` does not declare."""
    assert isinstance(predictor.backend, TorchBackend)
    return predictor.backend.network


def test_one_picture_gives_one_prediction_however_it_arrives(
    predictor: Predictor, cells: list[Path], tiny_release: Path
) -> None:
    prediction = predictor(cells[0])

    assert isinstance(prediction, Prediction)
    assert list(prediction.probabilities) == ["ALL", "HEM"] == list(predictor.labels)
    assert sum(shares(prediction)) == pytest.approx(1, abs=1e-12)
    assert prediction.most_probable == max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    # A release without a detector says nothing about distribution.
    assert prediction.outcome == prediction.decision.outcome == prediction.most_probable
    assert (prediction.decision.reasons, prediction.checks.ood_score, predictor.ood) == ((), None, None)
    assert (prediction.source, prediction.model, prediction.revision) == (str(cells[0]), str(tiny_release), "")
    assert prediction.heatmaps is None and prediction.seconds > 0
    content = cells[0].read_bytes()
    given: list[Any] = [content, np.asarray(Image.open(cells[0]))]
    given += [Image.open(cells[0]), str(cells[0])]
    found = [predictor(one) for one in given]
    assert [shares(one) for one in found] == [shares(prediction)] * len(given)
    assert [one.source for one in found] == ["image 1"] * 3 + [str(cells[0])]
    together = predictor(given, batch_size=3)
    assert np.allclose([shares(one) for one in together], shares(prediction), atol=1e-5)
    names = [one.source for one in together]
    assert names == [*(f"image {number}" for number in range(1, 4)), str(cells[0])], "across batches"
    (found_one,) = predictor.iter_predictions(str(cells[0]))
    assert isinstance(found_one, Prediction) and found_one.source == str(cells[0])
    assert predictor([]) == []


def test_an_explained_prediction_draws_itself(predictor: Predictor, cells: list[Path]) -> None:
    explained = predictor(cells[0], explain=True)
    picture, label = open_image(cells[0]), explained.most_probable
    other = next(name for name in explained.probabilities if name != label)
    peak = max(heatmap.evidence.max() for heatmap in heatmaps(explained).values())

    def drawn(name: str, **options: float) -> Image.Image:
        return overlay(picture, heatmaps(explained)[name].evidence, explained.view_box, **options)

    assert explained.picture == picture
    assert explained.overlay() == explained.overlay(label) == drawn(label, peak=peak)
    assert explained.overlay(other, peak=2 * peak) == drawn(other, peak=2 * peak)
    common = replace(explained, peak=3 * peak)
    assert common.overlay() == drawn(label, peak=peak) != common.overlay(peak=common.peak)
    with pytest.raises(LeukoscopeError, match="label 'Pro' is unknown; name one of ALL, HEM"):
        explained.overlay("Pro")
    with pytest.raises(LeukoscopeError, match=f"^{cells[0]}: has no Grad-CAM map; predict it with explain=True$"):
        predictor(cells[0]).overlay()


def test_a_map_is_the_positive_evidence_averaged_over_eight_views(predictor: Predictor, cells: list[Path]) -> None:
    picture = np.asarray(open_image(cells[0]))
    signed = mean_map(predictor, picture)
    assert signed.min() < 0 and not mean_map(predictor, 0 * picture).any()
    found = predictor(cells[0], explain=True)
    maps = np.stack([heat.evidence for heat in heatmaps(found).values()])
    assert maps == pytest.approx(np.maximum(signed, 0), abs=1e-6)
    assert found.checks.on_cell is not None
    assert heatmaps(predictor(cells[0], explain=True, tta=True)).keys() == {"ALL", "HEM"}


def test_explaining_decides_by_the_upright_view_and_tells_the_other_seven(
    predictor: Predictor, cells: list[Path]
) -> None:
    for plain, found in zip(predictor(cells, batch_size=2), predictor(cells, explain=True, batch_size=2), strict=True):
        assert (plain.decision, plain.probabilities) == (found.decision, found.probabilities)
        assert (
            found.views[0] == found.probabilities and len({tuple(view.values()) for view in found.views}) == NUM_VIEWS
        )
        assert (plain.views, plain.agreeing_views, plain.to_dict()["agreeing_views"]) == ((), 0, None)
        assert found.to_dict()["agreeing_views"] == found.agreeing_views
        assert (plain.picture, plain.heatmaps) == (None, None), "many pictures would fill the memory"
        for label, heat in heatmaps(found).items():
            assert heat.label == label and heat.evidence.min() >= 0
            assert heat.evidence.shape == (3, 3) and heat.evidence.dtype == np.float32
        maps = heatmaps(found)
        assert list(maps) == ["ALL", "HEM"] and not np.array_equal(maps["ALL"].evidence, maps["HEM"].evidence)
    split = replace(found, views=({"ALL": 0.6, "HEM": 0.4},) * 3 + ({"ALL": 0.3, "HEM": 0.7},) * 5)
    assert split.agreeing_views == 3
    by_view = [list(view.values()) for view in found.views]
    averaged = predictor(cells[-1], tta=True)
    assert shares(averaged) == pytest.approx(np.mean(by_view, axis=0).tolist(), abs=1e-6)
    assert averaged.checks.disagreement == averaged.to_dict()["disagreement"] == disagreement(np.array([by_view]))[0]
    assert found.checks.disagreement is None
    assert averaged.agreeing_views == found.agreeing_views


def test_no_more_pictures_are_taken_than_the_next_batch_and_each_may_be_closed_then(
    predictor: Predictor, cells: list[Path]
) -> None:
    taken: list[Path] = []

    def taking() -> Iterator[Image.Image]:
        for cell in cells:
            taken.append(cell)
            with Image.open(cell) as picture:
                yield picture

    stream = predictor.iter_predictions(taking(), batch_size=2)

    first = next(stream)
    assert taken == cells[:4]
    found = [one for one in (first, *stream) if isinstance(one, Prediction)]
    assert [shares(one) for one in found] == [shares(one) for one in predictor(cells, batch_size=2)]


def test_an_unusable_file_is_refused_by_name_and_the_others_are_predicted(
    predictor: Predictor, cells: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(cells[0].read_bytes()[:2000])
    for name, problem in {
        "text.png": "is not an image; give one of BMP, PNG, JPG, TIFF, WEBP",
        "missing.bmp": "no such file; check the path",
        "cut.png": "the image is damaged or cut short",
    }.items():
        bad = tmp_path / name
        with pytest.raises(UnreadableImage, match=f"^{bad}: {problem}") as error:
            predictor(bad)
        before, refused, after = predictor.iter_predictions([cells[0], bad, cells[1]], batch_size=2)
        assert isinstance(before, Prediction) and isinstance(after, Prediction)
        assert (before.source, after.source) == (str(cells[0]), str(cells[1]))
        assert str(refused) == str(error.value)
    with pytest.raises(UnreadableImage, match="cut.png: the image is damaged or cut short"):
        predictor(Image.open(tmp_path / "cut.png"))


@pytest.mark.parametrize("given", [None, {"cell.png": 1}, BytesIO()], ids=lambda one: type(one).__name__)
def test_something_that_is_no_picture_is_refused_by_its_type(predictor: Predictor, given: Any) -> None:
    pictures = "a path, a PIL image, a uint8 array, or the bytes of an image file"
    for ask in (predictor, lambda images: list(predictor.iter_predictions(images))):
        with pytest.raises(LeukoscopeError) as error:
            ask(given)
        kind = type(given).__name__
        assert str(error.value) == f"images: are of type {kind}; give {pictures}; or an iterable of these"


def test_what_is_no_picture_among_pictures_has_its_error_in_its_place(predictor: Predictor, cells: list[Path]) -> None:
    mixed: list[Any] = [cells[0], None, cells[1].read_bytes(), [cells[2]], torch.zeros(3, 8, 8), b"", b"no picture"]
    found = list(predictor.iter_predictions(mixed))
    assert [isinstance(one, Prediction) for one in found] == [True, False, True, False, False, False, False]
    said = [str(one).partition(";")[0] for one in found if isinstance(one, UnreadableImage)]
    assert said == [
        "image 2: is of type NoneType", "image 4: is of type list", "image 5: is of type Tensor",
        "image 6: the file is empty (0 bytes)", "image 7: is not an image",
    ]  # fmt: skip


def test_an_impossible_batch_size_is_refused(predictor: Predictor, cells: list[Path]) -> None:
    with pytest.raises(LeukoscopeError, match="^batch_size 0: give 1 picture at a time or more$"):
        predictor(cells, batch_size=0)


# What is decided


@pytest.fixture
def watched(watched_release: Path) -> Predictor:
    return Predictor.from_pretrained(watched_release)


def test_a_known_kind_of_cell_gets_a_class_and_a_picture_of_nothing_does_not(watched: Predictor) -> None:
    cell = draw_cell("ALL", subject=1, cell=3).image
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    white, black = np.full((200, 200, 3), 255, np.uint8), np.zeros((200, 200, 3), np.uint8)

    known, *unknown = watched([cell, noise, white, black, cell[..., [1, 0, 2]]], explain=True)

    assert known.outcome == known.most_probable and 0 < ood_score(known) <= 1
    for prediction in unknown:
        (reason,) = prediction.decision.reasons
        assert prediction.outcome == OUT_OF_DISTRIBUTION
        assert reason.code in ("ood_colour", "ood_texture", "ood_shape")
        assert reason.value == ood_score(prediction) > 1 == reason.limit
        assert sum(shares(prediction)) == pytest.approx(1), "probabilities are told whatever the outcome"
    assert reason.code == "ood_colour", "of exchanged colours"
    for prediction in (known, *unknown):
        told = json.loads(json.dumps(prediction.to_dict()))
        assert (told["ood_score"], told["probabilities"]) == (prediction.checks.ood_score, prediction.probabilities)
        reasons = [reason.to_dict() for reason in prediction.decision.reasons]
        assert (told["outcome"], told["reasons"], told["notice"]) == (prediction.outcome, reasons, RESEARCH_NOTICE)
        assert not {"heatmaps", "picture", "views"} & told.keys()


@pytest.mark.parametrize(("trained_on", "outcome"), [("cnmc2019", NOT_A_CELL), ("ball4", OUT_OF_DISTRIBUTION),
                                                     ("", OUT_OF_DISTRIBUTION)])  # fmt: skip
def test_a_smear_is_not_a_cell_for_a_release_of_cut_out_cells(
    watched: Predictor, trained_on: str, outcome: str
) -> None:
    watched.release = replace(watched.release, metrics=watched.release.metrics.changed(data={"name": trained_on}))
    page = np.full((200, 200, 3), 250, np.uint8)
    smear = draw_smear(("ALL", "HEM", "ALL", "HEM"), size=(300, 380), um_per_pixel=0.2).image

    found, *others = watched([smear, page, 255 - page])

    assert found.outcome == outcome
    assert (found.decision.reasons[0].code == "field_of_view") is (outcome == NOT_A_CELL)
    assert found.checks.field_of_view is (outcome == NOT_A_CELL)
    assert {(one.outcome, one.checks.field_of_view) for one in others} == {(OUT_OF_DISTRIBUTION, False)}


@pytest.mark.parametrize(
    ("options", "computed"),
    [
        ({}, [5]),
        ({"explain": True}, [5] * 8),
        ({"tta": True, "batch_size": 3}, [3] * 8 + [2] * 8),
        ({"explain": True, "tta": True}, [5] * 8),
    ],
)
def test_prediction_and_map_come_from_one_pass_of_each_view(
    watched: Predictor, cells: list[Path], options: dict[str, Any], computed: list[int]
) -> None:
    alone = [prediction.checks.ood_score for prediction in watched(cells, batch_size=1)]
    watched(cells[0], explain=True)  # once the blank picture's features are kept
    passes = []
    hook = network_of(watched).features.register_forward_hook(lambda *passed: passes.append(len(passed[-1])))

    found = watched(cells, **options)

    hook.remove()
    assert passes == computed, "views are computed one after the other"
    assert [prediction.checks.ood_score for prediction in found] == alone and len(set(alone)) == len(cells)


def test_the_map_and_the_side_of_a_picture_are_cautions_and_change_no_outcome(
    tiny_release: Path, cells: list[Path]
) -> None:
    predictor = Predictor.from_pretrained(tiny_release)
    predictor.thresholds = replace(predictor.thresholds, least_on_cell=1.0, picture_side=64)

    for path, plain, explained in zip(cells, predictor(cells), predictor(cells, explain=True), strict=True):
        side = min(Image.open(path).size)
        cautions = () if side == 64 else (Reason("other_frame", side, 64),)
        assert (plain.checks.on_cell, plain.decision.reasons, plain.outcome) == (None, cautions, explained.outcome)
        heat = heatmaps(explained)[explained.most_probable].evidence
        on_cell = explained.checks.on_cell
        assert on_cell == share_on_cell(heat, predictor.release.preprocessing.frame(Image.open(path)))
        off = () if on_cell is None else (Reason("explanation_off_cell", on_cell, 1.0),)
        assert explained.decision.reasons == (*cautions, *off)


def test_a_malformed_name_is_refused() -> None:
    names: list[Any] = [
        None,
        "",
        "nowhere",
        "runs/x/release",
        "../model",
        "a--b/c",
        "owner/name@",
        "a/b.git",
        "a/b@../c",
    ]
    for name in names:
        with pytest.raises(LeukoscopeError) as error:
            Predictor.from_pretrained(name)
        assert str(error.value) == (
            f"{name}: is neither a folder nor a Hub id; give a release folder, a name that `leukoscope release "
            "list` shows, owner/name or owner/name@revision (a wheel contains only "
            "leukoscope-densenet169-cnmc: for other releases clone the repository, or use the Hub)"
        )


def test_a_vision_transformer_predicts_and_has_no_map(vit_release: Path) -> None:
    picture = draw_cell("ALL", subject=0, cell=0, size=96).image
    prediction = Predictor.from_pretrained(vit_release)(picture, explain=True)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.heatmaps is None
    with pytest.raises(LeukoscopeError, match="has no Grad-CAM map: the last features of its network are no map"):
        prediction.overlay()


@pytest.mark.parametrize(
    ("data_set", "ground", "code"), [("cnmc2019", (0, 0, 0), "filled_black"), ("ball4", (246, 254, 252), "filled_pale")]
)
def test_a_transparent_picture_is_seen_on_the_ground_of_the_training_cells_and_the_decision_says_so(
    predictor: Predictor, data_set: str, ground: tuple[int, int, int], code: str
) -> None:
    predictor = copy(predictor)
    predictor.release = replace(predictor.release, metrics=predictor.release.metrics.changed(data={"name": data_set}))
    rgba = np.full((64, 64, 4), (255, 0, 0, 0), np.uint8)
    rgba[16:48, 16:48] = (90, 40, 120, 255)
    plain = rgba[..., :3].copy()
    plain[rgba[..., 3] == 0] = ground
    file = BytesIO()
    Image.fromarray(rgba).save(file, "PNG")
    expected = predictor(plain)
    for picture in (Image.fromarray(rgba), file.getvalue()):
        prediction = predictor(picture)
        assert prediction.probabilities == expected.probabilities
        assert prediction.decision.reasons == (*expected.decision.reasons, Reason(code))


def test_small_changes_are_answered_as_if_each_changed_picture_were_asked_about(
    predictor: Predictor, cells: list[Path]
) -> None:
    plain = predictor(cells[0], explain=True)
    assert plain.changed == ()
    picture = plain.picture
    assert picture is not None

    changed = predictor.with_small_changes(plain)

    assert changed.decision == plain.decision and changed.probabilities == plain.probabilities
    changes = most_telling({})
    assert [answer.change.name for answer in changed.changed] == [change.name for change in changes]
    for change, answer in zip(changes, changed.changed, strict=True):
        alone = predictor(change(picture, black=is_cut_out(picture)))
        assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert answer.decision.outcome == alone.outcome
    with pytest.raises(LeukoscopeError, match="has no picture to change; predict it with explain=True"):
        predictor.with_small_changes(predictor(cells[0]))
