"""A laser: a continuous source whose output can be switched, set and read back."""

from __future__ import annotations

from typing import Protocol


class Laser(Protocol):
    """Parameters every laser has, by these names."""

    enabled: bool  # rw: light leaves the laser
    power_dbm: float  # rw: set point
    frequency_hz: float  # rw: optical frequency set point
    measured_power_dbm: float  # r
    settled: bool  # r: on, tuned, and power at the set point
