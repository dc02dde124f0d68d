"""The predictor must predict alike however a picture arrives, name why it refuses one, and load from anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Prediction, Predictor
from leukoscope.data.images import UnreadableImage, open_image
from leukoscope.inference.gradcam import overlay, share_on_cell
from leukoscope.inference.prediction import (
    ABSTAIN,
    EVIDENCE,
    NOT_A_CELL,
    OUT_OF_DISTRIBUTION,
    VIEWS,
    HeatMap,
    Thresholds,
    turned,
    turned_back,
)
from leukoscope.inference.runtime import TorchBackend
from leukoscope.models.release import OOD
from leukoscope.synthetic import draw_cell, draw_smear

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def predictor(tiny_release: Path) -> Predictor:
    return Predictor.from_pretrained(tiny_release)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five phantoms of three sizes, saved as PNG."""
    folder = tmp_path_factory.mktemp("cells")
    paths = [folder / f"cell-{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        cell = draw_cell("ALL" if i % 2 else "HEM", subject=i, cell=0, size=(450, 128, 64)[i % 3], background="black")
        Image.fromarray(cell.image).save(path)
    return paths


def shares(prediction: Prediction) -> list[float]:
    return list(prediction.probabilities.values())


def heatmaps(prediction: Prediction) -> dict[str, HeatMap]:
    assert prediction.heatmaps is not None
    return prediction.heatmaps


def ood_score(prediction: Prediction) -> float:
    assert prediction.checks.ood_score is not None
    return prediction.checks.ood_score


def mean_map(predictor: Predictor, picture: np.ndarray, method: str) -> np.ndarray:
    """The signed maps (K, h, w) of a picture's eight views, turned back and averaged."""
    framed, found = predictor.release.preprocessing.frame(Image.fromarray(picture))[None], []
    for view in range(VIEWS):
        maps = predictor.backend(turned(framed, view), explain=True, method=method).maps
        assert maps is not None
        found.append(turned_back(maps[0], view))
    return np.mean(found, axis=0)


def network_of(predictor: Predictor) -> Any:
    """Of timm, whose layers `nn.Module` does not declare."""
    assert isinstance(predictor.backend, TorchBackend)
    return predictor.backend.network


def test_one_picture_gives_one_prediction(predictor: Predictor, cells: list[Path], tiny_release: Path) -> None:
    prediction = predictor(cells[0])

    assert isinstance(prediction, Prediction)
    assert list(prediction.probabilities) == ["ALL", "HEM"] == list(predictor.labels)
    assert sum(shares(prediction)) == pytest.approx(1, abs=1e-12)
    assert prediction.outcome == prediction.decision.outcome == prediction.most_probable
    assert prediction.most_probable == max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    assert prediction.decision.reasons == ()
    assert (prediction.source, prediction.model, prediction.revision) == (str(cells[0]), str(tiny_release), "")
    assert prediction.heatmaps is None
    assert prediction.seconds > 0


def test_path_picture_and_array_give_one_prediction(predictor: Predictor, cells: list[Path]) -> None:
    picture = Image.open(cells[0])

    predictions = [predictor(str(cells[0])), predictor(cells[0]), predictor(picture), predictor(np.asarray(picture))]

    assert [shares(prediction) for prediction in predictions] == [shares(predictions[0])] * 4
    assert [prediction.source for prediction in predictions[2:]] == ["image 1", "image 1"]


def test_a_list_is_predicted_in_its_order_whatever_the_batch(predictor: Predictor, cells: list[Path]) -> None:
    alone = [shares(predictor(cell)) for cell in cells]
    assert len({tuple(prediction) for prediction in alone}) == len(cells), "equal predictions would hide a wrong order"

    for batch_size in (2, 16):
        together = predictor(cells, batch_size=batch_size)
        assert [prediction.source for prediction in together] == [str(cell) for cell in cells]
        assert np.allclose([shares(prediction) for prediction in together], alone, atol=1e-5)


def test_pictures_without_a_path_are_numbered_across_batches(predictor: Predictor, cells: list[Path]) -> None:
    pictures = [np.asarray(Image.open(cell)) for cell in cells[:3]]

    predictions = predictor(pictures, batch_size=2)

    assert [prediction.source for prediction in predictions] == ["image 1", "image 2", "image 3"]


def test_an_empty_list_gives_an_empty_list(predictor: Predictor) -> None:
    assert predictor([]) == []


def test_explaining_gives_a_map_of_every_class_and_the_same_prediction(predictor: Predictor, cells: list[Path]) -> None:
    plain, explained = predictor(cells[:2]), predictor(cells[:2], explain=True)

    assert np.allclose([shares(a) for a in plain], [shares(a) for a in explained], atol=1e-6)
    for prediction in explained:
        assert list(heatmaps(prediction)) == ["ALL", "HEM"]
        for label, heat in heatmaps(prediction).items():
            assert heat.label == label
            assert heat.evidence.shape == (3, 3) and heat.evidence.dtype == np.float32
            assert heat.evidence.min() >= 0
    maps = heatmaps(explained[0])
    assert not np.array_equal(maps["ALL"].evidence, maps["HEM"].evidence)


def test_an_explained_prediction_draws_itself(predictor: Predictor, cells: list[Path]) -> None:
    explained = predictor(cells[0], explain=True)
    picture, label = open_image(cells[0]), explained.most_probable
    other = next(name for name in explained.probabilities if name != label)
    peak = max(heatmap.evidence.max() for heatmap in heatmaps(explained).values())

    def drawn(name: str, **options: float) -> Image.Image:
        return overlay(picture, heatmaps(explained)[name].evidence, explained.view_box, **options)

    assert explained.picture == picture
    assert explained.overlay() == explained.overlay(label) == drawn(label, peak=peak)
    assert explained.overlay(other, opacity=0.9, peak=2 * peak) == drawn(other, opacity=0.9, peak=2 * peak)
    common = replace(explained, peak=3 * peak)
    assert common.overlay() == drawn(label, peak=peak) != common.overlay(peak=common.peak)
    assert predictor(cells[0]).picture is None, "many pictures would fill the memory"


def test_a_map_is_the_positive_evidence_or_grad_cam_averaged_over_eight_views(
    predictor: Predictor, cells: list[Path]
) -> None:
    picture = np.asarray(open_image(cells[0]))
    assert mean_map(predictor, picture, EVIDENCE).min() < 0 and not mean_map(predictor, 0 * picture, EVIDENCE).any()

    for method in ("evidence", "gradcam"):
        found = predictor(cells[0], explain=True, method=method)
        maps = np.stack([heat.evidence for heat in heatmaps(found).values()])
        assert maps == pytest.approx(np.maximum(mean_map(predictor, picture, method), 0), abs=1e-6)
        assert (found.checks.on_cell is None) == (method == "gradcam")
    assert heatmaps(predictor(cells[0], explain=True, tta=True)).keys() == {"ALL", "HEM"}
    with pytest.raises(LeukoscopeError, match="method 'cam': unknown; choose one of evidence, gradcam"):
        predictor(cells[0], method="cam")


def test_explaining_decides_by_the_upright_view_and_tells_the_other_seven(
    predictor: Predictor, cells: list[Path]
) -> None:
    for plain, found in zip(predictor(cells, batch_size=2), predictor(cells, explain=True, batch_size=2), strict=True):
        assert (plain.decision, plain.probabilities) == (found.decision, found.probabilities)
        assert found.views[0] == found.probabilities and len({tuple(view.values()) for view in found.views}) == VIEWS
        assert (plain.views, plain.agreeing_views, plain.to_dict()["agreeing_views"]) == ((), 0, None)
        assert found.to_dict()["agreeing_views"] == found.agreeing_views
    split = replace(found, views=({"ALL": 0.6, "HEM": 0.4},) * 3 + ({"ALL": 0.3, "HEM": 0.7},) * 5)
    assert split.agreeing_views == 3
    by_view = [list(view.values()) for view in found.views]
    averaged = predictor(cells[-1], tta=True)
    assert shares(averaged) == pytest.approx(np.mean(by_view, axis=0).tolist(), abs=1e-6)
    assert averaged.agreeing_views == found.agreeing_views


def test_what_cannot_be_drawn_is_refused(predictor: Predictor, cells: list[Path]) -> None:
    with pytest.raises(LeukoscopeError) as error:
        predictor(cells[0]).overlay()
    assert str(error.value) == f"{cells[0]}: has no Grad-CAM map; predict it with explain=True"
    with pytest.raises(LeukoscopeError, match="label 'Pro' is none of ALL, HEM; name one"):
        predictor(cells[0], explain=True).overlay("Pro")


def test_no_more_pictures_are_taken_than_the_next_batch(predictor: Predictor, cells: list[Path]) -> None:
    taken: list[Path] = []

    def taking() -> Iterator[Path]:
        for cell in cells:
            taken.append(cell)
            yield cell

    stream = predictor.iter_predictions(taking(), batch_size=2)

    first = next(stream)
    assert isinstance(first, Prediction) and first.source == str(cells[0])
    assert taken == cells[:4]
    assert [prediction.source for prediction in stream if isinstance(prediction, Prediction)] == [
        str(cell) for cell in cells[1:]
    ]


def test_a_turned_photograph_is_seen_upright(predictor: Predictor, tmp_path: Path) -> None:
    upright = Image.fromarray(draw_cell("ALL", subject=1, cell=1, size=200, background="smear").image)
    upright = upright.crop((0, 0, 200, 150))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    upright.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    upright.save(tmp_path / "upright.jpg", quality=100, subsampling=0)

    turned, plain = predictor([tmp_path / "turned.jpg", tmp_path / "upright.jpg"])

    # 200 × 150 pixels become 164 × 123, of which (164 - 96) / 2 and (123 - 96) / 2, rounded, lie before the view.
    assert turned.view_box == plain.view_box
    across, down = 200 / 164, 150 / 123
    assert turned.view_box == pytest.approx((34 * across, 14 * down, 130 * across, 110 * down), abs=1e-3)
    assert np.allclose(shares(turned), shares(plain), atol=2e-3)


def test_to_dict_is_json_with_the_notice_and_without_heat_maps(predictor: Predictor, cells: list[Path]) -> None:
    prediction = predictor(cells[0], explain=True)

    read_back = json.loads(json.dumps(prediction.to_dict()))

    assert read_back["notice"] == RESEARCH_NOTICE
    assert read_back["probabilities"] == prediction.probabilities
    assert set(read_back) == {
        "source", "outcome", "reasons", "probabilities", "model", "revision", "seconds", "view_box", "ood_score",
        "disagreement", "agreeing_views", "notice",
    }  # fmt: skip


def write_text(path: Path) -> None:
    path.write_text("not a picture")


def write_nothing(path: Path) -> None:
    pass


def write_cut_short(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("text.png", write_text, "is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"),
        ("missing.bmp", write_nothing, "no such file; check the path"),
        ("cut.png", write_cut_short, "the image is damaged or cut short"),
    ],
)
def test_an_unusable_file_is_refused_by_name_and_the_others_are_predicted(
    predictor: Predictor, cells: list[Path], tmp_path: Path, name: str, write: Callable[[Path], None], problem: str
) -> None:
    bad = tmp_path / name
    write(bad)

    with pytest.raises(UnreadableImage) as error:
        predictor(bad)
    assert str(error.value).startswith(f"{bad}: {problem}")

    before, refused, after = predictor.iter_predictions([cells[0], bad, cells[1]], batch_size=2)
    assert isinstance(before, Prediction) and isinstance(after, Prediction)
    assert (before.source, after.source) == (str(cells[0]), str(cells[1]))
    assert str(refused) == str(error.value)


