"""A TCP connection on which the peer speaks when it likes: a thread takes in what comes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from qkdctl.roles import ConnectionLost, QkdctlError, Timeout

T = TypeVar("T")

READ_SIZE = 1 << 16


class TcpReader:
    """A TCP connection whose input is handled by a thread of its own, piece by piece as it comes.

    Parameters
    ----------
    host, port, timeout_s
        Where to connect, and the deadline for that and for sending.
    receive : callable
        Called in the reader's thread, under `changed`, with the bytes of each arrival. An error
        of the vocabulary it raises ends the connection.

    The first failure is kept in `failure`; `wait_for` raises it.
    """

    def __init__(
        self, host: str, port: int, *, timeout_s: float, receive: Callable[[bytes], None]
    ) -> None:
        self.where = f"tcp://{host}:{port}"
        self.changed = threading.Condition()
        self.failure: QkdctlError | None = None
        self._timeout_s = timeout_s
        self._receive = receive
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            raise ConnectionLost(f"{self.where}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)  # the reader waits without end; sending keeps its deadline
        self._thread = threading.Thread(target=self._run, name=f"read {self.where}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the connection and the thread. Never raises; may be called twice."""
        self._fail(ConnectionLost(f"{self.where} is closed"))
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send; raises `Timeout` or `ConnectionLost`, after which the connection is over."""
        with self.changed:
            if self.failure is not None:
                raise type(self.failure)(*self.failure.args)
        deadline = time.monotonic() + self._timeout_s
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[self._socket.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Timeout(f"{self.where} takes no more data") from None
                    time.sleep(0.01)
        except Timeout as error:
            self._fail(error)
            raise
        except OSError as error:
            self._fail(ConnectionLost(f"{self.where}: {error}"))
            raise ConnectionLost(f"{self.where}: {error}") from error

    def wait_for(self, look: Callable[[], T | None], deadline: float) -> T | None:
        """Wait until `look`, called under `changed`, finds something; None at the deadline.

        Raises the connection's failure if it ends before.
        """
        with self.changed:
            while True:
                if (found := look()) is not None:
                    return found
                if self.failure is not None:
                    raise type(self.failure)(*self.failure.args)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                self.changed.wait(remaining)

    def _run(self) -> None:
        while True:
            try:
                data = self._socket.recv(READ_SIZE)
                if not data:
                    raise ConnectionLost(f"{self.where} closed the connection")
                with self.changed:
                    self._receive(data)
                    self.changed.notify_all()
            except QkdctlError as error:
                return self._fail(error)
            except OSError as error:
                return self._fail(ConnectionLost(f"{self.where}: {error}"))

    def _fail(self, failure: QkdctlError) -> None:
        with self.changed:
            if self.failure is None:
                self.failure = failure
            self.changed.notify_all()
        with suppress(OSError):  # not connected any more
            self._socket.shutdown(socket.SHUT_RDWR)
