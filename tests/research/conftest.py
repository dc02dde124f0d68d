"""A release whose tables are rendered, and the recipes of the prior systems, known for a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leukoscope.models.recipes import RECIPES
from release_fixtures import release, release_metrics
from research.prior_recipes import register
from trainers import cells, drawn_cells, own_cells, trainer_for

__all__ = ["cells", "drawn_cells", "own_cells", "release", "release_metrics", "trainer_for"]


@pytest.fixture(scope="module")
def prior_recipes() -> Iterator[None]:
    before = dict(RECIPES)
    register()
    yield
    RECIPES.clear()
    RECIPES.update(before)
