"""Single Quantum Atlas: bias supply and counters of superconducting nanowire detectors (WebSQ).

Source: Single Quantum's own WebSQ clients. Two TCP connections: *control* carries JSON objects
both ways, *counts* brings one text line ``timestamp,c1,c2,...`` per measurement period.

The server answers ``labelProps`` with one object per label, and it broadcasts a label that changes.
Neither carries a request number. What ties an answer to its request is that each ``labelProps`` is
answered by each label once: the n-th full value of a label answers the n-th request. WebSQ tells no
serial number; after a reconnect, the number of detectors is what is compared.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from drivers.transports.endpoint import parse_endpoint
from drivers.transports.json_stream import JsonStreamParser
from drivers.transports.tcp_reader import TcpReader
from qkdctl.roles import (
    ConnectionLost,
    Fails,
    Identity,
    Instrument,
    InstrumentFault,
    InvalidValue,
    NotSupported,
    OutOfRange,
    Parameter,
    ProtocolError,
    Timeout,
    WrongInstrument,
)

DETECTORS = "NumberOfDetectors"
PERIOD = "InptMeasurementPeriod"
BIAS = "BiasCurrent"
TRIGGER = "TriggerLevel"
ENABLE = "DetectorEnable"

LARGEST_BIAS_UA = 90.9
LARGEST_TRIGGER_MV = 1000.0  # a guess: WebSQ states no bound
SHORTEST_PERIOD_MS = 10.0
LONGEST_PERIOD_MS = 60_000.0  # a guess; longer than this is of no use for supervision
LONGEST_LINE = 1 << 16
# A value counts as accepted when it is within the step of the instrument's converters.
RELATIVE_STEP, ABSOLUTE_STEP = 0.01, 0.1


class LabelTable:
    """What the control connection has told so far: bytes in, labels out.

    Attributes
    ----------
    values : the newest value of each label
    full_answers : how often each label came with its properties (as ``labelProps`` answers)
    updates : how often each label came in any form
    error : the newest error message, or an empty text
    """

    def __init__(self) -> None:
        self._parser = JsonStreamParser()
        self.values: dict[str, Any] = {}
        self.full_answers: Counter[str] = Counter()
        self.updates: Counter[str] = Counter()
        self.error = ""

    def feed(self, data: bytes) -> None:
        """Take in what arrived; `ProtocolError` when it is not JSON."""
        for message in self._parser.feed(data):
            label, value = message.get("label"), message.get("value")
            if not isinstance(label, str):
                continue
            if isinstance(value, dict) and "value" in value:
                value = value["value"]
                self.full_answers[label] += 1
            elif "Error" in label and value:
                self.error = f"{label}: {value}"
            self.values[label] = value
            self.updates[label] += 1


class CountLines:
    """What the counts connection has told: bytes in, the newest period's counts out."""

    def __init__(self, detectors: int) -> None:
        self._detectors = detectors
        self._buffer = b""
        self._skip = 0
        self.newest: tuple[float, ...] | None = None
        self.since = time.monotonic()

    def feed(self, data: bytes) -> None:
        """Take in what arrived; `ProtocolError` when a line is not what it should be."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LONGEST_LINE:
            raise ProtocolError("counts: a line without end")
        for line in lines:
            counts = self._parse(line)
            if self._skip:
                self._skip -= 1
            else:
                self.newest, self.since = counts, time.monotonic()

    def forget(self) -> None:
        """Drop what came, and the next line too: the measurement period has changed."""
        self.newest, self.since = None, time.monotonic()
        self._skip = 1

    def _parse(self, line: bytes) -> tuple[float, ...]:
        try:
            _, *counts = (float(field) for field in line.split(b","))
        except ValueError:
            counts = []
        good = len(counts) == self._detectors and all(c >= 0 and math.isfinite(c) for c in counts)
        if not good:
            raise ProtocolError(
                f"counts: expected a time and {self._detectors} counts, got {line[:80]!r}"
            )
        return tuple(counts)


class SingleQuantumAtlas(Instrument):
    """Superconducting nanowire single-photon detectors on a Single Quantum Atlas driver.

    ``address`` is ``tcp://host:12000``; ``counts_port`` is the port of the counts connection.
    """

    model = "single_quantum_atlas"
    roles = ("single_photon_detector",)
    fails = Fails.DARK

    detector_count = Parameter(int, doc="Number of detectors.")
    enabled = Parameter(bool, access="rw", doc="Bias supply of all detectors on.")
    bias_ua = Parameter(
        list, unit="uA", access="rw", minimum=-LARGEST_BIAS_UA, maximum=LARGEST_BIAS_UA,
        doc="Bias current of each detector.",
    )  # fmt: skip
    trigger_mv = Parameter(
        list, unit="mV", access="rw", minimum=-LARGEST_TRIGGER_MV, maximum=LARGEST_TRIGGER_MV,
        doc="Trigger level of each detector's discriminator.",
    )  # fmt: skip
    count_rates = Parameter(
        list, unit="1/s", poll_s=1.0, doc="Counts per second over the last integration period."
    )
    integration_time_ms = Parameter(
        float, unit="ms", access="rw", minimum=SHORTEST_PERIOD_MS, maximum=LONGEST_PERIOD_MS,
        doc="Period over which counts are summed.",
    )  # fmt: skip

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 2.0,
        limits: Mapping[str, tuple[float, float]] | None = None,
        serial: str | None = None,
        counts_port: int = 12345,
    ) -> None:
        super().__init__(address, timeout_s=timeout_s, limits=limits, serial=serial)
        if serial is not None:
            raise NotSupported(f"{self.model} tells no serial number; leave 'serial' out")
        self._host, self._control_port = parse_endpoint(address)
        self._counts_port = counts_port
        self._lock = threading.RLock()
        self._wanted = False
        self._known_detectors: int | None = None
        self._control: TcpReader | None = None
        self._counts: TcpReader | None = None
        self._forget_connection()

    # -- life -------------------------------------------------------------------------------

    def open(self) -> Identity:
        """Connect both sockets and learn the number of detectors."""
        with self._lock:
            self.close()
            self._known_detectors = None
            self._wanted = True
            try:
                return self.identify()
            except BaseException:
                self._wanted = False
                raise

    def close(self) -> None:
        """Disconnect; both reader threads end."""
        with self._lock:
            self._wanted = False
            self._disconnect()

    def identify(self) -> Identity:
        """Say who it is; WebSQ tells neither serial number nor firmware."""
        count = self.read_detector_count()
        return Identity("Single Quantum", f"Atlas ({count} detectors)", serial="", firmware="")

    def make_safe(self) -> None:
        """Switch the bias supply off."""
        self.write_enabled(False)

    # -- parameters -------------------------------------------------------------------------

    def read_detector_count(self) -> int:
        """Ask for the number of detectors."""
        with self._connected() as control:
            return self._detector_count(self._ask(control, DETECTORS))

    def read_enabled(self) -> bool:
        """Ask whether the bias supply is on."""
        with self._connected() as control:
            return self._flag(self._ask(control, ENABLE))

    def write_enabled(self, value: bool) -> bool:
        """Switch the bias supply."""
        return self._flag(self._set("DetectorEnable", ENABLE, value))

    def read_bias_ua(self) -> list[float]:
        """Ask for the bias currents."""
        with self._connected() as control:
            return self._list(BIAS, self._ask(control, BIAS))

    def write_bias_ua(self, value: list[float]) -> list[float]:
        """Set all bias currents."""
        return self._list(BIAS, self._set("SetAllBiasCurrents", BIAS, value))

    def read_trigger_mv(self) -> list[float]:
        """Ask for the trigger levels."""
        with self._connected() as control:
            return self._list(TRIGGER, self._ask(control, TRIGGER))

    def write_trigger_mv(self, value: list[float]) -> list[float]:
        """Set all trigger levels."""
        return self._list(TRIGGER, self._set("SetAllTriggerLevels", TRIGGER, value))

    def read_integration_time_ms(self) -> float:
        """Ask for the measurement period."""
        with self._connected() as control:
            return self._period(self._ask(control, PERIOD))

    def write_integration_time_ms(self, value: float) -> float:
        """Set the measurement period; count rates of the old one are forgotten."""
        number = int(value) if value.is_integer() else value
        return self._period(self._set("SetMeasurementPeriod", PERIOD, number))

    def read_count_rates(self) -> list[float]:
        """Return the newest period's rates; `Timeout` when none came for 3 periods and a second."""
        with self._connected():
            counts, lines = self._counts, self._lines
            assert counts is not None
            assert lines is not None

            patience_s = 3 * self._period_ms / 1000 + 1

            def fresh() -> tuple[float, ...] | None:
                young = time.monotonic() - lines.since < patience_s
                return lines.newest if young else None

            newest = counts.wait_for(fresh, lines.since + patience_s)
            if newest is None:
                raise Timeout(f"{counts.where}: no counts for {patience_s:g} s")
            return [count * 1000 / self._period_ms for count in newest]

    # -- connection -------------------------------------------------------------------------

    @contextmanager
    def _connected(self) -> Iterator[TcpReader]:
        """Give the control connection, made afresh if the last exchange failed."""
        with self._lock:
            if not self._wanted:
                raise ConnectionLost(f"{self.address} is not open")
            try:
                if not self._alive():
                    self._disconnect()
                    self._connect()
                assert self._control is not None
                yield self._control
            except (InstrumentFault, InvalidValue, OutOfRange):
                raise
            except BaseException:
                self._disconnect()
                raise

    def _alive(self) -> bool:
        return (
            self._control is not None
            and self._counts is not None
            and self._control.failure is None
            and self._counts.failure is None
        )

    def _forget_connection(self) -> None:
        self._labels = LabelTable()
        self._lines: CountLines | None = None
        self._requests = 0
        self._period_ms = math.nan

    def _connect(self) -> None:
        self._forget_connection()
        self._control = TcpReader(
            self._host, self._control_port, timeout_s=self.timeout_s, receive=self._take_labels
        )
        count = self._detector_count(self._ask(self._control, DETECTORS))
        if self._known_detectors not in (None, count):
            raise WrongInstrument(
                f"{self.address}: it had {self._known_detectors} detectors, now {count}"
            )
        self._period(self._ask(self._control, PERIOD))
        self._known_detectors = count
        self._lines = CountLines(count)
        self._counts = TcpReader(
            self._host, self._counts_port, timeout_s=self.timeout_s, receive=self._lines.feed
        )

    def _disconnect(self) -> None:
        for connection in (self._control, self._counts):
            if connection is not None:
                connection.close()
        self._control = self._counts = None

    def _take_labels(self, data: bytes) -> None:
        """Take in control messages (in the control reader's thread)."""
        self._labels.feed(data)
        period = self._labels.values.get(PERIOD)
        if period is None:
            return
        period_ms = self._period(period)
        if period_ms != self._period_ms:
            self._period_ms = period_ms
            counts, lines = self._counts, self._lines
            if counts is not None and lines is not None:
                with counts.changed:
                    lines.forget()

    # -- exchanges --------------------------------------------------------------------------

    def _ask(self, control: TcpReader, label: str) -> Any:
        """Request all labels and return the value of this one from this request's answer."""
        control.send(msgspec.json.encode({"request": "labelProps", "value": "None"}))
        self._requests += 1
        labels, wanted = self._labels, self._requests

        def answered() -> tuple[Any] | None:
            return (labels.values[label],) if labels.full_answers[label] >= wanted else None

        found = control.wait_for(answered, time.monotonic() + self.timeout_s)
        if found is None:
            raise Timeout(f"{self.address}: no answer about {label} within {self.timeout_s:g} s")
        return found[0]

    def _set(self, command: str, label: str, value: Any) -> Any:
        """Set, and return the value the server says it has now."""
        with self._connected() as control:
            if isinstance(value, list) and len(value) != self._known_detectors:
                raise InvalidValue(
                    f"{self.model}: {label} takes {self._known_detectors} values, got {len(value)}"
                )
            labels = self._labels
            with control.changed:
                before = labels.updates[label]
                labels.error = ""

            def confirmed() -> tuple[Any] | None:
                if labels.error:
                    raise InstrumentFault(f"{self.address}: {labels.error}")
                if labels.updates[label] > before and _close(labels.values[label], value):
                    return (labels.values[label],)
                return None

            control.send(msgspec.json.encode({"command": command, "label": label, "value": value}))
            found = control.wait_for(confirmed, time.monotonic() + self.timeout_s / 2)
            if found is not None:
                return found[0]
            # A value that did not change is not broadcast: ask.
            accepted = self._ask(control, label)
            if labels.error:
                raise InstrumentFault(f"{self.address}: {labels.error}")
            if not _close(accepted, value):
                raise InstrumentFault(
                    f"{self.address}: {label} was set to {value}, it stays at {accepted}"
                )
            return accepted

    # -- shapes of values -------------------------------------------------------------------

    def _detector_count(self, value: Any) -> int:
        if not _is_number(value) or value != int(value) or value < 1:
            raise ProtocolError(f"{self.address}: {DETECTORS} is {value!r}")
        return int(value)

    def _flag(self, value: Any) -> bool:
        if value not in (True, False):
            raise ProtocolError(f"{self.address}: {ENABLE} is {value!r}")
        return bool(value)

    def _list(self, label: str, value: Any) -> list[float]:
        good = isinstance(value, list) and len(value) == self._known_detectors
        if not good or not all(_is_number(v) for v in value):
            raise ProtocolError(f"{self.address}: {label} is {value!r}")
        return [float(v) for v in value]

    def _period(self, value: Any) -> float:
        if not _is_number(value) or value <= 0:
            raise ProtocolError(f"{self.address}: {PERIOD} is {value!r}")
        return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _close(accepted: Any, wanted: Any) -> bool:
    """Say whether the server's value is the wanted one, up to a converter's step."""
    if isinstance(wanted, bool):
        return accepted in (True, False) and bool(accepted) == wanted
    if isinstance(wanted, list):
        return (
            isinstance(accepted, list)
            and len(accepted) == len(wanted)
            and all(_close(a, w) for a, w in zip(accepted, wanted, strict=True))
        )
    return _is_number(accepted) and math.isclose(
        accepted, wanted, rel_tol=RELATIVE_STEP, abs_tol=ABSOLUTE_STEP
    )
