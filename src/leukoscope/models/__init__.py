"""Recipes as data, the networks that they build, and the release directory of a trained network."""
