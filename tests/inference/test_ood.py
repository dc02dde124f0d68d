"""The OOD detector must let cells of people pass that it was not fitted on, refuse the rest, and never load in part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from PIL import Image, ImageFilter
from safetensors.numpy import load_file, save_file

from leukoscope import LeukoscopeError
from leukoscope.data.images import open_image
from leukoscope.data.layouts import ImageFolder, find_cnmc_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.smear import UnusableSmear, cut_out, find_cells
from leukoscope.inference.ood import NUM_STATISTICS, STATISTIC_GROUPS, OodDetector, fit_detector, picture_statistics
from leukoscope.models.release import OOD_FILE, read_release
from leukoscope.synthetic import phantom_cells

SIZE = 96
FRAME = Preprocessing(SIZE, 350 / 450).frame


def known_cells(
    subjects: int = 30, *, each: int = 40, subject_spread: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Statistics that vary along five directions between cells and subjects, and a little in all others."""
    directions = np.random.default_rng(99).standard_normal((5, NUM_STATISTICS))
    rng = np.random.default_rng(seed)
    names = np.repeat([f"s{i}" for i in range(subjects)], each)
    people = np.repeat(rng.standard_normal((subjects, 5)), each, axis=0) * subject_spread
    strengths = people + rng.standard_normal((len(names), 5))
    statistics = 2 + strengths @ directions + 0.5 * rng.standard_normal((len(names), NUM_STATISTICS))
    return statistics.astype(np.float32), names.tolist()


def scores(detector: OodDetector, statistics: np.ndarray) -> np.ndarray:
    return detector.distances(statistics) / detector.limit


@pytest.fixture(scope="module")
def fitted() -> tuple[OodDetector, np.ndarray]:
    return fit_detector(*known_cells())


@pytest.fixture(scope="module")
def detector(fitted: tuple[OodDetector, np.ndarray]) -> OodDetector:
    return fitted[0]


# The limit


def test_of_new_subjects_about_98_percent_pass(fitted: tuple[OodDetector, np.ndarray]) -> None:
    detector, held_out = fitted
    new, _ = known_cells(200, seed=1)

    assert (held_out <= 1).mean() == pytest.approx(0.98, abs=0.005)
    assert (scores(detector, new) <= 1).mean() == pytest.approx(0.98, abs=0.01)


def held_out_distances(statistics: np.ndarray, subjects: list[str]) -> np.ndarray:
    """Of each cell, from a detector that was fitted without its subject, for as many subjects as folds."""
    names, distances = np.asarray(subjects), np.empty(len(statistics))
    for name in set(subjects):
        own = names == name
        distances[own] = fit_detector(statistics[~own], names[~own].tolist())[0].distances(statistics[own])
    return distances


def test_each_held_out_score_is_of_a_detector_and_a_limit_that_did_not_see_the_subject() -> None:
    statistics, subjects = known_cells(6, each=30, subject_spread=2)
    detector, held_out = fit_detector(statistics, subjects)

    assert detector.limit > np.quantile(detector.distances(statistics), 0.98) * 1.05, "its own cells lie nearer"
    distances = held_out_distances(statistics, subjects)
    for name in sorted(set(subjects)):
        own = np.asarray(subjects) == name
        limit = np.sort(distances[~own])[147 - 1]  # 98 % of 150 cells
        assert held_out[own] == pytest.approx(distances[own] / limit, rel=1e-4)


def test_the_limit_keeps_98_percent_with_every_subject_weighing_the_same() -> None:
    statistics, subjects = known_cells(9, each=50, seed=5)
    many, _ = known_cells(1, each=5000, subject_spread=0, seed=6)
    statistics, subjects = np.concatenate([statistics, 0.1 * (many - 2) + 2]), subjects + ["many"] * len(many)

    detector, _ = fit_detector(statistics, subjects)

    kept = held_out_distances(statistics, subjects) <= detector.limit * (1 + 1e-6)
    shares = [kept[np.asarray(subjects) == name].mean() for name in sorted(set(subjects))]
    assert 0.98 - 1e-9 <= np.mean(shares) < 0.98 + 1 / 50 / 10 + 1e-9, "one cell fewer would be too few"
    assert kept.mean() > 0.995, "of all cells more pass: most are one subject's, near the centre"