def test_an_opened_but_damaged_picture_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    write_cut_short(tmp_path / "cut.png")

    with pytest.raises(UnreadableImage, match="cut.png: the image is damaged or cut short"):
        predictor(Image.open(tmp_path / "cut.png"))


def test_one_opened_picture_may_be_given_many_times(predictor: Predictor, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")

    for _ in range(3):
        found = predictor([Image.open(tmp_path / "noise.png")] * 8)
        assert [shares(prediction) for prediction in found] == [shares(found[0])] * 8


def test_a_picture_may_be_closed_when_the_next_is_asked_for(predictor: Predictor, cells: list[Path]) -> None:
    def opened() -> Iterator[Image.Image]:
        for cell in cells:
            with Image.open(cell) as picture:
                yield picture

    found, expected = predictor(opened()), predictor(cells)

    assert [shares(prediction) for prediction in found] == [shares(prediction) for prediction in expected]


def test_the_bytes_of_a_file_are_read_as_a_picture(predictor: Predictor, cells: list[Path]) -> None:
    expected, content = shares(predictor(cells[0])), cells[0].read_bytes()
    given: list[Any] = [content, bytearray(content), memoryview(content)]
    for one in given:
        found = predictor(one)
        assert isinstance(found, Prediction) and shares(found) == expected
    found = predictor([*given, cells[0], str(cells[0]), Image.open(cells[0])])
    assert np.allclose([shares(prediction) for prediction in found], expected, atol=1e-5)
    assert [one.source for one in found] == ["image 1", "image 2", "image 3", *[str(cells[0])] * 2, "image 6"]


PICTURES = "a path, a PIL image, a uint8 array, or the bytes of an image file"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (None, "NoneType"),
        (5, "int"),
        (0.5, "float"),
        (object(), "object"),
        ({"cell.png": 1}, "dict"),
        (BytesIO(), "BytesIO"),
    ],
)
def test_something_that_is_no_picture_is_refused_by_its_type(predictor: Predictor, given: Any, kind: str) -> None:
    for ask in (predictor, lambda images: list(predictor.iter_predictions(images))):
        with pytest.raises(LeukoscopeError) as error:
            ask(given)
        assert str(error.value) == f"images: are of type {kind}; give {PICTURES}; or an iterable of these"
    with pytest.raises(UnreadableImage) as error:
        predictor([given])
    assert str(error.value) == f"image 1: is of type {kind}; give {PICTURES}"


