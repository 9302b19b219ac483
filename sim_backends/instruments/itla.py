"""OIF ITLA tunable laser (OIF-ITLA-MSA-01.2/01.3; sheet ``itla.md``).

Four-byte frames with a BIP-4 checksum. Settings are made in the dark; switching the output on tunes
for some seconds (command pending), then the light comes up at the set power.

Guessed where the sheet is silent: the light is dark while tuning; a combination of FCF, GRID and
channel outside the range is found when the output is switched on (XE, IVC) or the channel is
changed (XE, RVE); a command that needs tuning while tuning goes on is refused (XE, CIP).
"""

from __future__ import annotations

from collections.abc import Callable

from sim_backends.optics.ports import ClockPort, LaserPort

# Registers (MSA names).
NOP, DEV_TYP, MFGR, MODEL, SER_NO, MFG_DATE, RELEASE, REL_BACK = range(8)
GEN_CFG, AEA_EAR, IO_CAP, LST_RESP = 0x08, 0x0B, 0x0D, 0x13
STATUS_F, STATUS_W = 0x20, 0x21
CHANNEL, PWR, RES_ENA, MCB, GRID, FCF1, FCF2 = 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36
LF1, LF2, OOP, CTEMP, FTFR = 0x40, 0x41, 0x42, 0x43, 0x4F
OPSL, OPSH, LFL1, LFL2, LFH1, LFH2, LGRID = 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56
CURRENTS, TEMPS, AGE, FTF = 0x57, 0x58, 0x61, 0x62
CHANNEL_H, GRID2, FCF3, LF3, LFL3, LFH3, LGRID2 = 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x6B
MODE = 0x90  # Pure Photonics

OK, XE, AEA, CP = range(4)
RNI, RNW, RVE, CIP, ERE, CIE, IVC = 1, 2, 3, 4, 6, 9, 10

# Status word bits.
LATCHED_PWR, LATCHED_FREQ, MRL, CEL, XEL = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 7
NOW_PWR, NOW_FREQ, DIS, ALM, SRQ = 1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 15

MR, SR, SENA = 1 << 0, 1 << 1, 1 << 3
MRDY = 0x0010
PENDING = 0x0100
DARK_DBM = -60.0
FINE_TUNE_MHZ = 12_500
PS_PER_S = 1_000_000_000_000

# Words that are stored and have no effect here: thresholds, trigger masks, dither, warning limits.
STORED_DEFAULTS = {
    GEN_CFG: 0,
    IO_CAP: 0,
    0x22: 100,
    0x23: 50,
    0x24: 50,
    0x25: 25,
    0x26: 500,
    0x27: 250,
    0x28: 0x1FBF,
    0x29: 0x000F,
    0x2A: 0x0D0D,
    MCB: 0,
    0x59: 0,
    0x5A: 0,
    0x5B: 0,
    0x5C: 0,
    0x5D: 0xFE0C,
    0x5E: 7000,
    0x5F: 90,
    0x60: 75,
    0x63: 0,
    0x64: 0,
}


def bip4(frame: bytes) -> int:
    """Checksum nibble of a four-byte frame, its own nibble taken as zero."""
    x = (frame[0] & 0x0F) ^ frame[1] ^ frame[2] ^ frame[3]
    return (x >> 4) ^ (x & 0x0F)


def _signed(word: int) -> int:
    return word - 0x10000 if word & 0x8000 else word


class _ExecutionError(Exception):
    def __init__(self, reason: int) -> None:
        self.reason = reason
        super().__init__(f"execution error {reason}")


