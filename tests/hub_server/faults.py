"""What can go wrong between a client and the Hub, to be asked for by a test: which request, what happens, how often."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["refuse", "refuse_mid_upload", "cut", "wrong_etag"]


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        request: regular expression over "METHOD /path".
        kind: `refuse` answers `status` at once, `refuse_mid_upload` after half of the body; `cut` does what was asked
            for and ends the connection half-way through the answer; `wrong_etag` names another content.
        status, headers: of the refusal.
        times: how often, before all is well again.
    """

    request: str
    kind: Kind = "refuse"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request meets it; counted."""
        if self.times < 1 or not re.search(self.request, f"{method} {path}"):
            return False
        self.times -= 1
        return True
