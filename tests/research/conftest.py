"""A release whose tables are rendered."""

from release_fixtures import release, release_metrics

__all__ = ["release", "release_metrics"]
