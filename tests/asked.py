"""What the tests of the demo are made of: pictures as uploads, and answers that no network was asked for."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from leukoscope.data.changes import PICTURE_CHANGES
from leukoscope.demo import uploads
from leukoscope.demo.answers import Answer
from leukoscope.demo.pictures import Picture
from leukoscope.demo.uploads import Upload
from leukoscope.inference.prediction import ChangedAnswer, Checks, Prediction, Thresholds
from leukoscope.models.release import ReleaseInfo, read_release
from leukoscope.reports.words import encoded
from leukoscope.synthetic import draw_cell

ROOT = Path(__file__).parents[1]
DENSENET = "leukoscope-densenet169-cnmc"
CHANGES = list(PICTURE_CHANGES.values())[:8]
THRESHOLDS = Thresholds(abstain_below=0.7)


def release(name: str = DENSENET) -> ReleaseInfo:
    """A release that comes along, without its network."""
    return read_release(ROOT / "model_card" / name, name=name)


def shares(all_share: float) -> dict[str, float]:
    return {"ALL": all_share, "HEM": 1 - all_share}


def answer(
    share: float = 0.95,
    views: Sequence[float] = (),
    changes: Sequence[float] = (),
    model: str = DENSENET,
    **checks: Any,
) -> Answer:
    """What a model says of a cell: the probability of ALL as given, turned and changed."""
    known = Checks(ood_score=checks.pop("ood_score", 0.2), **checks)
    decide = THRESHOLDS.decide
    image = Image.fromarray(draw_cell("ALL").image)
    prediction = Prediction(
        decide(shares(share), known),
        shares(share),
        source="",
        model=model,
        revision="",
        seconds=0,
        heatmaps=None,
        view_box=(0, 0, *image.size),
        checks=known,
        picture=image,
        views=tuple(map(shares, views)),
        changed=tuple(
            ChangedAnswer(change, decide(shares(changed), known), shares(changed))
            for change, changed in zip(CHANGES, changes, strict=False)
        ),
    )
    return Answer(Picture(image, "cell.png"), model, release(model), THRESHOLDS, prediction)


def png(label: str = "ALL", side: int = 64, cell: int = 0) -> bytes:
    return encoded(Image.fromarray(draw_cell(label, cell=cell, size=side).image), "PNG")


def sent(content: bytes, name: str = "cell.png") -> Upload:
    """A file that the server received."""
    file = uploads.new_folder() / "sha" / Path(name).name
    file.parent.mkdir()
    file.write_bytes(content)
    return Upload(str(file), name)


def packed(files: Mapping[str, bytes], name: str = "cells.zip") -> Upload:
    """A zip that the server received."""
    upload = sent(b"", name)
    with zipfile.ZipFile(upload.path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in files.items():
            archive.writestr(entry, content)
    return upload