def test_what_is_no_picture_among_pictures_has_its_error_in_its_place(predictor: Predictor, cells: list[Path]) -> None:
    mixed: list[Any] = [cells[0], None, cells[1].read_bytes(), [cells[2]], torch.zeros(3, 8, 8), b"", b"no picture"]
    found = list(predictor.iter_predictions(mixed))
    assert [isinstance(one, Prediction) for one in found] == [True, False, True, False, False, False, False]
    said = [str(one).partition(";")[0] for one in found if isinstance(one, UnreadableImage)]
    assert said == [
        "image 2: is of type NoneType", "image 4: is of type list", "image 5: is of type Tensor",
        "image 6: the file is empty (0 bytes)", "image 7: is not an image",
    ]  # fmt: skip


def test_one_picture_may_stand_for_several_wherever_several_are_taken(predictor: Predictor, cells: list[Path]) -> None:
    (found,) = predictor.iter_predictions(str(cells[0]))
    assert isinstance(found, Prediction) and found.source == str(cells[0])


@pytest.mark.parametrize("given", [None, 5, b"folder", ["folder"], "", " "])
@pytest.mark.parametrize("method", ["from_pretrained", "from_hub"])
def test_what_names_no_release_is_refused_by_its_type(given: Any, method: str) -> None:
    with pytest.raises(LeukoscopeError, match=rf"^Predictor\.{method}\(.*\): names no release; give a release folder"):
        getattr(Predictor, method)(given)