def test_distances_are_those_of_the_gaussian_written_out() -> None:
    statistics, subjects = known_cells(7, each=30)
    kept = np.flatnonzero([name != "s0" or i < 10 for i, name in enumerate(subjects)])
    statistics, names = statistics[kept].astype(np.float64), np.asarray(subjects)[kept]
    weights = np.array([1 / (names == name).sum() for name in names]) / 7

    mean = weights @ statistics
    covariance = (weights[:, None] * (statistics - mean)).T @ (statistics - mean)
    deviation = np.sqrt(np.diag(covariance))
    precision = np.linalg.inv(covariance / np.outer(deviation, deviation) + 0.01 * np.eye(NUM_STATISTICS))
    standard = (statistics - mean) / deviation
    written_out = np.sqrt(np.einsum("ni,ij,nj->n", standard, precision, standard))

    assert np.allclose(fit_detector(statistics, names.tolist())[0].distances(statistics), written_out, rtol=1e-3)


@pytest.mark.parametrize(
    ("cells", "subjects", "found"), [(49, 7, "49 cells of 7 subject"), (60, 1, "60 cells of 1 subject")]
)
def test_too_little_to_fit_on_is_refused(cells: int, subjects: int, found: str) -> None:
    statistics = np.random.default_rng(0).random((cells, NUM_STATISTICS), dtype=np.float32)

    with pytest.raises(LeukoscopeError) as error:
        fit_detector(statistics, [str(i % subjects) for i in range(cells)])
    assert str(error.value) == (f"OOD detector: {found}(s) are too few to fit it; give at least 50 cells of 2 subjects")


def test_copies_of_one_cell_give_finite_scores() -> None:
    statistics = np.ones((60, NUM_STATISTICS), dtype=np.float32)

    detector, held_out = fit_detector(statistics, [str(i % 3) for i in range(60)])

    assert np.isfinite(held_out).all()
    assert np.isfinite(scores(detector, statistics)).all()
    assert (scores(detector, statistics + 1) > 1).all()


# What it looks at


def test_an_empty_picture_has_the_same_statistics_whatever_its_size() -> None:
    dim = np.full((96, 96, 3), 8, np.uint8)  # as dark as the noise of a compressed background
    few = np.zeros((96, 96, 3), np.uint8)
    few[40:48, 40:48] = 200  # sixteen points of the grid
    for picture in (*(np.zeros((side, side, 3), np.uint8) for side in (32, 96, 224)), dim, few):
        assert (picture_statistics(picture) == -10).all()


def test_statistics_are_22_finite_numbers_for_any_picture(phantoms: tuple[np.ndarray, list[str]]) -> None:
    rng = np.random.default_rng(0)
    pictures = [*phantoms[0][:3], *(np.full((50, 50, 3), colour, np.uint8) for colour in (1, (9, 0, 0), 255))]
    pictures += [rng.integers(0, 256, (side, side, 3), np.uint8) for side in (24, 47, 96, 225)]

    for picture in pictures:
        found = picture_statistics(picture)
        assert found.shape == (NUM_STATISTICS,) and found.dtype == np.float32 and np.isfinite(found).all()
    assert [range(NUM_STATISTICS)[some] for some in STATISTIC_GROUPS.values()] == [
        range(12),
        range(12, 15),
        range(15, 22),
    ]


def test_means_and_place_are_those_worked_out_by_hand() -> None:
    """A square of one colour on black: its optical densities, its share, its outline and how far it is off centre."""
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[8:32, 4:28] = (127, 63, 31)

    found = picture_statistics(picture)

    assert found[:3] == pytest.approx(-np.log([128 / 256, 64 / 256, 32 / 256]))
    assert found[3:6] == pytest.approx(np.full(3, np.log(1e-3)), abs=1e-3), "no deviation"
    assert found[12:15] == pytest.approx(np.full(3, np.log(1e-3))), "no texture"
    assert found[15] == pytest.approx(np.log(24 * 24 / 48**2))
    assert found[18] == pytest.approx(np.log(96**2 / 24**2 + 1))
    assert found[19] == pytest.approx(0, abs=1e-5), "as wide as high"
    assert found[20] == pytest.approx(np.hypot(20 / 48 - 0.5, 16 / 48 - 0.5))
    assert found[21] == 0


