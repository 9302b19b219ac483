"""A polarisation controller: a chain of retarders, each with one drive."""

from __future__ import annotations

from typing import Protocol


class PolarizationController(Protocol):
    """Parameters every controller has."""

    voltages_v: list[float]  # rw: all actuators at once
    actuator_count: int

    def set_actuator(self, index: int, voltage_v: float) -> None:
        """Set one actuator (0-based)."""