@pytest.mark.parametrize("given", [None, 5, "folder", Path("folder"), {}])
def test_a_predictor_of_no_release_is_refused(given: Any) -> None:
    with pytest.raises(LeukoscopeError, match=r"takes a release that was read; give .* to Predictor.from_pretrained$"):
        Predictor(given)


def test_an_impossible_batch_size_is_refused(predictor: Predictor, cells: list[Path]) -> None:
    with pytest.raises(LeukoscopeError, match="^batch_size 0: give 1 picture at a time or more$"):
        predictor(cells, batch_size=0)


@pytest.mark.parametrize(("batch_size", "computed"), [(16, [5] * 8), (3, [3] * 8 + [2] * 8)])
def test_views_are_computed_one_after_the_other(
    predictor: Predictor, cells: list[Path], batch_size: int, computed: list[int]
) -> None:
    passes = []
    hook = network_of(predictor).features.register_forward_hook(lambda *passed: passes.append(len(passed[-1])))

    predictor(cells, tta=True, batch_size=batch_size)

    hook.remove()
    assert passes == computed


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_an_impossible_device_is_refused(tiny_release: Path, device: str) -> None:
    with pytest.raises(LeukoscopeError, match=f"^device '{device}': torch cannot compute there on this machine; use "):
        Predictor.from_pretrained(tiny_release, device=device)


# What is decided


@pytest.fixture
def watched(watched_release: Path) -> Predictor:
    return Predictor.from_pretrained(watched_release)


def test_a_release_without_a_detector_says_nothing_about_distribution(predictor: Predictor, cells: list[Path]) -> None:
    white = predictor(np.full((200, 200, 3), 255, np.uint8))

    assert predictor.ood is None
    assert (white.checks.ood_score, white.to_dict()["ood_score"]) == (None, None)
    assert white.outcome == white.most_probable