# Pictures


@pytest.fixture(scope="module")
def phantoms() -> tuple[np.ndarray, list[str]]:
    drawn = list(phantom_cells(subjects_per_class=6, cells_per_subject=12, size=224))
    return np.stack([FRAME(Image.fromarray(cell.image)) for cell in drawn]), [cell.subject for cell in drawn]


@pytest.fixture(scope="module")
def of_phantoms(phantoms: tuple[np.ndarray, list[str]]) -> OodDetector:
    pixels, subjects = phantoms
    return fit_detector(np.stack([picture_statistics(cell) for cell in pixels]), subjects)[0]


@pytest.fixture(scope="module")
def others() -> np.ndarray:
    """Phantoms of subjects that no detector here was fitted on."""
    drawn = phantom_cells(subjects_per_class=4, cells_per_subject=5, size=224, seed=3)
    return np.stack([FRAME(Image.fromarray(cell.image)) for cell in drawn])


def blurred(cells: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(cell).filter(ImageFilter.GaussianBlur(radius))) for cell in cells])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cells: blurred(cells, SIZE / 20),
        lambda cells: 255 - cells,
        lambda cells: cells[..., [1, 0, 2]],
        lambda _: np.stack([np.full((SIZE, SIZE, 3), level, np.uint8) for level in range(0, 256, 17)]),
        lambda cells: np.random.default_rng(0).integers(0, 256, cells.shape, np.uint8),
    ],
    ids=["blurred", "inverted", "recoloured", "blank", "noise"],
)
def test_pictures_that_are_no_such_cells_are_refused(
    of_phantoms: OodDetector, others: np.ndarray, spoil: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = of_phantoms.scores(spoil(others))

    assert found.dtype == np.float32
    assert (found > 1).all()


def test_cells_of_other_subjects_pass_with_their_distance_over_the_limit(
    of_phantoms: OodDetector, others: np.ndarray
) -> None:
    alone = [float(of_phantoms.scores(cell[None])[0]) for cell in others]

    assert np.mean(np.array(alone) <= 1) >= 0.95
    assert alone == pytest.approx(scores(of_phantoms, np.stack([picture_statistics(cell) for cell in others])))
    assert of_phantoms.scores(others).tolist() == pytest.approx(alone)


def grainy(cells: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 12, cells.shape[:3])[..., None]
    shows_cell = cells.max(axis=-1, keepdims=True) > 8
    return np.where(shows_cell, np.clip(cells + noise, 9, 255), cells).astype(np.uint8)


# With exchanged colours, grainy, magnified. Grain changes the spread of colours as well.
SPOILT: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "colour": (lambda cells: cells[..., [1, 0, 2]], 1.0),
    "texture": (grainy, 0.5),
    "shape": (
        lambda cells: np.stack([np.asarray(Image.fromarray(c).resize((SIZE, SIZE))) for c in cells[:, 29:67, 29:67]]),
        0.9,
    ),
}


@pytest.mark.parametrize("group", SPOILT)
def test_the_group_that_sets_a_cell_apart_is_named(of_phantoms: OodDetector, others: np.ndarray, group: str) -> None:
    spoil, share = SPOILT[group]
    named = [of_phantoms.farthest_group(cell) for cell in spoil(others)]
    assert named.count(group) >= share * len(others)


def test_a_cell_keeps_its_score_however_it_lies_in_the_picture(real_data: Path) -> None:
    """On one grid of points every twentieth score differed by 0.41 of the limit or more."""
    release = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
    frame, detector = read_release(release).preprocessing.frame, OodDetector.load(release / OOD_FILE)
    cells = list(find_cnmc_cells(ImageFolder.read(real_data / "cnmc2019" / "C-NMC_Leukemia")))[::40]
    if not cells:
        pytest.skip("needs cnmc2019/C-NMC_Leukemia")
    pixels = np.stack([frame(open_image(cell.path)) for cell in cells])
    moved = [np.roll(pixels, shift, axis=(1, 2)) for shift in ((0, 1), (1, 0), (3, 2))]
    turned = [np.rot90(pixels, turns, axes=(1, 2)) for turns in (1, 2)]

    scores = np.stack([detector.scores(placed) for placed in (pixels, pixels[:, :, ::-1], *moved, *turned)])

    assert np.quantile(np.ptp(scores, axis=0), 0.95) < 0.3


