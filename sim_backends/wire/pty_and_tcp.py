"""One byte-stream front-end offered on a pseudo-terminal and a TCP port at once.

Both carry the same bytes: a client that opens a serial device takes the pty, one that toggles modem
lines (which Linux ptys refuse) takes ``socket://host:port``. Every connection has a session of its
own; the device behind the sessions is shared. All sessions and the device's tick run in one
thread, in order, so a device model needs no locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
import time
import tty
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sim_backends.wire.faults import Faults

RECEIVE_BYTES = 4 << 20
"""Most bytes taken from a connection at once: waveform uploads are tens of megabytes."""

UNSENT_LIMIT = 1 << 20
"""A client that asks and never reads is no longer listened to beyond this many unsent bytes."""


class Session(Protocol):
    """The front-end of one connection: bytes in, bytes out, no I/O, never raises."""

    def feed(self, data: bytes) -> bytes:
        """Take what arrived (any part of a command, or several); return what to send."""


class PtyAndTcp:
    """Serve sessions on a raw-mode pty and a TCP port until `stop`.

    Parameters
    ----------
    session_factory
        Makes the session of a new connection. The pty has one session for its whole life, as a
        serial port has.
    host, tcp_port
        Where to listen; port 0 lets the kernel choose (see `tcp_port`).
    pty
        False: TCP only.
    pty_link
        Symbolic link to the pty, made at `start` and removed at `stop`: a name that stays the same.
    faults
        Asked for every exchange; None means a switch of its own, reachable as ``.faults``.
    tick, tick_s
        Called about every `tick_s` real seconds, so that time passes in the device when nobody
        talks to it.
    idle_timeout_s
        Asked for the real seconds of silence after which a TCP client is disconnected (None:
        never).
    """

    def __init__(
        self,
        session_factory: Callable[[], Session],
        *,
        host: str = "127.0.0.1",
        tcp_port: int = 0,
        pty: bool = True,
        pty_link: Path | None = None,
        faults: Faults | None = None,
        tick: Callable[[], None] | None = None,
        tick_s: float = 0.05,
        idle_timeout_s: Callable[[], float | None] | None = None,
        name: str = "emulator",
    ) -> None:
        self.name = name
        self.faults = faults if faults is not None else Faults()
        self._session_factory = session_factory
        self._address = (host, tcp_port)
        self._with_pty = pty or pty_link is not None
        self._pty_link = pty_link
        self._tick = tick
        self._tick_s = tick_s
        self._idle_timeout_s = idle_timeout_s
        self._selector: selectors.BaseSelector | None = None
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()
        self._pty: _Pty | None = None
        self._waker: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._buffer = bytearray(RECEIVE_BYTES)

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the pty and the port and serve in a thread; both addresses are known on return.

        Raises
        ------
        OSError
            If the port is taken or there is no pty left.
        RuntimeError
            If already started.
        """
        if self._thread is not None:
            raise RuntimeError(f"{self.name}: already started")
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        try:
            self._listener = socket.create_server(self._address)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ, None)
            self._waker = socket.socketpair()
            self._selector.register(self._waker[0], selectors.EVENT_READ, None)
            if self._with_pty:
                self._open_pty()
        except BaseException:
            self._close_all()
            raise
        self._thread = threading.Thread(target=self._serve, name=f"wire-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect every client, remove the pty and its link, end the thread. Repeatable."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        assert self._waker is not None
        self._waker[1].send(b"x")
        thread.join()
        self._close_all()

    def __enter__(self) -> PtyAndTcp:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def tcp_port(self) -> int:
        """The port listened on."""
        if self._listener is None:
            raise RuntimeError(f"{self.name}: not started")
        return int(self._listener.getsockname()[1])

    @property
    def pty_path(self) -> Path | None:
        """What a serial client opens (the link if there is one); None without a pty."""
        pty = self._pty
        if pty is None:
            return None
        return self._pty_link if self._pty_link is not None else Path(pty.path)

    # -- the thread ------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._loop()
        except BaseException:
            # A device model that breaks must look broken: clients see their connection end.
            self._stopping = True
            for connection in list(self._connections):
                self._drop(connection)
            raise

    def _loop(self) -> None:
        assert self._selector is not None
        next_tick = time.monotonic()
        while not self._stopping:
            now = time.monotonic()
            if self._tick is not None and now >= next_tick:
                self._tick()
                next_tick = now + self._tick_s
            for key, mask in self._selector.select(self._wait_s(now, next_tick)):
                connection = key.data
                if connection is None:
                    if key.fileobj is self._listener:
                        self._accept()
                    continue
                if mask & selectors.EVENT_READ and connection in self._connections:
                    self._receive(connection)
                if mask & selectors.EVENT_WRITE and connection in self._connections:
                    self._send(connection)
            self._pass_time()

    def _wait_s(self, now: float, next_tick: float) -> float | None:
        moments = [connection.late[0][0] for connection in self._connections if connection.late]
        if self._tick is not None:
            moments.append(next_tick)
        if self._connections and self._idle_timeout_s is not None:
            moments.append(now + 0.25)
        return max(0.0, min(moments) - now) if moments else None

    def _pass_time(self) -> None:
        now = time.monotonic()
        idle = self._idle_timeout_s() if self._idle_timeout_s is not None else None
        for connection in list(self._connections):
            if connection.late and connection.late[0][0] <= now:
                while connection.late and connection.late[0][0] <= now:
                    connection.unsent += connection.late.popleft()[1]
                self._send(connection)
            silent_s = now - connection.heard
            if idle is not None and silent_s > idle and not isinstance(connection, _Pty):
                self._drop(connection)

    def _accept(self) -> None:
        assert self._listener is not None
        assert self._selector is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # gone again before it was accepted
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Tcp(client, self._session_factory())
        self._connections.add(connection)
        self._selector.register(connection.fd, selectors.EVENT_READ, connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.read(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            if isinstance(connection, _Pty) and error.errno == errno.EIO:
                return
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.heard = time.monotonic()
        if self.faults.kind == "hang":
            self.faults.take()
            return
        reply = connection.session.feed(data)
        if not reply:
            return
        fault = self.faults.take()
        if fault.kind in ("lost_reply", "hang"):
            return
        if fault.kind == "disconnect":
            self._drop(connection)
            return
        if fault.kind == "garbage":
            reply = self.faults.garbage(len(reply))
        elif fault.kind == "partial":
            reply = reply[: len(reply) // 2]
        if fault.kind == "slow" or connection.late:
            connection.late.append((time.monotonic() + fault.delay_s, reply))
            return
        connection.unsent += reply
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        assert self._selector is not None
        while connection.unsent:
            try:
                sent = connection.write(connection.unsent)
            except BlockingIOError:
                break
            except OSError:
                self._drop(connection)
                return
            del connection.unsent[:sent]
        events = 0
        if connection.unsent:
            events |= selectors.EVENT_WRITE
        if len(connection.unsent) < UNSENT_LIMIT:
            events |= selectors.EVENT_READ
        self._selector.modify(connection.fd, events, connection)

    def _drop(self, connection: _Connection) -> None:
        assert self._selector is not None
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.fd)
        connection.close()
        if isinstance(connection, _Pty) and not self._stopping:
            self._open_pty()  # the adapter is plugged in again: a new device, same link

    def _open_pty(self) -> None:
        assert self._selector is not None
        connection = _Pty(self._session_factory())
        self._pty = connection
        self._connections.add(connection)
        self._selector.register(connection.fd, selectors.EVENT_READ, connection)
        if self._pty_link is not None:
            fresh = self._pty_link.with_name(f".{self._pty_link.name}.{os.getpid()}")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(connection.path)
            fresh.replace(self._pty_link)

    def _close_all(self) -> None:
        self._stopping = True
        for connection in list(self._connections):
            self._drop(connection)
        if self._pty is not None and self._pty_link is not None:
            with contextlib.suppress(OSError):
                if os.readlink(self._pty_link) == self._pty.path:
                    self._pty_link.unlink()
        self._pty = None
        for end in self._waker or ():
            end.close()
        self._waker = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._selector is not None:
            self._selector.close()
            self._selector = None


class _Connection:
    """What the listener's thread knows of one client."""

    fd: int

    def __init__(self, session: Session) -> None:
        self.session = session
        self.heard = time.monotonic()
        self.unsent = bytearray()
        self.late: deque[tuple[float, bytes]] = deque()

    def read(self, buffer: bytearray) -> bytes:
        raise NotImplementedError

    def write(self, data: bytearray) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Tcp(_Connection):
    def __init__(self, client: socket.socket, session: Session) -> None:
        super().__init__(session)
        self._socket = client
        self.fd = client.fileno()

    def read(self, buffer: bytearray) -> bytes:
        count = self._socket.recv_into(buffer)
        return bytes(memoryview(buffer)[:count])

    def write(self, data: bytearray) -> int:
        return self._socket.send(data)

    def close(self) -> None:
        self._socket.close()


class _Pty(_Connection):
    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.fd, self._slave = os.openpty()
        # Raw from the first byte: echo and CR translation would corrupt binary protocols. The
        # slave stays open here, or the master would read EIO whenever a client closes.
        tty.setraw(self.fd)
        tty.setraw(self._slave)
        os.set_blocking(self.fd, False)
        self.path = os.ttyname(self._slave)

    def read(self, buffer: bytearray) -> bytes:
        return os.read(self.fd, 65536)

    def write(self, data: bytearray) -> int:
        return os.write(self.fd, data)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._slave)