def test_a_known_kind_of_cell_gets_a_class_and_a_picture_of_nothing_does_not(watched: Predictor) -> None:
    cell = draw_cell("ALL", subject=1, cell=3).image
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    white, black = np.full((200, 200, 3), 255, np.uint8), np.zeros((200, 200, 3), np.uint8)

    known, *unknown = watched([cell, noise, white, black])

    assert known.outcome == known.most_probable and 0 < ood_score(known) <= 1
    assert [prediction.outcome for prediction in unknown] == [OUT_OF_DISTRIBUTION] * 3
    for prediction in unknown:
        (reason,) = prediction.decision.reasons
        assert reason.code in ("ood_colour", "ood_texture", "ood_shape")
        assert reason.value == ood_score(prediction) > 1 == reason.limit
        assert sum(shares(prediction)) == pytest.approx(1), "probabilities are told whatever the outcome"
    for prediction in (known, *unknown):
        told = json.loads(json.dumps(prediction.to_dict()))
        assert told["ood_score"] == prediction.checks.ood_score
        assert (told["outcome"], told["reasons"]) == (
            prediction.outcome,
            [reason.to_dict() for reason in prediction.decision.reasons],
        )


def test_the_group_that_sets_a_picture_apart_is_told(watched: Predictor) -> None:
    cell = draw_cell("ALL", subject=1, cell=3).image

    (reason,) = watched(cell[..., [1, 0, 2]]).decision.reasons

    assert reason.code == "ood_colour"


@pytest.mark.parametrize(("trained_on", "outcome"), [("cnmc2019", NOT_A_CELL), ("ball4", OUT_OF_DISTRIBUTION),
                                                     ("", OUT_OF_DISTRIBUTION)])  # fmt: skip
def test_a_smear_is_not_a_cell_for_a_release_of_cut_out_cells(
    watched: Predictor, trained_on: str, outcome: str
) -> None:
    watched.release = replace(watched.release, metrics={**watched.release.metrics, "data": {"name": trained_on}})
    smear = draw_smear(("ALL", "HEM", "ALL", "HEM"), size=(300, 380), um_per_pixel=0.2).image

    prediction = watched(smear)

    assert prediction.outcome == outcome
    assert (prediction.decision.reasons[0].code == "field_of_view") is (outcome == NOT_A_CELL)
    assert prediction.checks.field_of_view is (outcome == NOT_A_CELL)


def test_what_is_neither_cell_nor_smear_is_out_of_distribution_for_a_release_of_cut_out_cells(
    watched: Predictor,
) -> None:
    watched.release = replace(watched.release, metrics={**watched.release.metrics, "data": {"name": "cnmc2019"}})
    page = np.full((200, 200, 3), 250, np.uint8)

    predictions = watched([page, 255 - page, draw_cell("ALL", subject=1, cell=3).image])

    assert [prediction.outcome == OUT_OF_DISTRIBUTION for prediction in predictions] == [True, True, False]
    assert not any(prediction.checks.field_of_view for prediction in predictions)


def test_ood_scores_are_the_same_explained_in_views_or_in_a_batch(watched: Predictor, cells: list[Path]) -> None:
    alone = [watched(cell).checks.ood_score for cell in cells]

    for options in ({}, {"explain": True}, {"tta": True}, {"batch_size": 2}):
        assert [prediction.checks.ood_score for prediction in watched(cells, **options)] == alone
    frame = watched.release.preprocessing.frame
    framed = np.stack([frame(Image.open(cell)) for cell in cells])
    assert watched.ood is not None
    assert alone == pytest.approx(watched.ood.scores(framed).tolist())
    assert len(set(alone)) == len(cells), "equal scores would hide a wrong order"


@pytest.mark.parametrize("options", [{}, {"explain": True}, {"tta": True}, {"explain": True, "tta": True}])
def test_prediction_and_map_come_from_one_pass_of_each_view(
    watched: Predictor, cells: list[Path], options: dict[str, Any]
) -> None:
    watched(cells[0], explain=True)  # once the blank picture's features are kept
    passes = []
    hook = network_of(watched).features.register_forward_hook(lambda *_: passes.append(1))

    watched(cells[0], **options)

    hook.remove()
    assert len(passes) == (VIEWS if options else 1)


