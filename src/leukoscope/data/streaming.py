"""A few cells of a Hub data set, streamed: the data set is neither downloaded nor kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from leukoscope import LeukoscopeError
from leukoscope.data.images import UnreadableImage, open_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

# Sets are often sorted by class or patient; a shuffle of this many rows mixes neighbours, and after so many rows no
# further class is waited for.
BUFFER, MOST_ROWS = 64, 400


class StreamedCell(NamedTuple):
    """One labelled cell; `image` is upright RGB."""

    image: Image
    label: str


def stream_cells(hub_id: str, each: int = 3) -> list[StreamedCell]:
    """A few cells of each class of a Hub data set with columns `image` and `label`.

    Args:
        hub_id: `owner/name`.
        each: how many cells of a class are wanted; of a class that is not among the first rows there are fewer.

    Raises:
        LeukoscopeError: no network, no such data set, one laid out otherwise, or one without a readable picture.
    """
    from datasets import ClassLabel, Image, load_dataset

    try:
        rows = load_dataset(hub_id, split="train", streaming=True).shuffle(seed=0, buffer_size=BUFFER)
        rows = rows.select_columns(["image", "label"]).cast_column("image", Image(decode=False))
        feature = (rows.features or {}).get("label")
        name_of = feature.int2str if isinstance(feature, ClassLabel) else str
        cells: dict[str, list[StreamedCell]] = {}
        for row in rows.take(MOST_ROWS):
            label = name_of(row["label"])
            found = cells.setdefault(label, [])
            if len(found) < each and row["image"] and row["image"]["bytes"]:
                try:
                    found.append(StreamedCell(open_bytes(row["image"]["bytes"], label), label))
                except UnreadableImage:
                    continue
            if len(cells) > 1 and all(len(found) == each for found in cells.values()):
                break
    except Exception as error:  # the client raises a dozen unrelated types for "cannot be had"
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise LeukoscopeError(
            f"data set {hub_id}: cannot be streamed from the Hub ({type(error).__name__}: {reason}); check the network"
        ) from None
    streamed = [cell for _, found in sorted(cells.items()) for cell in found]
    if not streamed:
        raise LeukoscopeError(f"data set {hub_id}: no readable picture among its first {MOST_ROWS} rows")
    return streamed
