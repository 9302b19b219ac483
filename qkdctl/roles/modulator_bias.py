"""A bias controller of a Mach-Zehnder intensity modulator, with its RF amplifier."""

from __future__ import annotations

from typing import Protocol


class ModulatorBias(Protocol):
    """Parameters and actions every bias controller has, by these names."""

    bias_mode: str  # rw: off, peak, null, quad+, quad-, hold-quad+, hold-quad-, manual
    bias_v: float  # rw: the voltage of manual mode; reading gives the present bias
    bias_locked: bool  # r: at the set point of the mode
    bias_tap_w: float  # r: optical power after the modulator
    rf_enabled: bool  # rw
    rf_gain_db: float  # rw

    def calibrate_bias(self) -> None:
        """Start the controller's own bias search; returns at once, poll `bias_calibrating`."""
