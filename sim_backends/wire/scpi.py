"""SCPI front-end: program messages in, response messages out (SCPI-99 volume 1, IEEE 488.2).

`ScpiInstrument` is the shared part of an instrument: command table, error queue, event status.
`ScpiSession` is the front-end of one connection. Understood: compound messages (``;`` continues at
the path of the command before, ``:`` returns to the root), long and short mnemonics with numeric
suffixes and optional nodes, quoted strings, ``#<d><length>`` blocks. A line feed outside a block
always ends the message, whatever came before: the resynchronisation rule. A block that was
announced longer than what is sent can only be left by connecting anew.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEXT_LIMIT = 1 << 16
"""Longest program message unit without its blocks; beyond it error -363."""

RESPONSE_LIMIT = 256 << 20
"""Longest response message; beyond it the response is dropped with error -430."""

QUEUE_LENGTH = 30

STANDARD_ERRORS = {
    0: "No error",
    -100: "Command error",
    -101: "Invalid character",
    -102: "Syntax error",
    -104: "Data type error",
    -108: "Parameter not allowed",
    -109: "Missing parameter",
    -113: "Undefined header",
    -114: "Header suffix out of range",
    -120: "Numeric data error",
    -131: "Invalid suffix",
    -141: "Invalid character data",
    -151: "Invalid string data",
    -161: "Invalid block data",
    -211: "Trigger ignored",
    -221: "Settings conflict",
    -222: "Data out of range",
    -223: "Too much data",
    -224: "Illegal parameter value",
    -256: "File name not found",
    -350: "Queue overflow",
    -363: "Input buffer overrun",
    -430: "Query DEADLOCKED",
}


class ScpiError(Exception):
    """A command could not be carried out; goes to the error queue.

    Parameters
    ----------
    code
        SCPI error number.
    detail
        Appended to the standard text after a semicolon, as SCPI-99 21.8.2 has it.
    """

    def __init__(self, code: int, detail: str = "") -> None:
        self.code = code
        text = STANDARD_ERRORS.get(code, "Device-specific error")
        self.text = f"{text};{detail}" if detail else text
        super().__init__(f"{code}, {self.text}")


_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]\s?[+-]?\d+)?)\s*([A-Za-z%/]*)")
_MULTIPLIERS = {"G": 1e9, "MA": 1e6, "K": 1e3, "": 1.0, "M": 1e-3, "U": 1e-6, "N": 1e-9, "P": 1e-12}

Argument = str | bytearray


@dataclass(frozen=True, slots=True)
class Call:
    """One command as received: numeric suffixes of its header and its parameters.

    The parameter methods raise `ScpiError` if a parameter is missing or of the wrong kind.
    """

    suffixes: tuple[int, ...] = ()
    arguments: tuple[Argument, ...] = ()

    def expect(self, least: int, most: int | None = None) -> None:
        """Refuse a wrong number of parameters (-109, -108)."""
        if len(self.arguments) < least:
            raise ScpiError(-109)
        if len(self.arguments) > (least if most is None else most):
            raise ScpiError(-108)

    def raw(self, index: int) -> str:
        """Parameter as it was sent, trimmed."""
        if index >= len(self.arguments):
            raise ScpiError(-109)
        argument = self.arguments[index]
        if not isinstance(argument, str):
            raise ScpiError(-104)
        return argument

    def number(
        self,
        index: int,
        lowest: float = -math.inf,
        highest: float = math.inf,
        *,
        default: float | None = None,
        unit: str = "",
    ) -> float:
        """Number within limits (-222 outside), with an optional unit; MIN, MAX, DEF where known."""
        text = self.raw(index)
        special = {"MIN": lowest, "MINIMUM": lowest, "MAX": highest, "MAXIMUM": highest}
        if default is not None:
            special |= {"DEF": default, "DEFAULT": default}
        word = special.get(text.upper())
        if word is not None:
            if math.isinf(word):
                raise ScpiError(-224)
            return word
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise ScpiError(-104 if text[:1] in ('"', "'") else -120)
        suffix, scale = match[2].upper(), 1.0
        if suffix:
            prefix = suffix.removesuffix(unit.upper()) if unit else suffix
            # SCPI-99 volume 1, 7.2: M means milli, except mega in MHZ and MOHM.
            if unit.upper() in ("HZ", "OHM") and prefix == "M":
                prefix = "MA"
            if not unit or not suffix.endswith(unit.upper()) or prefix not in _MULTIPLIERS:
                raise ScpiError(-131)
            scale = _MULTIPLIERS[prefix]
        value = float(match[1].replace(" ", "")) * scale
        if not lowest <= value <= highest:  # also refuses what overflowed to infinity
            raise ScpiError(-222)
        if math.isinf(value):
            raise ScpiError(-222)
        return value

    def integer(self, index: int, lowest: int, highest: int) -> int:
        """Number rounded to an integer, within limits."""
        return round(self.number(index, lowest, highest))

    def boolean(self, index: int) -> bool:
        """ON, OFF, 1 or 0."""
        text = self.raw(index).upper()
        if text in ("ON", "OFF"):
            return text == "ON"
        return bool(round(self.number(index, -32768, 32767)))

    def choice(self, index: int, words: Sequence[str]) -> str:
        """Short form of the one of `words` (written like ``CONTinuous``) that was sent."""
        text = self.raw(index).upper()
        for word in words:
            short = "".join(letter for letter in word if not letter.islower())
            if text in (short, word.upper()):
                return short
        raise ScpiError(-224 if text[:1].isalnum() else -141)

    def text(self, index: int) -> str:
        """Quoted string without its quotes."""
        text = self.raw(index)
        if len(text) < 2 or text[0] not in "\"'" or text[-1] != text[0]:
            raise ScpiError(-104)
        return text[1:-1].replace(text[0] * 2, text[0])

    def block(self, index: int) -> bytearray:
        """Binary block; the caller may keep it, it is not used again."""
        if index >= len(self.arguments):
            raise ScpiError(-109)
        argument = self.arguments[index]
        if not isinstance(argument, bytearray):
            raise ScpiError(-104)
        return argument


Handler = Callable[[Call], str | bytes | None]


def _node_pattern(node: str) -> str:
    numbered = node.endswith("#")
    word = node.removesuffix("#")
    star = word.startswith("*")
    short = "".join(letter for letter in word if not letter.islower())
    forms = re.escape(word) if star else "|".join(sorted({word.upper(), short}, key=len))
    return f"(?:{forms})" + (r"(\d{0,4})" if numbered else "")


def header_pattern(header: str) -> re.Pattern[str]:
    """Compile a header in SCPI notation, e.g. ``SOURce#[:VOLTage]:LEVel?``, for upper-case text.

    ``#`` marks a numeric suffix (1 if not sent), brackets an optional node.
    """
    body, query = header.removesuffix("?"), header.endswith("?")
    parts = re.findall(r"\[:?([^\]:]+):?\]|:?([^:\[\]]+)", body)
    pattern, first = "", True
    for optional, required in parts:
        node = _node_pattern(optional or required)
        if optional and first:
            pattern += f"(?:{node}:)?"
            continue
        piece = node if first else f":{node}"
        pattern += f"(?:{piece})?" if optional else piece
        first = False
    return re.compile(pattern + (r"\?" if query else ""))


class ScpiInstrument:
    """Command table, error queue and event status of one instrument.

    Parameters
    ----------
    identity
        Answer to ``*IDN?``.
    commands
        Header in SCPI notation (see `header_pattern`) to handler. A handler returns the response
        (str or raw bytes) or None, and raises `ScpiError`.
    no_error
        How ``SYSTem:ERRor?`` answers an empty queue; some instruments write ``+0``.
    """

    def __init__(
        self, identity: str, commands: Mapping[str, Handler], *, no_error: str = "0"
    ) -> None:
        self._no_error = no_error
        self._errors: deque[tuple[int, str]] = deque()
        self._event_status = 0x80  # power on
        self._event_enable = 0
        self._service_enable = 0
        table: dict[str, Handler] = {
            "*IDN?": lambda call: identity,
            "*CLS": self._clear_status,
            "*ESR?": self._read_event_status,
            "*ESE": self._set_event_enable,
            "*ESE?": lambda call: str(self._event_enable),
            "*SRE": self._set_service_enable,
            "*SRE?": lambda call: str(self._service_enable),
            "*STB?": lambda call: str(self._status_byte()),
            "*OPC": self._operation_complete,
            "*OPC?": lambda call: "1",
            "*WAI": lambda call: None,
            "*TST?": lambda call: "0",
            "SYSTem:ERRor[:NEXT]?": lambda call: self.next_error(),
            "SYSTem:ERRor:COUNt?": lambda call: str(len(self._errors)),
            "SYSTem:VERSion?": lambda call: "1999.0",
        }
        table.update(commands)
        self._table = [(header_pattern(header), handler) for header, handler in table.items()]
        self._found: dict[str, tuple[Handler, tuple[int, ...]]] = {}

    def execute(self, header: str, arguments: tuple[Argument, ...]) -> str | bytes | None:
        """Carry out one command; `header` is upper case from the root, without a leading colon.

        Raises
        ------
        ScpiError
            What belongs in the error queue (the session puts it there).
        """
        found = self._found.get(header)
        if found is None:
            for pattern, handler in self._table:
                match = pattern.fullmatch(header)
                if match is not None:
                    suffixes = tuple(int(group) if group else 1 for group in match.groups())
                    found = (handler, suffixes)
                    break
            else:
                raise ScpiError(-113)
            if len(self._found) < 4096:
                self._found[header] = found
        handler, suffixes = found
        return handler(Call(suffixes, arguments))

    def report(self, error: ScpiError) -> None:
        """Put `error` at the end of the queue and set its event-status bit."""
        group = -error.code // 100
        self._event_status |= {1: 0x20, 2: 0x10, 3: 0x08, 4: 0x04}.get(group, 0x08)
        if len(self._errors) >= QUEUE_LENGTH:
            self._errors[-1] = (-350, STANDARD_ERRORS[-350])
        else:
            self._errors.append((error.code, error.text))

    def next_error(self) -> str:
        """Take the oldest error from the queue, as ``SYSTem:ERRor?`` writes it."""
        if not self._errors:
            return f'{self._no_error},"No error"'
        code, text = self._errors.popleft()
        return f'{code},"{text}"'

    def clear_status(self) -> None:
        """Empty the error queue and the event status (``*CLS``)."""
        self._errors.clear()
        self._event_status = 0

    def _clear_status(self, call: Call) -> None:
        self.clear_status()

    def _read_event_status(self, call: Call) -> str:
        status, self._event_status = self._event_status, 0
        return str(status)

    def _set_event_enable(self, call: Call) -> None:
        self._event_enable = call.integer(0, 0, 255)

    def _set_service_enable(self, call: Call) -> None:
        self._service_enable = call.integer(0, 0, 255)

    def _operation_complete(self, call: Call) -> None:
        self._event_status |= 0x01

    def _status_byte(self) -> int:
        status = 0x04 if self._errors else 0
        if self._event_status & self._event_enable:
            status |= 0x20
        if status & self._service_enable & ~0x40:
            status |= 0x40
        return status


_SPECIAL = re.compile(rb"[\n;,\"'#]")
_LF, _SEMICOLON, _COMMA, _HASH = b"\n", b";", b",", b"#"


class ScpiSession:
    """One connection's front-end to a `ScpiInstrument`.

    Parameters
    ----------
    instrument
        Shared by all connections.
    max_block_bytes
        Longest block taken; a longer one is skipped with error -223.
    before
        Called before each command: the device catches up with its clock.
    """

    def __init__(
        self,
        instrument: ScpiInstrument,
        *,
        max_block_bytes: int = 0,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._instrument = instrument
        self._max_block_bytes = max_block_bytes
        self._before = before
        self._path = ""
        self._responses: list[bytes] = []
        self._response_bytes = 0
        self._discarding = False  # until the next line feed
        self._block: memoryview | None = None
        self._filled = 0
        self._skip = 0
        self._start_unit()

    def _start_unit(self) -> None:
        self._text = bytearray()
        self._arguments: list[Argument] = []
        self._quote = b""
        self._prefix: bytearray | None = None  # the length of a block, as far as it has come
        self._argument_block: bytearray | None = None
        self._error: ScpiError | None = None

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; return the response messages that are complete now."""
        out = bytearray()
        position, end = 0, len(data)
        while position < end:
            if self._skip:
                step = min(self._skip, end - position)
                self._skip -= step
                position += step
            elif self._block is not None:
                position += self._fill_block(data, position)
            elif self._prefix is not None:
                self._extend_prefix(data[position : position + 1])
                position += 1
            else:
                position = self._scan(data, position, out)
        return bytes(out)

    # -- lexical: one step per special character, bulk copies between them -------------------------

    def _scan(self, data: bytes, position: int, out: bytearray) -> int:
        match = _SPECIAL.search(data, position)
        until = match.start() if match is not None else len(data)
        if not self._discarding:
            self._text += data[position:until]
            if len(self._text) > TEXT_LIMIT:
                self._overrun()
        if match is None:
            return until
        symbol = match[0]
        if symbol == _LF:
            self._end_message(out)
        elif not self._discarding:
            if self._quote:
                self._text += symbol
                if symbol == self._quote:
                    self._quote = b""
            elif symbol == _SEMICOLON:
                self._end_unit()
            elif symbol == _COMMA:
                self._end_argument()
            elif symbol == _HASH and self._at_start_of_argument():
                self._prefix = bytearray()
            else:
                self._text += symbol
                if symbol != _HASH:
                    self._quote = symbol
            if len(self._arguments) > 4096:
                self._overrun()
        return match.end()

    def _overrun(self) -> None:
        self._instrument.report(ScpiError(-363))
        self._discarding = True
        self._start_unit()

    def _at_start_of_argument(self) -> bool:
        if len(self._text) > 256:
            return False
        text = bytes(self._text)
        if self._arguments:
            return not text.strip()
        return len(text.split()) == 1 and text[-1:].isspace()

    def _extend_prefix(self, byte: bytes) -> None:
        prefix = self._prefix
        assert prefix is not None
        prefix += byte
        if not byte.isdigit() or prefix[:1] == b"0":
            # Not a definite-length block: the rest of the line means nothing.
            self._instrument.report(ScpiError(-161))
            self._start_unit()
            self._discarding = byte != _LF
            return
        if len(prefix) < 1 + int(prefix[:1]):
            return
        length = int(prefix[1:])
        self._prefix = None
        if length > self._max_block_bytes or self._argument_block is not None:
            self._error = ScpiError(-223)
            self._skip = length
            return
        self._argument_block = bytearray(length)
        self._block = memoryview(self._argument_block) if length else None
        self._filled = 0

    def _fill_block(self, data: bytes, position: int) -> int:
        block = self._block
        assert block is not None
        step = min(len(block) - self._filled, len(data) - position)
        block[self._filled : self._filled + step] = memoryview(data)[position : position + step]
        self._filled += step
        if self._filled == len(block):
            block.release()
            self._block = None
        return step

    # -- syntax -----------------------------------------------------------------------------------

    def _end_argument(self) -> None:
        if self._argument_block is not None:
            if self._text.strip() and self._arguments:
                self._error = self._error or ScpiError(-161)
            if not self._arguments:
                self._arguments.append(self._text.decode("latin-1"))
            self._arguments.append(self._argument_block)
            self._argument_block = None
        else:
            self._arguments.append(self._text.decode("latin-1"))
        self._text = bytearray()

    def _end_unit(self) -> None:
        # The first "argument" still has the header in front of it.
        self._end_argument()
        first, *rest = self._arguments
        error, unfinished = self._error, bool(self._quote)
        self._start_unit()
        assert isinstance(first, str)
        header, _, parameter = first.strip().partition(" ")
        if "\t" in header:
            header, _, parameter = first.strip().partition("\t")
        if not header:
            if rest:
                self._instrument.report(ScpiError(-102))
            return
        arguments: list[Argument] = [parameter.strip()] if parameter.strip() else []
        if rest and not arguments and isinstance(rest[0], str):
            error = error or ScpiError(-102)
        arguments += [item.strip() if isinstance(item, str) else item for item in rest]
        try:
            if unfinished:
                raise ScpiError(-151)
            if error is not None:
                raise error
            self._execute(header.upper(), tuple(arguments))
        except ScpiError as failure:
            self._instrument.report(failure)

    def _execute(self, header: str, arguments: tuple[Argument, ...]) -> None:
        if not header.isascii() or not header.isprintable():
            raise ScpiError(-101)
        if header.startswith("*"):
            full = header  # common commands leave the path alone (IEEE 488.2 section 7)
        else:
            full = header[1:] if header.startswith(":") else self._path + header
            self._path = full.rpartition(":")[0] + ":" if ":" in full else ""
        if self._before is not None:
            self._before()
        response = self._instrument.execute(full, arguments)
        if response is None:
            return
        raw = response.encode("latin-1", "replace") if isinstance(response, str) else response
        self._response_bytes += len(raw) + 1
        if self._response_bytes > RESPONSE_LIMIT or len(self._responses) >= 4096:
            self._responses.clear()
            self._response_bytes = 0
            raise ScpiError(-430)
        self._responses.append(raw)

    def _end_message(self, out: bytearray) -> None:
        if not self._discarding:
            self._end_unit()
        self._discarding = False
        self._path = ""
        if self._responses:
            out += _SEMICOLON.join(self._responses) + _LF
        self._responses.clear()
        self._response_bytes = 0
        self._start_unit()


def quoted(text: str) -> str:
    """`text` as a SCPI string."""
    return '"' + text.replace('"', '""') + '"'


def definite_block(data: NDArray[np.generic] | bytes) -> bytes:
    """`data` as a ``#<d><length>`` block."""
    raw = data if isinstance(data, bytes) else data.tobytes()
    length = str(len(raw))
    return f"#{len(length)}{length}".encode() + raw