def test_weights_have_no_part_in_the_ood_score(watched_release: Path, watched: Predictor, cells: list[Path]) -> None:
    cooler = Predictor.from_pretrained(watched_release)
    with torch.no_grad():
        network_of(cooler).classifier.weight.div_(3)

    before, after = watched(cells[0]), cooler(cells[0])

    assert shares(before) != shares(after)
    assert before.checks.ood_score == after.checks.ood_score


def test_a_release_decides_by_the_thresholds_of_its_metrics(
    tiny_release: Path, tmp_path: Path, cells: list[Path]
) -> None:
    shutil.copytree(tiny_release, tmp_path / "release")
    middle = float(
        np.median([max(shares(prediction)) for prediction in Predictor.from_pretrained(tiny_release)(cells)])
    )
    decisions = {"abstention": {"default": {"threshold": middle}}}
    metrics = json.loads((tmp_path / "release" / "metrics.json").read_text()) | {"decisions": decisions}
    (tmp_path / "release" / "metrics.json").write_text(json.dumps(metrics))

    predictor = Predictor.from_pretrained(tmp_path / "release")

    assert predictor.thresholds == Thresholds(abstain_below=middle)
    predictions = predictor(cells)
    unsure = [max(shares(prediction)) < middle for prediction in predictions]
    assert 0 < sum(unsure) < len(cells)
    for prediction, without_class in zip(predictions, unsure, strict=True):
        assert prediction.outcome == (ABSTAIN if without_class else prediction.most_probable)
        assert [reason.code for reason in prediction.decision.reasons] == ["low_confidence"] * without_class


def test_views_tell_how_far_they_disagree_and_one_view_does_not(watched: Predictor, cells: list[Path]) -> None:
    for prediction in watched(cells, tta=True):
        apart = prediction.checks.disagreement
        assert apart is not None and apart * 8 == round(apart * 8) and prediction.to_dict()["disagreement"] == apart
        told = [reason.code for reason in prediction.decision.reasons]
        assert ("views_disagree" in told) == (apart > 0.25 and ood_score(prediction) <= 1)
    assert watched(cells[0]).checks.disagreement is None


def test_the_share_of_the_map_on_the_cell_is_a_caution_and_changes_no_outcome(
    tiny_release: Path, cells: list[Path]
) -> None:
    predictor = Predictor.from_pretrained(tiny_release)
    predictor.thresholds = replace(predictor.thresholds, least_on_cell=1.0)

    plain, explained = predictor(cells), predictor(cells, explain=True)

    assert [prediction.outcome for prediction in explained] == [prediction.outcome for prediction in plain]
    assert all(prediction.checks.on_cell is None and prediction.decision.reasons == () for prediction in plain)
    for path, prediction in zip(cells, explained, strict=True):
        heat = heatmaps(prediction)[prediction.most_probable].evidence
        pixels = predictor.release.preprocessing.frame(Image.open(path))
        assert prediction.checks.on_cell == share_on_cell(heat, pixels)
        told = [(reason.code, reason.value, reason.limit) for reason in prediction.decision.reasons]
        on_cell = prediction.checks.on_cell
        assert told == ([] if on_cell is None else [("explanation_off_cell", on_cell, 1.0)])
    assert any(prediction.checks.on_cell for prediction in explained)


def test_a_damaged_detector_is_refused(watched_release: Path, tmp_path: Path) -> None:
    shutil.copytree(watched_release, tmp_path / "release")
    path = tmp_path / "release" / OOD
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(LeukoscopeError) as error:
        Predictor.from_pretrained(tmp_path / "release")
    assert str(error.value).startswith(f"{path}: not a whole safetensors file")


def test_a_cached_hub_release_brings_its_detector_and_a_damaged_one_is_named_by_hub_id(
    hub_cache: Path, watched_release: Path, watched: Predictor, cells: list[Path]
) -> None:
    put_in_cache(hub_cache, watched_release)
    assert Predictor.from_pretrained("owner/name")(cells[0]).checks == watched(cells[0]).checks

    cached = hub_cache / "models--owner--name" / "snapshots" / COMMIT / OOD
    cached.write_bytes(b"no tensors")
    with pytest.raises(LeukoscopeError, match=f"^owner/name/{OOD}: not a whole safetensors file"):
        Predictor.from_pretrained("owner/name")


# Where a release comes from


