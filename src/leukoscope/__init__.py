"""Leukoscope: train, measure, publish and explain classifiers of white-blood-cell images for leukaemia research.

The rooms, in the direction data flows: cells → models → inference → evaluation → training → hub → web · cli.
Only light names live here, so that `import leukoscope` costs nothing; `Predictor` is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Prediction, Predictor

__version__ = "0.1.0"
__all__ = ["RESEARCH_NOTICE", "LeukoscopeError", "Prediction", "Predictor", "__version__"]

RESEARCH_NOTICE = "For research only. Not a medical device; never use it for diagnosis."


class LeukoscopeError(Exception):
    """A problem the user can fix: the message names the value, the place and the fix."""


def __getattr__(name: str) -> object:
    if name in ("Prediction", "Predictor"):
        return getattr(import_module("leukoscope.inference.predictor"), name)
    raise AttributeError(f"module 'leukoscope' has no attribute {name!r}")
