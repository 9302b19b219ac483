"""ItlaEmulator: signatures first, behaviour follows."""

from __future__ import annotations

from sim_backends.optics.ports import ClockPort, LaserPort
from sim_backends.wire.pty_and_tcp import Session


class ItlaEmulator:
    """`PtyAndTcp(emulator.session, tick=emulator.tick, tick_s=emulator.tick_s, ...)` serves it."""

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

    def session(self) -> Session:
        """A front-end for one connection."""
        raise NotImplementedError

    def tick(self) -> None:
        """Let the device follow the laboratory clock."""
        raise NotImplementedError

    def idle_timeout_s(self) -> float | None:
        """Seconds of silence after which a client is disconnected."""
        return None