@pytest.mark.parametrize(
    "name", ["nowhere", "runs/x/release", "../model", "owner/", "a--b/c", "owner/name@", "a/b c", "a/b.git", "a/b@../c"]
)
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(LeukoscopeError) as error:
        Predictor.from_pretrained(name)
    assert str(error.value) == (
        f"{name}: no such folder, and no Hub id either; give a release folder, a name that `leukoscope release list` "
        "shows, owner/name or owner/name@revision (of the releases in the repository, a wheel brings only "
        "leukoscope-densenet169-cnmc: clone it for the others, or take them from the Hub)"
    )


def test_a_folder_wins_over_a_hub_id_of_the_same_name(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    shutil.copytree(tiny_release, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)

    release = Predictor.from_pretrained("owner/name").release

    assert (release.name, release.revision) == ("owner/name", "")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_in_cache(hub_cache: Path, release: Path, ref: str = "main") -> None:
    """Lay a release where the Hub client keeps the downloads of owner/name."""
    repository = hub_cache / "models--owner--name"
    shutil.copytree(release, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / ref).write_text(COMMIT)


@pytest.mark.parametrize("name", ["owner/name", "owner/name@v2", f"owner/name@{COMMIT}"])
def test_offline_and_never_downloaded_says_so(hub_cache: Path, name: str) -> None:
    with pytest.raises(LeukoscopeError) as error:
        Predictor.from_pretrained(name)
    assert str(error.value) == (
        f"{name}: the Hub cannot be reached and no whole copy is cached (HF_HUB_OFFLINE is set); check the network, or "
        "give a release folder"
    )


@pytest.mark.parametrize(
    ("name", "ref"), [("owner/name", "main"), ("owner/name@v2", "v2"), (f"owner/name@{COMMIT}", "main")]
)
def test_offline_the_cached_copy_is_used(
    hub_cache: Path, tiny_release: Path, cells: list[Path], predictor: Predictor, name: str, ref: str
) -> None:
    put_in_cache(hub_cache, tiny_release, ref)

    prediction = Predictor.from_pretrained(name)(cells[0])

    assert (prediction.model, prediction.revision) == ("owner/name", COMMIT)
    assert shares(prediction) == shares(predictor(cells[0]))


def test_a_damaged_cached_release_is_named_by_its_hub_id(hub_cache: Path, tiny_release: Path) -> None:
    put_in_cache(hub_cache, tiny_release)
    (hub_cache / "models--owner--name" / "snapshots" / COMMIT / "config.json").write_text("{")

    with pytest.raises(LeukoscopeError, match=r"^owner/name/config.json: damaged \(.*\); restore it from the release$"):
        Predictor.from_pretrained("owner/name")


def test_from_the_hub_no_folder_of_that_name_is_opened(
    hub_cache: Path, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    shutil.copytree(tiny_release, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(LeukoscopeError, match="^owner/name: the Hub cannot be reached and no whole copy is cached"):
        Predictor.from_hub("owner/name")
    put_in_cache(hub_cache, tiny_release)
    assert Predictor.from_hub("owner/name").release.revision == COMMIT
    assert Predictor.from_hub(f"owner/name@{COMMIT}").release.revision == COMMIT


def test_a_disk_that_refuses_is_told_without_the_path_of_the_cache(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        (hub_cache.parent / "no such folder" / "file").touch()

    monkeypatch.setattr("leukoscope.models.hub_download.snapshot_download", refuse)
    with pytest.raises(LeukoscopeError) as error:
        Predictor.from_hub("owner/name")
    assert str(error.value) == (
        "owner/name: cannot be fetched from the Hub (No such file or directory); try again, or give a release folder"
    )


def test_a_vision_transformer_predicts_and_has_no_map(vit_release: Path) -> None:
    picture = draw_cell("ALL", subject=0, cell=0, size=96).image
    prediction = Predictor.from_pretrained(vit_release)(picture, explain=True)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.heatmaps is None
    with pytest.raises(LeukoscopeError, match="has no Grad-CAM map: the last features of its network are no map"):
        prediction.overlay()


@pytest.mark.parametrize(("height", "width", "codes"), [(450, 600, []), (300, 450, ["other_frame"])])
def test_the_shorter_side_is_compared_with_the_side_of_training(
    tiny_release: Path, height: int, width: int, codes: list[str]
) -> None:
    predictor = Predictor.from_pretrained(tiny_release)
    predictor.thresholds = replace(predictor.thresholds, picture_side=450)
    found = predictor(np.zeros((height, width, 3), np.uint8))
    assert found.checks.shorter_side == min(height, width)
    assert [reason.code for reason in found.decision.reasons] == codes