class ItlaEmulator:
    """A CW laser module behind its registers. Serve with `PtyAndTcp`.

    Parameters
    ----------
    serial
        Serial number (SerNo).
    profile
        ``manual``, or ``purephotonics``: has the MODE register and, as is reported of those units,
        takes FCF values out of range without complaint and clips the frequency to its range.
    strict
        No difference for this instrument.
    tune_s
        Laboratory seconds from output on (or channel change) to locked.
    frequency_range_hz, power_range_dbm
        Lowest and highest (LFL/LFH, OPSL/OPSH).
    """

    tick_s: float = 0.05

    def __init__(
        self,
        port: LaserPort,
        clock: ClockPort,
        *,
        name: str = "itla",
        serial: str = "CRTMB00001",
        profile: str = "manual",
        strict: bool = False,
        tune_s: float = 2.0,
        frequency_range_hz: tuple[float, float] = (191.5e12, 196.25e12),
        power_range_dbm: tuple[float, float] = (6.0, 13.5),
    ) -> None:
        self.name = name
        self.profile = profile
        self.strict = strict
        self._port = port
        self._clock = clock
        self._tune_ps = round(tune_s * PS_PER_S)
        self._lowest_mhz, self._highest_mhz = (round(f / 1e6) for f in frequency_range_hz)
        self._power_limits = tuple(round(p * 100) for p in power_range_dbm)
        self._strings = {
            DEV_TYP: "CW ITLA",
            MFGR: "QKDCTL EMULATED",
            MODEL: "PPCL300",
            SER_NO: serial,
            MFG_DATE: "01-JAN-2024",
            RELEASE: "CTR:1.3.0",
            REL_BACK: "CTR:1.2.0",
        }
        self._latched = {STATUS_F: MRL, STATUS_W: MRL}
        self._power_up()

    def session(self) -> ItlaSession:
        """A front-end for one connection."""
        return ItlaSession(self)

    def idle_timeout_s(self) -> float | None:
        """A serial line is never hung up."""
        return None

    # -- device ----------------------------------------------------------------------------------

    def _power_up(self) -> None:
        self._words = dict(STORED_DEFAULTS)
        self._channel = 1
        self._grid = (500, 0)
        self._first_channel = (193, 4000, 0)
        self._power_cdbm = self._power_limits[0]
        self._fine_tune_mhz = 0
        self._mode = 0
        self._enabled = False
        self._tuned_at_ps: int | None = None
        self._reason = OK
        self._extended = b""
        self._extended_error = False
        self.last_response = bytes([0x04, 0, 0, 0])
        self._port.set_light(power_w=0.0, frequency_hz=self._frequency_mhz() * 1e6)

    def tick(self) -> None:
        """Let the light come up when tuning has finished."""
        if self._tuned_at_ps is not None and self._clock.now_ps() >= self._tuned_at_ps:
            self._tuned_at_ps = None
            self._emit()

    @property
    def _locked(self) -> bool:
        return self._enabled and self._tuned_at_ps is None

    def _frequency_mhz(self, channel: int | None = None) -> int:
        thz, tenth_ghz, mhz = self._first_channel
        first = thz * 1_000_000 + tenth_ghz * 100 + mhz
        grid = self._grid[0] * 100 + self._grid[1]
        number = self._channel if channel is None else channel
        frequency = first + (number - 1) * grid
        if self.profile == "purephotonics":
            frequency = min(max(frequency, self._lowest_mhz), self._highest_mhz)
        return frequency + self._fine_tune_mhz

    def _in_range(self, frequency_mhz: int) -> bool:
        nominal = frequency_mhz - self._fine_tune_mhz
        return self._lowest_mhz <= nominal <= self._highest_mhz

    def _emit(self) -> None:
        power_w = 1e-3 * 10 ** (self._power_cdbm / 1000) if self._locked else 0.0
        self._port.set_light(power_w=power_w, frequency_hz=self._frequency_mhz() * 1e6)

    def _start_tuning(self) -> int:
        self._tuned_at_ps = self._clock.now_ps() + self._tune_ps
        self._latched[STATUS_W] |= LATCHED_FREQ | LATCHED_PWR
        self._emit()
        self.tick()
        return OK if self._locked else CP

    def _status(self, register: int) -> int:
        word = self._latched[register]
        if register == STATUS_W and self._enabled and not self._locked:
            word |= NOW_FREQ | NOW_PWR
            if self._words[MCB] & 0x02:
                word |= ALM
        if not self._enabled:
            word |= ALM if register == STATUS_W else 0
        if word & self._words[0x28]:
            word |= SRQ
        return word

    def communication_error(self) -> None:
        """A frame with a wrong checksum came in: latched in both status words."""
        for register in self._latched:
            self._latched[register] |= CEL

    def execute(self, write: bool, register: int, data: int) -> tuple[int, int]:
        """Carry out one request; return (status, data) of the response."""
        self.tick()
        try:
            if write:
                status = self._write(register, data)
            else:
                status, data = self._read(register)
        except _ExecutionError as error:
            self._reason = error.reason
            for status_register in self._latched:
                self._latched[status_register] |= XEL
            return XE, 0
        if register != NOP:
            self._reason = OK
        return status, data & 0xFFFF

    def _read(self, register: int) -> tuple[int, int]:
        if register == NOP:
            pending = PENDING if self._tuned_at_ps is not None else 0
            return OK, pending | MRDY | self._reason
        if register == AEA_EAR:
            if not self._extended:
                raise _ExecutionError(ERE)
            piece, self._extended = self._extended[:2].ljust(2, b"\0"), self._extended[2:]
            return OK, int.from_bytes(piece, "big")
        if register == LST_RESP:
            return OK, int.from_bytes(self.last_response[2:], "big")
        if register in self._latched:
            return OK, self._status(register)
        if register in self._words:
            return OK, self._words[register]
        extended = self._extended_answer(register)
        if extended is not None:
            self._extended = extended
            return AEA, len(extended)
        return OK, self._plain_answer(register)

    def _extended_answer(self, register: int) -> bytes | None:
        if register in self._strings:
            return self._strings[register].encode("ascii") + b"\0"
        if register == CURRENTS:
            tec, diode = (350, 1200) if self._enabled else (120, 0)
            return b"".join(value.to_bytes(2, "big", signed=True) for value in (tec, diode))
        if register == TEMPS:
            return b"".join(value.to_bytes(2, "big", signed=True) for value in (2500, 3120))
        return None

    def _plain_answer(self, register: int) -> int:
        thz, tenth_ghz, mhz = self._first_channel
        now = _split(self._frequency_mhz())
        lowest, highest = _split(self._lowest_mhz), _split(self._highest_mhz)
        dark = round(DARK_DBM * 100)
        answers = {
            CHANNEL: self._channel & 0xFFFF,
            CHANNEL_H: self._channel >> 16,
            PWR: self._power_cdbm,
            RES_ENA: SENA if self._enabled else 0,
            GRID: self._grid[0],
            GRID2: self._grid[1],
            FCF1: thz,
            FCF2: tenth_ghz,
            FCF3: mhz,
            LF1: now[0],
            LF2: now[1],
            LF3: now[2],
            OOP: self._power_cdbm if self._locked else dark,
            CTEMP: 3120,
            FTFR: FINE_TUNE_MHZ,
            OPSL: self._power_limits[0],
            OPSH: self._power_limits[1],
            LFL1: lowest[0],
            LFL2: lowest[1],
            LFL3: lowest[2],
            LFH1: highest[0],
            LFH2: highest[1],
            LFH3: highest[2],
            LGRID: 1,
            LGRID2: 0,
            AGE: 0,
            FTF: self._fine_tune_mhz,
        }
        if self.profile == "purephotonics":
            answers[MODE] = self._mode
        if register not in answers:
            raise _ExecutionError(RNI)
        return answers[register]

    def _write(self, register: int, data: int) -> int:
        if register == NOP:
            return OK
        if register in self._latched:
            self._latched[register] &= ~(data & 0xFF)
            return OK
        if register in self._words:
            self._words[register] = data
            return OK
        actions: dict[int, Callable[[int], int]] = {
            CHANNEL: lambda value: self._set_channel(self._channel & ~0xFFFF | value),
            CHANNEL_H: lambda value: self._set_channel(value << 16 | self._channel & 0xFFFF),
            PWR: self._set_power,
            RES_ENA: self._set_res_ena,
            GRID: lambda value: self._set_grid((_signed(value), self._grid[1])),
            GRID2: lambda value: self._set_grid((self._grid[0], _signed(value))),
            FCF1: lambda value: self._set_first_channel(0, value),
            FCF2: lambda value: self._set_first_channel(1, value),
            FCF3: lambda value: self._set_first_channel(2, value),
            FTF: self._set_fine_tune,
        }
        if self.profile == "purephotonics":
            actions[MODE] = self._set_mode
        if register in actions:
            return actions[register](data)
        if register in (AEA_EAR, LST_RESP) or self._extended_answer(register) is not None:
            raise _ExecutionError(RNW)
        self._plain_answer(register)  # raises RNI if there is no such register
        raise _ExecutionError(RNW)

    def _set_channel(self, channel: int) -> int:
        if self._tuned_at_ps is not None:
            raise _ExecutionError(CIP)
        if channel == 0 or (self._enabled and not self._in_range(self._frequency_mhz(channel))):
            raise _ExecutionError(RVE)
        self._channel = channel
        return self._start_tuning() if self._enabled else OK

    def _set_power(self, data: int) -> int:
        power = _signed(data)
        if not self._power_limits[0] <= power <= self._power_limits[1]:
            raise _ExecutionError(RVE)
        self._power_cdbm = power
        self._emit()
        return OK

    def _set_res_ena(self, data: int) -> int:
        if data & (MR | SR):
            self._power_up()
            if data & MR:
                for register in self._latched:
                    self._latched[register] = MRL
            return OK
        if not data & SENA:
            self._enabled = False
            self._tuned_at_ps = None
            self._emit()
            return OK
        if self._tuned_at_ps is not None:
            raise _ExecutionError(CIP)
        if self._enabled:
            return OK
        if not self._in_range(self._frequency_mhz()):
            raise _ExecutionError(IVC)
        self._enabled = True
        return self._start_tuning()

    def _set_grid(self, grid: tuple[int, int]) -> int:
        if self._enabled:
            raise _ExecutionError(CIE)
        self._grid = grid
        return OK

    def _set_first_channel(self, part: int, value: int) -> int:
        if self._enabled:
            raise _ExecutionError(CIE)
        # Single registers are checked for sense only: on the way from one frequency to another
        # the three of them pass through combinations that are out of range.
        limits = (
            (self._lowest_mhz // 1_000_000, self._highest_mhz // 1_000_000),
            (0, 9999),
            (0, 99_999),
        )[part]
        if self.profile != "purephotonics" and not limits[0] <= value <= limits[1]:
            raise _ExecutionError(RVE)
        parts = list(self._first_channel)
        parts[part] = value
        self._first_channel = (parts[0], parts[1], parts[2])
        return OK

    def _set_fine_tune(self, data: int) -> int:
        if abs(_signed(data)) > FINE_TUNE_MHZ:
            raise _ExecutionError(RVE)
        self._fine_tune_mhz = _signed(data)
        self._emit()
        return OK

    def _set_mode(self, data: int) -> int:
        if data > 2:
            raise _ExecutionError(RVE)
        self._mode = data
        return OK


def _split(frequency_mhz: int) -> tuple[int, int, int]:
    """THz, tenths of GHz and MHz, as the frequency registers hold them."""
    thz, rest = divmod(frequency_mhz, 1_000_000)
    return thz, rest // 100, rest % 100


class ItlaSession:
    """Four bytes in, four bytes out. Left-over bytes wait for the rest of their frame, so a host
    that lost its place sends zeros one at a time until an answer comes."""

    def __init__(self, device: ItlaEmulator) -> None:
        self._device = device
        self._pending = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; return the responses to the frames completed by them."""
        self._pending += data
        out = bytearray()
        whole = len(self._pending) // 4 * 4
        for start in range(0, whole, 4):
            out += self._answer(bytes(self._pending[start : start + 4]))
        del self._pending[:whole]
        return bytes(out)

    def _answer(self, request: bytes) -> bytes:
        device = self._device
        register = request[1]
        if request[0] >> 4 != bip4(request):
            device.communication_error()
            return _response(0x08 | XE, register, 0)
        if request[0] & 0x08:
            return device.last_response
        data = int.from_bytes(request[2:], "big")
        status, answer = device.execute(bool(request[0] & 0x01), register, data)
        response = _response(status, register, answer)
        if register != LST_RESP:
            device.last_response = response
        return response


def _response(flags: int, register: int, data: int) -> bytes:
    frame = bytes([0x04 | flags, register, data >> 8, data & 0xFF])
    return bytes([bip4(frame) << 4 | frame[0]]) + frame[1:]
