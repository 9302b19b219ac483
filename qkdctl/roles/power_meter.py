"""An optical power meter."""

from __future__ import annotations

from typing import Protocol


class PowerMeter(Protocol):
    """Parameters every power meter has."""

    power_w: float  # r
    wavelength_nm: float  # rw
    averaging_count: int  # rw
