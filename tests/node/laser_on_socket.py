"""A laser that speaks lines over TCP, and its driver: enough to supervise for real."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from qkdctl.roles.errors import ConnectionLost, InvalidValue, Timeout, WrongInstrument
from qkdctl.roles.instrument import Fails, Identity, Instrument, Parameter, action


class SocketLaser(Instrument):
    """Driver: one line out (``power 7.5`` or ``power?``), one line back."""

    model = "socket_laser"
    roles = ("laser",)
    fails = Fails.DARK

    enabled = Parameter(bool, access="rw", doc="Light leaves the laser.")
    power_dbm = Parameter(
        float, unit="dBm", access="rw", minimum=0.0, maximum=13.0, poll_s=0.05, doc="Set point."
    )
    lines = Parameter(int, doc="Lines the laser has received.")

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 2.0,
        limits: Any = None,
        serial: str | None = None,
        greeting: str = "hello",
    ) -> None:
        super().__init__(address, timeout_s=timeout_s, limits=limits, serial=serial)
        parts = urlsplit(address)
        if parts.scheme != "tcp" or not parts.port:
            raise InvalidValue(f"address {address!r} is not tcp://host:port")
        self._where = (parts.hostname or "", parts.port)
        self._file: Any = None
        self.greeting = greeting

    def open(self) -> Identity:
        self.close()
        try:
            with socket.create_connection(self._where, self.timeout_s) as connection:
                self._file = connection.makefile("rw", newline="\n")
        except OSError as error:
            raise ConnectionLost(f"{self.address}: {error.strerror or error}") from None
        identity = self.identify()
        if self.expected_serial not in (None, identity.serial):
            self.close()
            raise WrongInstrument(f"serial {identity.serial}, not {self.expected_serial}")
        return identity

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _ask(self, line: str) -> str:
        if self._file is None:
            raise ConnectionLost("not open")
        try:
            self._file.write(line + "\n")
            self._file.flush()
            answer = self._file.readline()
        except TimeoutError:
            self.close()
            raise Timeout(f"no answer to {line!r}") from None
        except OSError as error:
            self.close()
            raise ConnectionLost(str(error)) from None
        if not answer:
            self.close()
            raise ConnectionLost("the laser hung up")
        return str(answer.strip())

    def identify(self) -> Identity:
        return Identity(*self._ask("who?").split(","))

    def make_safe(self) -> None:
        self.write_enabled(False)

    def read_enabled(self) -> bool:
        return self._ask("enabled?") == "1"

    def write_enabled(self, value: bool) -> None:
        self._ask(f"enabled {int(value)}")

    def read_power_dbm(self) -> float:
        return float(self._ask("power?"))

    def write_power_dbm(self, value: float) -> float:
        return float(self._ask(f"power {value}"))

    def read_lines(self) -> int:
        return int(self._ask("lines?"))

    @action
    def blink(self, times: int) -> str:
        """Switch on and off a few times."""
        for _ in range(times):
            self.write_enabled(True)
            self.write_enabled(False)
        return f"blinked {times}"


class LaserServer:
    """The instrument's side. Its serial number is the port unless given."""

    def __init__(self, port: int = 0, serial: str = "S1") -> None:
        self.power = 1.0
        self.enabled = False
        self.lines = 0
        self.deaf = False
        self.serial = serial
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._start(self._accept)

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection.makefile("rw") as file:
            for line in file:
                self.lines += 1
                if not self.deaf:
                    file.write(self._answer(line.strip()) + "\n")
                    file.flush()

    def _answer(self, line: str) -> str:
        name, _, value = line.partition(" ")
        if name == "power":
            self.power = round(float(value), 2)
        if name == "enabled":
            self.enabled = value == "1"
        return {
            "who?": f"Lamp,socket_laser,{self.serial},1.0",
            "lines?": str(self.lines),
            "enabled?": str(int(self.enabled)),
        }.get(line, str(self.power))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def __enter__(self) -> LaserServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads:
            self.close()
