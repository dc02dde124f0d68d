"""The guard must keep cells of people it was not fitted on, refuse what lies elsewhere, and never load in part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from leukoscope import LeukoscopeError
from leukoscope.inference.guard import Guard, fit_guard

WIDTH = 100


def known_cells(subjects: int = 30, *, each: int = 40, subject_spread: float = 0.3, seed: int = 0):
    """Features that vary along five directions between cells and subjects, and a little in all others."""
    directions = np.random.default_rng(99).standard_normal((5, WIDTH))
    rng = np.random.default_rng(seed)
    names = np.repeat([f"s{i}" for i in range(subjects)], each)
    people = np.repeat(rng.standard_normal((subjects, 5)), each, axis=0) * subject_spread
    strengths = people + rng.standard_normal((len(names), 5))
    features = 20 + strengths @ directions + 0.2 * rng.standard_normal((len(names), WIDTH))
    return features.astype(np.float32), names.tolist()


@pytest.fixture(scope="module")
def fitted() -> tuple[Guard, np.ndarray]:
    return fit_guard(*known_cells())


@pytest.fixture(scope="module")
def guard(fitted) -> Guard:
    return fitted[0]


def scores(guard: Guard, features: np.ndarray) -> np.ndarray:
    return guard.scores(features.astype(np.float32))


def test_of_new_subjects_about_98_percent_are_kept(fitted):
    guard, held_out = fitted
    new, _ = known_cells(200, seed=1)

    assert (held_out >= 0).mean() == pytest.approx(0.98, abs=1e-3)
    assert (scores(guard, new) >= 0).mean() == pytest.approx(0.98, abs=0.01)


def test_the_limit_is_that_of_people_the_fit_did_not_see():
    features, subjects = known_cells(6, each=30, subject_spread=2)

    guard, _ = fit_guard(features, subjects)

    own = guard.distances(features)
    assert guard.limit > np.quantile(own, 0.98) * 1.05


def test_what_lies_elsewhere_is_refused(guard):
    rng = np.random.default_rng(3)
    true, _ = known_cells(5, seed=3)

    assert (scores(guard, true + 2 * rng.standard_normal(true.shape)) < 0).all(), "a direction no cell varies in"
    assert (scores(guard, rng.random((50, WIDTH))) < 0).all()
    assert (scores(guard, np.zeros((1, WIDTH))) < 0).all(), "a picture that excites nothing"
    assert (scores(guard, true) > 0).mean() > 0.9


def test_distances_are_those_of_the_gaussian_written_out(guard):
    from sklearn.decomposition import PCA

    features, _ = known_cells()
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    precision = PCA(len(guard.axes), svd_solver="full").fit(unit).get_precision()
    centred = unit - unit.mean(axis=0)

    written_out = np.sqrt(np.einsum("ni,ij,nj->n", centred, precision, centred))

    assert np.allclose(guard.distances(features), written_out, rtol=2e-3)


def test_only_the_direction_of_features_counts(guard):
    features, _ = known_cells(2)

    assert np.allclose(scores(guard, features), scores(guard, features * 3), atol=1e-4)


def test_equal_cells_give_an_equal_guard(guard):
    again, _ = fit_guard(*known_cells())

    assert np.array_equal(again.axes, guard.axes) and again.limit == guard.limit


@pytest.mark.parametrize(
    ("cells", "subjects", "found"), [(49, 7, "49 cells of 7 subject"), (60, 1, "60 cells of 1 subject")]
)
def test_too_little_to_fit_on_is_refused(cells, subjects, found):
    features = np.random.default_rng(0).random((cells, WIDTH), dtype=np.float32)

    with pytest.raises(LeukoscopeError) as error:
        fit_guard(features, [str(i % subjects) for i in range(cells)])
    assert str(error.value) == (f"input guard: {found}(s) are too few to fit it; give at least 50 cells of 2 subjects")


def test_identical_cells_give_finite_answers():
    features = np.ones((60, WIDTH), dtype=np.float32)

    guard, held_out = fit_guard(features, [str(i % 3) for i in range(60)])

    assert np.isfinite(held_out).all()
    assert np.isfinite(scores(guard, features)).all()


# On disk


def test_saved_and_loaded_it_answers_the_same(guard, tmp_path):
    path = guard.save(tmp_path / "guard.safetensors")
    features, _ = known_cells(3, seed=4)

    loaded = Guard.load(path, WIDTH)

    assert path == tmp_path / "guard.safetensors"
    assert np.array_equal(scores(loaded, features), scores(guard, features))
    assert [file.name for file in tmp_path.iterdir()] == ["guard.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_another_networks_guard_is_refused(guard, tmp_path):
    path = guard.save(tmp_path / "guard.safetensors")

    with pytest.raises(LeukoscopeError) as error:
        Guard.load(path, 1024)
    assert str(error.value) == (
        f"{path}: fitted on 100 features, but this network has 1024; restore both from one release"
    )


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def without_limit(path: Path) -> None:
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "limit"}, path)


def with_axes_missing(path: Path) -> None:
    save_file({name: tensor[:2].copy() if name == "axes" else tensor for name, tensor in load_file(path).items()}, path)


def with_nan(path: Path) -> None:
    save_file(load_file(path) | {"rest": np.array(np.nan, dtype=np.float32)}, path)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut_short, "not a whole safetensors file"),
        (without_limit, "is no input guard (holds axes, mean, rest, spread); restore it from the release"),
        (with_axes_missing, "damaged (axes); restore it from the release"),
        (with_nan, "damaged (not finite); restore it from the release"),
        (Path.unlink, "no such weights file"),
    ],
)
def test_a_damaged_guard_is_refused_by_name(guard, tmp_path, damage, problem):
    path = guard.save(tmp_path / "guard.safetensors")
    damage(path)

    with pytest.raises(LeukoscopeError) as error:
        Guard.load(path, WIDTH)
    assert str(error.value).startswith(f"{path}: {problem}")


def test_a_folder_that_is_not_there_is_named(guard, tmp_path):
    path = tmp_path / "nowhere" / "guard.safetensors"

    with pytest.raises(LeukoscopeError) as error:
        guard.save(path)
    assert str(error.value).startswith(f"{path}: the guard cannot be written there (")
