"""ThorlabsPm100Emulator: signatures first, behaviour follows."""

from __future__ import annotations

from sim_backends.optics.ports import ClockPort, PowerMeterPort
from sim_backends.wire.pty_and_tcp import Session


class ThorlabsPm100Emulator:
    """`PtyAndTcp(emulator.session, tick=emulator.tick, tick_s=emulator.tick_s, ...)` serves it."""

    tick_s: float = 0.05

    def __init__(
        self,
        port: PowerMeterPort,
        clock: ClockPort,
        *,
        name: str = "pm",
        serial: str = "P0001234",
        profile: str = "manual",
        strict: bool = False,
        model: str = "PM103E",
        noise: float = 1e-3,
        floor_w: float = 1e-12,
        full_scale_w: float = 20e-3,
        seed: int = 0,
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
