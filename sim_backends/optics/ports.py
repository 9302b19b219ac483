"""What an emulated instrument can do to the physical world, and see of it.

`World` (``world.py``) implements these; a wire emulator holds only the port of its own instrument,
so it can no more peek at another's state than a box in a rack can. All methods are thread-safe and
quick. A change takes effect at the moment of the call: light and clicks before it are already
accounted for under the old state.

Times are picoseconds of true laboratory time since the world began (``int64``); instruments with a
clock of their own convert at their port.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ClockPort(Protocol):
    """Laboratory time: real time multiplied by the bench's time factor."""

    def now_ps(self) -> int:
        """Picoseconds of laboratory time since the world began."""

    def sleep_until_ps(self, when_ps: int) -> None:
        """Block the calling thread until laboratory time reaches `when_ps`."""


class LaserPort(Protocol):
    """The seed laser's output."""

    def set_light(self, *, power_w: float, frequency_hz: float) -> None:
        """Emit `power_w` (0 = dark) at `frequency_hz`."""


class ModulatorPort(Protocol):
    """Mach-Zehnder modulator with bias electrode and RF amplifier, then the VOA."""

    def set_bias(self, volts: float) -> None:
        """Voltage on the bias electrode."""

    def set_rf(self, *, enabled: bool, gain_db: float) -> None:
        """RF amplifier between the pattern source's channel 1 and the modulator."""

    def tap_after_modulator_w(self, bias_v: float | None = None) -> float:
        """Mean optical power after the modulator now; at `bias_v` instead of the present bias
        if given (what the controller's sweep would see, RF input at its present mean level)."""

    def vpi_v(self) -> float:
        """Half-wave voltage of the bias electrode (the controller learns it in its sweep)."""

    def set_attenuation(self, decibel: float) -> None:
        """Attenuation of the VOA behind the modulator (insertion loss not included)."""

    def tap_after_attenuator_w(self) -> float:
        """Mean optical power after the VOA now."""


@dataclass(frozen=True, slots=True)
class AnalogWaveform:
    """One channel's waveform as codes of the 14-bit converter, with its scale.

    ``codes`` is uint16 with the value in bits 0..13 (0 = -1, 8191 = 0, 16382 = +1) and marker 1 in
    bit 14, marker 2 in bit 15. volts = (value/8191 - 1) * amplitude_vpp/2 + offset_v.
    """

    codes: NDArray[np.uint16]
    amplitude_vpp: float
    offset_v: float


class PatternPort(Protocol):
    """The pattern generator's four analog outputs and the marker that serves as sync."""

    def hold(self, volts: tuple[float, float, float, float]) -> None:
        """Outputs rest at these constant voltages (stopped, or waiting for a trigger)."""

    def play(
        self,
        waveforms: tuple[AnalogWaveform | None, ...],
        *,
        sample_rate_hz: float,
        repeat: bool,
        hold_after: tuple[float, float, float, float],
    ) -> int:
        """Play from now; return the laboratory time (ps) at which a single play ends.

        Channels without waveform rest at ``hold_after``. A rising edge of channel 1's marker 1
        is a sync pulse: it reaches the tagger's START input. With ``repeat`` the pattern plays
        until the next `hold` or `play`. Playing the same waveform objects again is cheap: what is
        derived from the samples is kept per object.
        """


class PowerMeterPort(Protocol):
    """Light at the monitor tap (after VOA and encoder, before the fixed attenuator)."""

    def power_w(self) -> float:
        """Mean optical power on the sensor now, noise of the sensor not included."""


class PolarizationPort(Protocol):
    """The electrically driven retarders before Bob's receiver."""

    def set_voltages(self, volts: tuple[float, ...]) -> None:
        """Drive voltages of the squeezers."""


class DetectorPort(Protocol):
    """The four single-photon detectors' bias supply and counters."""

    detector_count: int

    def set_bias(self, *, enabled: bool, currents_ua: tuple[float, ...]) -> None:
        """Bias currents; a detector whose supply is off is silent."""

    def counts_total(self) -> tuple[int, ...]:
        """Clicks of each detector since the world began, up to now."""

    def switching_current_ua(self) -> tuple[float, ...]:
        """Current at which each detector latches (what an IV sweep would find)."""


class TaggerPort(Protocol):
    """Inputs 1..4 carry the detectors, START carries the sync marker."""

    def subscribe(
        self,
        sink: Callable[[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64], int], None],
    ) -> Callable[[], None]:
        """Deliver everything that happens from now on; returns a function that ends it.

        ``sink(time_ps, channel, start_ps, until_ps)`` is called from the world's thread about
        every 20 ms of real time: tags since the last call in time order (channel 1..4), the times
        of START edges, and the time up to which this is complete. All times are in the *tagger's*
        clock: picoseconds since the world began as that clock counts them.
        """

    def to_tagger_ps(self, laboratory_ps: int) -> int:
        """Convert laboratory time to the tagger's clock."""
