"""ThorlabsMxEmulator: signatures first, behaviour follows."""

from __future__ import annotations

from sim_backends.optics.ports import ClockPort, ModulatorPort
from sim_backends.wire.pty_and_tcp import Session


class ThorlabsMxEmulator:
    """`PtyAndTcp(emulator.session, tick=emulator.tick, tick_s=emulator.tick_s, ...)` serves it."""

    tick_s: float = 0.05

    def __init__(
        self,
        port: ModulatorPort,
        clock: ClockPort,
        *,
        name: str = "mx",
        serial: str = "M00900001",
        profile: str = "guide",
        strict: bool = False,
        has_laser: bool = False,
        calibration_s: float = 3.0,
        slew_s: float = 0.2,
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
