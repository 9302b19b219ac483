"""A stream of JSON objects without lengths: bytes in, objects out.

Single Quantum's WebSQ ends each of its objects with the byte 0x17, and may also glue them.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from qkdctl.roles import ProtocolError

END_OF_OBJECT = 0x17
BETWEEN_OBJECTS = b" \t\r\n\x17"
STRUCTURE = re.compile(rb'[{}"\\\x17]')
LONGEST_OBJECT = 16 << 20


class JsonStreamParser:
    """Bytes in, objects out; does no I/O.

    >>> parser = JsonStreamParser()
    >>> parser.feed(b'{"label":"A"}{"lab')
    [{'label': 'A'}]
    >>> parser.feed(b'el":"}"}' + bytes([0x17]))
    [{'label': '}'}]
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_text = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the objects that `data` completes; `ProtocolError` when it is not JSON."""
        self._buffer += data
        objects: list[dict[str, Any]] = []
        while (end := self._find_end()) is not None:
            raw = bytes(self._buffer[:end])
            del self._buffer[:end]
            try:
                objects.append(msgspec.json.decode(raw, type=dict[str, Any]))
            except msgspec.DecodeError as error:
                raise ProtocolError(f"not JSON: {raw[:80]!r} ({error})") from error
        if len(self._buffer) > LONGEST_OBJECT:
            raise ProtocolError(f"an object longer than {LONGEST_OBJECT} bytes")
        return objects

    def _find_end(self) -> int | None:
        """Return where the first object ends, or None; remembers how far it has looked."""
        if self._depth == 0:
            del self._buffer[: len(self._buffer) - len(self._buffer.lstrip(BETWEEN_OBJECTS))]
            self._scanned = 0
            if self._buffer and self._buffer[0] != ord("{"):
                raise ProtocolError(f"expected an object, got {bytes(self._buffer[:80])!r}")
        while found := STRUCTURE.search(self._buffer, self._scanned):
            character, position = found.group(), found.start()
            if character == b"\\":
                if position + 1 == len(self._buffer):
                    self._scanned = position
                    return None
                self._scanned = position + 2
                continue
            self._scanned = position + 1
            if character[0] == END_OF_OBJECT:
                raise ProtocolError(f"truncated object {bytes(self._buffer[:80])!r}")
            if character == b'"':
                self._in_text = not self._in_text
            elif not self._in_text:
                self._depth += 1 if character == b"{" else -1
                if self._depth == 0:
                    return self._scanned
        self._scanned = len(self._buffer)
        return None
