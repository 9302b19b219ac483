"""Thorlabs PM100D / PM101 / PM103E optical power meters: SCPI over TCP.

Source: PM100D operation manual, chapter 6.4 (SCPI commands). The PM103E listens on TCP port 2000
and hangs up after two minutes without traffic; the next call then connects again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from drivers.transports.identification import parse_identification, require_identity
from drivers.transports.scpi_socket import ScpiSocket
from qkdctl.roles import (
    Fails,
    Identity,
    Instrument,
    InstrumentFault,
    OutOfRange,
    Parameter,
    ProtocolError,
    Timeout,
)

MODELS = ("PM100", "PM101", "PM102", "PM103", "PM160", "PM400", "PM5020")
OVERRANGE_W = 9.9e37  # SCPI's infinity: more light than the range takes
NO_SENSOR = "no sensor"


class ThorlabsPm100(Instrument):
    """Optical power meter of the Thorlabs PM100 family.

    ``address`` is a VISA socket resource, ``TCPIP0::host::2000::SOCKET``.
    """

    model = "thorlabs_pm100"
    roles = ("power_meter",)
    fails = Fails.HOLD

    power_w = Parameter(float, unit="W", poll_s=1.0, doc="Optical power on the sensor.")
    wavelength_nm = Parameter(
        float, unit="nm", access="rw", minimum=400.0, maximum=1800.0,
        doc="Wavelength the sensor's calibration is taken at.",
    )  # fmt: skip
    averaging_count = Parameter(
        int, access="rw", minimum=1, maximum=3000,
        doc="Samples averaged per reading, about 0.3 ms each.",
    )  # fmt: skip
    auto_range = Parameter(bool, access="rw", doc="Whether the meter chooses its range itself.")
    sensor = Parameter(str, doc="The connected sensor: name and serial number.")

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 2.0,
        limits: Mapping[str, tuple[float, float]] | None = None,
        serial: str | None = None,
    ) -> None:
        super().__init__(address, timeout_s=timeout_s, limits=limits, serial=serial)
        self._link = ScpiSocket(address, timeout_s=timeout_s, greet=self._greet)
        self._identity: Identity | None = None
        self._sensor_range_nm = (-math.inf, math.inf)
        self._range_answers = True

    # -- life -------------------------------------------------------------------------------

    def open(self) -> Identity:
        """Connect, identify, and set the unit of readings to watts."""
        self._range_answers = True
        try:
            self._link.open()
        except Timeout:
            if self._range_answers:
                raise
            self._link.open()  # it was the optional question; greeted once more without it
        assert self._identity is not None
        return self._identity

    def close(self) -> None:
        """Disconnect."""
        self._link.close()

    def identify(self) -> Identity:
        """Ask ``*IDN?``."""
        return parse_identification(self._link.query("*IDN?"), self.address)

    def _greet(self) -> None:
        self._identity = require_identity(
            self.identify(), models=MODELS, serial=self.expected_serial, where=self.address
        )
        self._link.take_errors()  # whatever an earlier client left behind
        self._link.command("SENS:POW:UNIT W")
        self._sensor_range_nm = self._read_sensor_range()

    def _read_sensor_range(self) -> tuple[float, float]:
        """Ask for the sensor's wavelength range; a meter that has no such query sets no limit."""
        if not self._range_answers:
            return -math.inf, math.inf
        self._range_answers = False
        try:
            low = float(self._link.query("SENS:CORR:WAV? MIN"))
            high = float(self._link.query("SENS:CORR:WAV? MAX"))
        except ValueError:
            low, high = -math.inf, math.inf
        self._range_answers = True
        if self._link.take_errors() or not low < high:
            return -math.inf, math.inf
        return low, high

    # -- parameters -------------------------------------------------------------------------

    def read_power_w(self) -> float:
        """Trigger a measurement; `InstrumentFault` when the range is exceeded."""
        power = self._link.query_float("MEAS:POW?")
        if math.isnan(power):
            raise ProtocolError(f"{self.address}: MEAS:POW? was answered by NaN")
        if abs(power) >= OVERRANGE_W:
            raise InstrumentFault(f"{self.address}: overrange, more light than the range takes")
        return power

    def read_wavelength_nm(self) -> float:
        """Ask for the calibration wavelength."""
        return self._link.query_float("SENS:CORR:WAV?")

    def write_wavelength_nm(self, value: float) -> float:
        """Set the calibration wavelength within the sensor's own range."""
        with self._link.conversation():
            low, high = self._sensor_range_nm
            if not low <= value <= high:
                raise OutOfRange(
                    f"{self.model}.wavelength_nm = {value:g} nm is outside the sensor's "
                    f"{low:g} .. {high:g} nm"
                )
            self._link.command(f"SENS:CORR:WAV {value:.10g}")
            return self.read_wavelength_nm()

    def read_averaging_count(self) -> int:
        """Ask for the averaging count."""
        return self._link.query_int("SENS:AVER:COUN?")

    def write_averaging_count(self, value: int) -> int:
        """Set the averaging count."""
        with self._link.conversation():
            self._link.command(f"SENS:AVER:COUN {value}")
            return self.read_averaging_count()

    def read_auto_range(self) -> bool:
        """Ask whether the range is automatic."""
        return self._link.query_int("SENS:POW:RANG:AUTO?") != 0

    def write_auto_range(self, value: bool) -> bool:
        """Switch automatic ranging."""
        with self._link.conversation():
            self._link.command(f"SENS:POW:RANG:AUTO {int(value)}")
            return self.read_auto_range()

    def read_sensor(self) -> str:
        """Ask for the sensor; `InstrumentFault` when none is connected."""
        name, *rest = (f.strip() for f in self._link.query("SYST:SENS:IDN?").split(","))
        if name.lower() == NO_SENSOR:
            raise InstrumentFault(f"{self.address}: no sensor connected")
        return f"{name} {rest[0]}" if rest else name
