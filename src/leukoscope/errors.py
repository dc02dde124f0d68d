"""The one exception that is shown to users as a single line."""

from __future__ import annotations


class LeukoscopeError(Exception):
    """A problem that the user can fix: the message names the value, the place and the fix."""
