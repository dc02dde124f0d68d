"""The flags that say of whom and of which class cells are, the same for every command that reads cells."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

NO_COLUMN = "none"
"""What a flag of a column says where no column has that role."""


@dataclass(frozen=True)
class Reading:
    """The flags that say of whom and of which class the cells are; every command takes the same.

    Attributes:
        labels: a table of the cells.
        subject_pattern: a regular expression over a picture's path with a group that matches the subject.
        subject_folders: whether the innermost folder of a picture is its subject.
        file_column, label_column_name, subject_column, split_column: what a table or a Hub data set calls its columns;
            "" (for labels "label", too) takes the one with a usual name, "none" leaves the role out.
        image_column_name: of a Hub data set.
    """

    labels: str | Path | None = None
    subject_pattern: str | None = None
    subject_folders: bool = False
    file_column: str = ""
    label_column_name: str = "label"
    subject_column: str = ""
    split_column: str = ""
    image_column_name: str = "image"

    def column(self, role: str) -> str:
        """The column that a flag names for a role; "" for the one with a usual name."""
        named = {
            "file": self.file_column,
            "label": self.label_column_name,
            "subject": self.subject_column,
            "split": self.split_column,
        }.get(role, "")
        if (role, named) == ("label", "label"):
            return ""
        return named

    def given(self) -> dict[str, Any]:
        """The flags that differ from their defaults."""
        return {
            flag.name: getattr(self, flag.name) for flag in fields(self) if getattr(self, flag.name) != flag.default
        }


NO_FLAGS = Reading()
"""No flag is given."""
