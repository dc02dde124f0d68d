"""Data sets, image files, splits, and the transforms that turn a cell into a network's input."""
