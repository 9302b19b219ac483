"""A source of analog patterns: an arbitrary waveform generator."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class PatternSource(Protocol):
    """What the transmitter needs of a pattern generator.

    A waveform is an ``int16`` array per channel with levels in steps of full scale / 8191
    (-8191 .. 8191 stand for -1 .. 1 of half the peak-to-peak amplitude), and optionally a marker.
    """

    sample_rate_hz: float  # rw
    run_state: str  # r: stopped, waiting, running
    max_samples: int
    channel_count: int

    def set_channel(self, channel: int, *, amplitude_vpp: float, offset_v: float) -> None:
        """Set the scale of one channel (1-based): volts = level/8191 * amplitude/2 + offset."""

    def load(
        self,
        name: str,
        levels: dict[int, NDArray[np.int16]],
        marker1: dict[int, NDArray[np.bool_]] | None = None,
    ) -> None:
        """Upload one waveform per channel (same length) and assign it to the outputs.

        Replaces an earlier waveform of the same name. Stops the generator first.
        """

    def start(self, *, repeat: bool) -> None:
        """Arm. ``repeat=True`` plays without end; ``False`` waits and plays once per `trigger`."""

    def trigger(self) -> None:
        """Play the loaded waveform once (after ``start(repeat=False)``)."""

    def stop(self) -> None:
        """Stop; the outputs rest at their offset voltage (level 0)."""
