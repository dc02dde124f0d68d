"""Releases that are published."""

from release_fixtures import release, release_metrics, whole_release

__all__ = ["release", "release_metrics", "whole_release"]
