"""Cells small and few enough to train on in a test."""

from trainers import cells, drawn_cells, own_cells, split, trainer_for

__all__ = ["cells", "drawn_cells", "own_cells", "split", "trainer_for"]