@pytest.mark.slow
def test_real_cells_pass_and_white_cells_of_another_laboratory_are_refused(real_data: Path) -> None:
    frame, root = Preprocessing(224, 350 / 450).frame, real_data / "cnmc2019"
    samples, kinds = sorted((root / "samples-bmp").glob("*.bmp")), sorted((real_data / "pbc").iterdir())
    known = list(find_cnmc_cells(ImageFolder.read(root / "C-NMC_Leukemia")))[::80]
    known = [cell for cell in known if cell.cell_id not in {path.stem for path in samples}]
    statistics = np.stack([picture_statistics(frame(open_image(cell.path))) for cell in known])
    detector, _ = fit_detector(statistics, [cell.subject for cell in known])
    assert (detector.scores(np.stack([frame(open_image(path)) for path in samples])) <= 1).all()
    for kind in kinds:
        cells = []
        for path in sorted(kind.glob("*.jpg"))[::10]:
            picture = open_image(path)
            with suppress(UnusableSmear):  # too few red cells for a scale: refused before the detector sees it
                field = find_cells(picture)
                assert field.scale is not None
                cells += [cut_out(picture, cell, field.scale.um_per_pixel) for cell in field.cells if cell.whole]
        assert len(cells) >= 4
        assert (detector.scores(np.stack([frame(cell) for cell in cells])) > 1.5).all(), kind.name


# On disk


def test_saved_and_loaded_it_is_the_same(
    detector: OodDetector, of_phantoms: OodDetector, others: np.ndarray, tmp_path: Path
) -> None:
    detector.save(tmp_path / "ood.safetensors")
    path = of_phantoms.save(tmp_path / "ood.safetensors")

    loaded = OodDetector.load(path)

    assert np.array_equal(loaded.scores(others), of_phantoms.scores(others)), "it replaces an earlier one"
    assert [file.name for file in tmp_path.iterdir()] == ["ood.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(LeukoscopeError) as error:
        detector.save(tmp_path / "nowhere" / path.name)
    assert str(error.value).startswith(f"{tmp_path / 'nowhere' / path.name}: cannot be written there (")
    assert str(error.value).endswith("); check who may write there")


def changed(**arrays: ArrayLike | None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = load_file(path) | {
            k: np.asarray(array, np.float32) for k, array in arrays.items() if array is not None
        }
        save_file({k: array for k, array in content.items() if k not in arrays or arrays[k] is not None}, path)

    return change


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "not a whole safetensors file"),
        (Path.unlink, "no such weights file"),
        (changed(limit=None), "is not an OOD detector or is damaged; restore it"),
        (changed(more=np.ones(3)), "is not an OOD detector or is damaged; restore it"),
        (changed(limit=np.ones(1), mean=np.zeros((1, 22))), "is not an OOD detector or is damaged; restore it"),
        (changed(limit=np.nan), "is not an OOD detector or is damaged; restore it"),
        (changed(mean=np.full(22, np.inf)), "is not an OOD detector or is damaged; restore it"),
        (changed(correlation=-np.eye(22)), "is not an OOD detector or is damaged; restore it"),
        (changed(limit=0, deviation=np.full(22, -1)), "is not an OOD detector or is damaged; restore it"),
    ],
)
def test_a_damaged_detector_is_refused_by_name(
    detector: OodDetector, tmp_path: Path, damage: Callable[[Path], object], problem: str
) -> None:
    path = detector.save(tmp_path / "ood.safetensors")
    damage(path)

    with pytest.raises(LeukoscopeError) as error:
        OodDetector.load(path)
    assert str(error.value).startswith(f"{path}: {problem}")
