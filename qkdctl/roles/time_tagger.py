"""A time tagger: streams blocks of tags, each tag relative to the last reference marker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TagBlock:
    """One block of time tags, sorted by (marker_index, time_ps).

    Attributes
    ----------
    sequence : int
        Number of the block since the stream was started, without gaps.
    time_ps : int64, shape (n,)
        Picoseconds since the reference marker before the tag (since the start of the recording
        where ``marker_index`` is 0).
    channel : uint8, shape (n,)
        Input number as on the instrument, 1-based.
    marker_index : uint64, shape (n,)
        How many reference markers the instrument had seen since the recording started.
    lost : int
        Tags the instrument reports as lost since the block before.
    """

    sequence: int
    time_ps: NDArray[np.int64]
    channel: NDArray[np.uint8]
    marker_index: NDArray[np.uint64]
    lost: int = 0


class TimeTagger(Protocol):
    """What the receiver needs of a time tagger."""

    def start_stream(self, channels: tuple[int, ...], *, block_s: float = 0.2) -> None:
        """Begin an endless recording of `channels`, referenced to the START input.

        Marker counting starts at 0 with the recording.
        """

    def blocks(self) -> Iterator[TagBlock]:
        """Yield blocks as they arrive; ends when the stream is stopped.

        An empty block is yielded when a period passes without tags. Raises `Timeout` or
        `ConnectionLost` when the instrument falls silent.
        """

    def stop_stream(self) -> None:
        """End the recording; `blocks` then finishes."""
