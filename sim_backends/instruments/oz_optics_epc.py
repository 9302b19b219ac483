"""OZ Optics EPC-400 polarization controller (sheet ``oz-optics-epc.md``).

Four fibre squeezers, driven by constant voltages (DC mode) or scrambling at a frequency of their
own (AC mode). Every reply is one content line, empty for a set, and a line ``Done`` or ``Error!``.

Guessed where the sheet is silent: power-up state is DC at 0 V; scrambling swings +-5 V; an error is
the single line ``Error!``.
"""

from __future__ import annotations

import math
import re

from sim_backends.optics.ports import ClockPort, PolarizationPort

CHANNELS = 4
LIMIT_MV = 5000
LINE_LIMIT = 256
_SET = re.compile(r"(VH|VL|VZ|VF)([1-4])|([VF])([1-4]),([+-]?\d{1,5})")


class OzOpticsEpcEmulator:
    """The controller behind its ASCII commands. Serve with `PtyAndTcp`.

    Parameters
    ----------
    serial
        Not visible on the wire: the instrument has no identification command.
    profile, strict
        No difference for this instrument.
    """

    tick_s: float = 0.02

    def __init__(
        self,
        port: PolarizationPort,
        clock: ClockPort,
        *,
        name: str = "epc",
        serial: str = "112233-01",
        profile: str = "manual",
        strict: bool = False,
    ) -> None:
        self.name = name
        self.serial = serial
        self.profile = profile
        self.strict = strict
        self._port = port
        self._clock = clock
        self._millivolts = [0] * CHANNELS
        self._hertz = [7, 17, 37, 71]
        self._scrambling = False
        self._triangle = False
        self._dc_in_ac = False
        self._dc_channel = [False] * CHANNELS
        self._drive()

    def session(self) -> OzOpticsEpcSession:
        """A front-end for one connection."""
        return OzOpticsEpcSession(self)

    def idle_timeout_s(self) -> float | None:
        """A serial line is never hung up."""
        return None

    def tick(self) -> None:
        """Move the scrambling squeezers on."""
        if self._scrambling:
            self._drive()

    def _drive(self) -> None:
        seconds = self._clock.now_ps() * 1e-12
        volts = []
        for millivolts, hertz, dc in zip(
            self._millivolts, self._hertz, self._dc_channel, strict=True
        ):
            if not self._scrambling or (self._dc_in_ac and dc):
                volts.append(millivolts / 1000)
                continue
            sine = math.sin(2 * math.pi * math.fmod(hertz * seconds, 1.0))
            shape = 2 / math.pi * math.asin(sine) if self._triangle else sine
            volts.append(LIMIT_MV / 1000 * shape)
        self._port.set_voltages(tuple(volts))

    def execute(self, command: str) -> str | None:
        """Carry out one command; return the content line, or None for an error."""
        query = self._query(command)
        if query is not None:
            return query
        match = _SET.fullmatch(command)
        if match is not None and match[1]:
            channel = int(match[2]) - 1
            if match[1] == "VF":
                self._dc_channel[channel] = not self._dc_channel[channel]
            else:
                volts = {"VH": LIMIT_MV, "VL": -LIMIT_MV, "VZ": 0}
                self._millivolts[channel] = volts[match[1]]
        elif match is not None:
            channel, value = int(match[4]) - 1, int(match[5])
            if match[3] == "V":
                if abs(value) > LIMIT_MV:
                    return None
                self._millivolts[channel] = value
            else:
                if not 0 <= value <= 100:
                    return None
                self._hertz[channel] = value
        elif command in ("MAC", "MDC"):
            self._scrambling = command == "MAC"
        elif command in ("WF1", "WF2"):
            self._triangle = command == "WF2"
        elif command in ("ENVF0", "ENVF1"):
            self._dc_in_ac = command == "ENVF1"
        elif command != "SAVE":
            return None
        self._drive()
        return ""

    def _query(self, command: str) -> str | None:
        if command == "V?":
            values = (f"CH{i} {mv:+05d}" for i, mv in enumerate(self._millivolts, 1))
            return "Voltage(mV): " + " ".join(values)
        if command == "F?":
            values = (f"CH{i} {hz:03d}" for i, hz in enumerate(self._hertz, 1))
            return "Frequency(Hz): " + "  ".join(values)
        if command == "M?":
            return "Work Mode: " + ("AC" if self._scrambling else "DC")
        if command == "WF?":
            return "AC Waveform: " + ("Triangle" if self._triangle else "Sine")
        if command == "VF?":
            flags = (f"CH{i}-{'V' if dc else 'F'}" for i, dc in enumerate(self._dc_channel, 1))
            return f"DC in AC mode {'enabled' if self._dc_in_ac else 'disabled'} " + " ".join(flags)
        return None


class OzOpticsEpcSession:
    """Lines ended by CR LF (either alone will do). A line too long is an error at its end."""

    def __init__(self, device: OzOpticsEpcEmulator) -> None:
        self._device = device
        self._line = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; return the replies to the lines completed by them."""
        *ended, rest = data.replace(b"\r", b"\n").split(b"\n")
        out = bytearray()
        for piece in ended:
            line = bytes(self._line) + piece
            self._line.clear()
            if line:
                out += self._answer(line)
        self._line += rest[: LINE_LIMIT + 1 - len(self._line)]
        return bytes(out)

    def _answer(self, line: bytes) -> bytes:
        if len(line) > LINE_LIMIT or not line.isascii():
            return b"Error!\r\n"
        command = line.decode("ascii").strip().upper().replace(" ", "")
        content = self._device.execute(command)
        return b"Error!\r\n" if content is None else content.encode("ascii") + b"\r\nDone\r\n"
