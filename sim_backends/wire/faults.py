"""Faults of a wire: what an emulated connection does to replies when something is wrong.

`Faults` is set from any thread (a test, the bench's control socket) and asked by the transport for
each reply. Fault names are those of `KINDS`.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

KINDS = ("none", "lost_reply", "garbage", "partial", "hang", "disconnect", "slow")


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault that strikes one exchange; ``delay_s`` counts for ``slow`` only (real seconds)."""

    kind: str = "none"
    delay_s: float = 0.0


NO_FAULT = Fault()


class Faults:
    """Switch for the faults of one emulated connection. Thread-safe.

    ========== =====================================================================
    lost_reply the command is carried out, its reply never leaves
    garbage    the reply is replaced by as many random bytes
    partial    the reply breaks off half-way
    hang       bytes are swallowed: nothing is carried out, nothing is answered
    disconnect the connection is closed in the place of the reply
    slow       the reply comes ``delay_s`` late, in order
    ========== =====================================================================

    Parameters
    ----------
    seed
        Of the generator that makes the garbage.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._fault = NO_FAULT
        self._left: int | None = None
        self._random = random.Random(seed)

    def set(self, kind: str, *, count: int | None = None, delay_s: float = 1.0) -> None:
        """Switch to fault `kind`, for the next `count` exchanges or (None) until `clear`.

        Raises
        ------
        ValueError
            If `kind` is not one of `KINDS`, or `count` or `delay_s` is negative.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}; expected one of {', '.join(KINDS)}")
        if (count is not None and count < 0) or delay_s < 0:
            raise ValueError("count and delay_s must not be negative")
        with self._lock:
            self._fault = Fault(kind, delay_s if kind == "slow" else 0.0)
            self._left = count

    def clear(self) -> None:
        """No fault from now on."""
        self.set("none")

    @property
    def kind(self) -> str:
        """Name of the fault that would strike the next exchange."""
        with self._lock:
            return "none" if self._left == 0 else self._fault.kind

    def take(self) -> Fault:
        """The fault for one exchange; counts it."""
        with self._lock:
            if self._left == 0:
                return NO_FAULT
            if self._left is not None:
                self._left -= 1
            return self._fault

    def garbage(self, length: int) -> bytes:
        """`length` random bytes."""
        with self._lock:
            return self._random.randbytes(length)
