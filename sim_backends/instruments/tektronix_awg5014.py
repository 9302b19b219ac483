"""TektronixAwg5014Emulator: signatures first, behaviour follows."""

from __future__ import annotations

from sim_backends.optics.ports import ClockPort, PatternPort
from sim_backends.wire.pty_and_tcp import Session


class TektronixAwg5014Emulator:
    """`PtyAndTcp(emulator.session, tick=emulator.tick, tick_s=emulator.tick_s, ...)` serves it."""

    tick_s: float = 0.05

    def __init__(
        self,
        port: PatternPort,
        clock: ClockPort,
        *,
        name: str = "awg",
        serial: str = "B010101",
        profile: str = "manual",
        strict: bool = False,
    ) -> None:
        self.name = name

    def session(self) -> Session:
        """A front-end for one connection."""
        raise NotImplementedError

    def tick(self) -> None:
        """Let the device follow the laboratory clock."""
        raise NotImplementedError

    def idle_timeout_s(self) -> float | None:
        """Seconds of silence after which a client is disconnected."""
        return None
