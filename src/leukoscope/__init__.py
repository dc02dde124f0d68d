"""Leukoscope: train, measure, publish and explain classifiers of white-blood-cell images for leukaemia research.

The public names, all importable from here. Importing the package loads no heavy library; each name loads what it needs
when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leukoscope.api import evaluate, score, train
    from leukoscope.data.loading import load_dataset
    from leukoscope.data.registry import DATASETS, DatasetInfo, register_dataset
    from leukoscope.data.splits import make_split
    from leukoscope.inference.gradcam import overlay
    from leukoscope.inference.prediction import Decision, Prediction
    from leukoscope.inference.predictor import Predictor
    from leukoscope.inference.smear import read_smear
    from leukoscope.models.recipes import RECIPES
    from leukoscope.split_check import check_split

__version__ = "0.1.0"
__all__ = [
    "DATASETS",
    "RECIPES",
    "RESEARCH_NOTICE",
    "ConfigError",
    "DataError",
    "DatasetInfo",
    "Decision",
    "LeukoscopeError",
    "Prediction",
    "Predictor",
    "ReleaseError",
    "__version__",
    "check_split",
    "evaluate",
    "load_dataset",
    "make_split",
    "overlay",
    "read_smear",
    "register_dataset",
    "score",
    "train",
]


class LeukoscopeError(Exception):
    """A problem that the user can fix: the message names the value, the place and the fix."""


class ConfigError(LeukoscopeError):
    """A flag, a setting or an argument that is unknown, missing or has a wrong value."""


class DataError(LeukoscopeError):
    """Pictures, tables, splits or data sets that cannot be used as they are."""


class ReleaseError(LeukoscopeError):
    """A release, a checkpoint, weights or a repository on the Hub that cannot be opened, written or used."""


RESEARCH_NOTICE = "For research only. Not a medical device; never use it for diagnosis."

_MODULES = {
    "DATASETS": "leukoscope.data.registry",
    "RECIPES": "leukoscope.models.recipes",
    "DatasetInfo": "leukoscope.data.registry",
    "Decision": "leukoscope.inference.prediction",
    "Prediction": "leukoscope.inference.prediction",
    "Predictor": "leukoscope.inference.predictor",
    "check_split": "leukoscope.split_check",
    "evaluate": "leukoscope.api",
    "load_dataset": "leukoscope.data.loading",
    "make_split": "leukoscope.data.splits",
    "overlay": "leukoscope.inference.gradcam",
    "read_smear": "leukoscope.inference.smear",
    "register_dataset": "leukoscope.data.registry",
    "score": "leukoscope.api",
    "train": "leukoscope.api",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'leukoscope' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
