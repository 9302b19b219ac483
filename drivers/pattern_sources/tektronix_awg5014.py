"""Tektronix AWG5014 arbitrary waveform generator: SCPI over TCP, waveforms as binary blocks.

Source: Tektronix AWG5000/AWG7000 programmer manual, command groups AWGControl, OUTPut, SOURce and
WLISt. A sample is an unsigned 16-bit little-endian word: bits 13..0 hold the converter code
(0 = -1, 8191 = 0, 16382 = +1 of half the peak-to-peak amplitude), bit 14 marker 1, bit 15 marker 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drivers.transports.identification import parse_identification, require_identity
from drivers.transports.scpi_socket import ScpiSocket
from qkdctl.roles import (
    Fails,
    Identity,
    Instrument,
    InstrumentFault,
    InvalidValue,
    OutOfRange,
    Parameter,
    ProtocolError,
    action,
)

CHANNELS = 4
ZERO_CODE = 8191
FULL_SCALE = 8191
MARKER_1 = 0x4000
# Waveform memory per channel with option 01. A guess: the standard memory is half of it.
MAX_SAMPLES = 32_400_000
AMPLITUDE_VPP = (0.02, 4.5)
OFFSET_V = (-2.25, 2.25)
RUN_STATES = {0: "stopped", 1: "waiting", 2: "running"}
# How slowly the instrument may digest an upload before it counts as silent. A guess, on the safe
# side of its 100 Mbit/s to 1 Gbit/s network port.
SLOWEST_UPLOAD_BYTES_PER_S = 5e6


def encode_samples(
    levels: NDArray[np.int16], marker1: NDArray[np.bool_] | None = None
) -> NDArray[np.uint16]:
    """Return the instrument's sample words.

    Parameters
    ----------
    levels : int16, shape (n,)
        -8191 .. 8191 stand for -1 .. 1; anything else raises `OutOfRange`.
    marker1 : bool, shape (n,), optional
    """
    if levels.ndim != 1 or levels.dtype != np.int16:
        raise InvalidValue(
            f"a waveform is a one-dimensional int16 array, not {levels.dtype} of {levels.shape}"
        )
    if levels.size and (levels.min() < -FULL_SCALE or levels.max() > FULL_SCALE):
        raise OutOfRange(
            f"waveform levels {levels.min()} .. {levels.max()} are outside +-{FULL_SCALE}"
        )
    codes = np.empty(levels.shape, dtype="<u2")
    np.add(levels, ZERO_CODE, out=codes.view("<i2"))
    if marker1 is not None:
        if marker1.shape != levels.shape or marker1.dtype != np.bool_:
            raise InvalidValue(
                f"a marker is a bool array of its waveform's length {levels.size}, "
                f"not {marker1.dtype} of {marker1.shape}"
            )
        np.bitwise_or(codes, MARKER_1, out=codes, where=marker1)
    return codes


class TektronixAwg5014(Instrument):
    """Four-channel arbitrary waveform generator.

    ``address`` is a VISA socket resource, ``TCPIP0::host::4000::SOCKET``.
    """

    model = "tektronix_awg5014"
    roles = ("pattern_source",)
    fails = Fails.DARK

    channel_count: int = CHANNELS
    max_samples: int = MAX_SAMPLES

    sample_rate_hz = Parameter(
        float, unit="Hz", access="rw", minimum=10e6, maximum=1.2e9, doc="Sample rate."
    )
    run_state = Parameter(
        str, choices=tuple(RUN_STATES.values()), poll_s=2.0,
        doc="Whether the generator is stopped, waiting for a trigger, or running.",
    )  # fmt: skip
    output_enabled = Parameter(
        list, access="rw", minimum=0, maximum=1, length=CHANNELS,
        doc="Outputs: 1 on, 0 off, one per channel.",
    )  # fmt: skip

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
        self._uploaded_bytes = 0

    # -- life -------------------------------------------------------------------------------

    def open(self) -> Identity:
        """Connect and identify."""
        self._link.open()
        assert self._identity is not None
        return self._identity

    def close(self) -> None:
        """Disconnect; the generator goes on with what it does."""
        self._link.close()

    def identify(self) -> Identity:
        """Ask ``*IDN?``."""
        return parse_identification(self._link.query("*IDN?"), self.address)

    def make_safe(self) -> None:
        """Stop and switch all outputs off."""
        with self._link.conversation():
            self._link.write("AWGC:STOP")
            for channel in range(1, CHANNELS + 1):
                self._link.write(f"OUTP{channel} OFF")
            self._link.check_errors("make_safe")

    def _greet(self) -> None:
        self._identity = require_identity(
            self.identify(), models=("AWG5014",), serial=self.expected_serial, where=self.address
        )
        self._link.take_errors()  # whatever an earlier client left behind

    # -- parameters -------------------------------------------------------------------------

    def read_sample_rate_hz(self) -> float:
        """Ask for the sample rate."""
        return self._link.query_float("SOUR:FREQ?")

    def write_sample_rate_hz(self, value: float) -> float:
        """Set the sample rate."""
        with self._link.conversation():
            self._link.command(f"SOUR:FREQ {value:.12g}")
            return self.read_sample_rate_hz()

    def read_run_state(self) -> str:
        """Ask for the run state."""
        with self._link.conversation():
            code = self._link.query_int("AWGC:RSTATE?")
            if code not in RUN_STATES:
                raise ProtocolError(f"{self.address}: AWGC:RSTATE? was answered by {code}")
            return RUN_STATES[code]

    def read_output_enabled(self) -> list[float]:
        """Ask for the state of every output."""
        with self._link.conversation():
            return [
                float(self._link.query_int(f"OUTP{channel}?") != 0)
                for channel in range(1, CHANNELS + 1)
            ]

    def write_output_enabled(self, value: list[float]) -> list[float]:
        """Switch every output."""
        if any(v not in (0, 1) for v in value):
            raise InvalidValue(f"{self.model}.output_enabled takes 0 or 1 per channel, not {value}")
        with self._link.conversation():
            for channel, on in enumerate(value, start=1):
                self.set_output(channel, bool(on))
            return self.read_output_enabled()

    # -- actions ----------------------------------------------------------------------------

    @action
    def set_output(self, channel: int, on: bool) -> None:
        """Switch one output (1-based) on or off."""
        self._check_channel(channel)
        self._link.command(f"OUTP{channel} {'ON' if on else 'OFF'}")

    @action
    def set_channel(self, channel: int, *, amplitude_vpp: float, offset_v: float) -> None:
        """Set the scale of one channel: volts = level/8191 * amplitude_vpp/2 + offset_v."""
        self._check_channel(channel)
        for name, value, unit, (low, high) in (
            ("amplitude_vpp", amplitude_vpp, "Vpp", AMPLITUDE_VPP),
            ("offset_v", offset_v, "V", OFFSET_V),
        ):
            if not low <= value <= high:
                raise OutOfRange(
                    f"{self.model}.{name} = {value:g} {unit} is outside {low} .. {high} {unit}"
                )
        with self._link.conversation():
            self._link.write(f"SOUR{channel}:VOLT:LEV:IMM:AMPL {amplitude_vpp:.6g}")
            self._link.write(f"SOUR{channel}:VOLT:LEV:IMM:OFFS {offset_v:.6g}")
            self._link.check_errors(f"setting the scale of channel {channel}")

    def load(
        self,
        name: str,
        levels: dict[int, NDArray[np.int16]],
        marker1: dict[int, NDArray[np.bool_]] | None = None,
    ) -> None:
        """Upload one waveform per channel (same length), assign it, and switch its output on.

        The generator is stopped first. Channels that are not named play nothing afterwards. The
        waveforms are called ``<name>_<channel>`` on the instrument; earlier ones of that name are
        replaced. Raises `OutOfRange` for levels outside +-8191 or too many samples, before
        anything is sent, and `InstrumentFault` when the instrument refuses.
        """
        markers = marker1 or {}
        self._check_waveforms(name, levels, markers)
        codes = {ch: encode_samples(wave, markers.get(ch)) for ch, wave in levels.items()}
        with self._link.conversation():
            self._link.write("AWGC:STOP")
            for channel in range(1, CHANNELS + 1):
                self._link.write(f'SOUR{channel}:WAV ""')
            self._link.check_errors("stopping")
            for channel in codes:
                self._link.write(f'WLIS:WAV:DEL "{name}_{channel}"')
            self._link.take_errors()  # deleting what was never there is an error, and no harm
            for channel, words in codes.items():
                wave = f'"{name}_{channel}"'
                self._link.write(f"WLIS:WAV:NEW {wave},{words.size},INT")
                self._link.write_block(f"WLIS:WAV:DATA {wave}", words.data)
                self._link.write(f"SOUR{channel}:WAV {wave}")
                self._link.write(f"OUTP{channel} ON")
            self._uploaded_bytes = sum(words.nbytes for words in codes.values())
            self._await_completion()
            self._link.check_errors(f"loading waveform {name!r}")

    @action
    def start(self, *, repeat: bool) -> None:
        """Arm: play without end (``repeat``), or wait and play once per trigger."""
        with self._link.conversation():
            self._link.write(f"AWGC:RMOD {'CONT' if repeat else 'TRIG'}")
            self._link.write("AWGC:RUN")
            self._await_completion()
            self._link.check_errors("AWGC:RUN")
            if self.read_run_state() == "stopped":
                raise InstrumentFault(f"{self.address}: stopped in spite of AWGC:RUN")

    @action
    def trigger(self) -> None:
        """Play the loaded waveform once (after ``start(repeat=False)``)."""
        self._link.command("*TRG")

    @action
    def stop(self) -> None:
        """Stop; the outputs rest at their offset voltage."""
        self._link.command("AWGC:STOP")

    def _await_completion(self) -> None:
        """Wait until the instrument has digested what it was sent, large waveforms included."""
        deadline_s = self.timeout_s + self._uploaded_bytes / SLOWEST_UPLOAD_BYTES_PER_S
        answer = self._link.query("*OPC?", timeout_s=deadline_s)
        if answer != "1":
            raise ProtocolError(f"{self.address}: *OPC? was answered by {answer!r}")

    # -- checks -----------------------------------------------------------------------------

    def _check_channel(self, channel: int) -> None:
        if channel not in range(1, CHANNELS + 1):
            raise OutOfRange(f"{self.model} has channels 1 .. {CHANNELS}, not {channel}")

    def _check_waveforms(
        self,
        name: str,
        levels: dict[int, NDArray[np.int16]],
        markers: dict[int, NDArray[np.bool_]],
    ) -> None:
        if not name or not name.isascii() or not name.isprintable() or '"' in name:
            raise InvalidValue(f"{self.model}: {name!r} cannot name a waveform")
        lengths = {wave.size for wave in levels.values()}
        if len(lengths) != 1:
            raise InvalidValue(
                f"{self.model}: waveforms of one load need one length, got {sorted(lengths)}"
            )
        length = lengths.pop()
        if not 1 <= length <= MAX_SAMPLES:
            raise OutOfRange(
                f"{self.model}: a waveform has 1 .. {MAX_SAMPLES} samples, not {length}"
            )
        for channel in (*levels, *markers):
            self._check_channel(channel)
        if not markers.keys() <= levels.keys():
            raise InvalidValue(f"{self.model}: a marker needs a waveform on its channel")
