"""Questions and answers over a ZeroMQ REQ socket, with deadlines.

A REQ socket that missed its answer is stuck, and one that reconnects by itself may come back to
another instrument. So a socket here lives for one connection only: after anything but an answer,
and when the connection ends, it is thrown away. The next request opens a fresh one, which the
driver greets (identity); the late answer to the old one has no socket to arrive at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from qkdctl.roles import ConnectionLost, ProtocolError, Timeout

CONNECTION_ENDED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class ZmqRequest:
    """A request connection; may be used from several threads, one exchange at a time.

    Parameters
    ----------
    address : str
        ``tcp://host:port`` of the REP socket.
    timeout_s : float
        Deadline of connecting, and of one exchange.
    greet : callable
        Called with every fresh connection before anything else; what it raises closes it again.
    """

    def __init__(self, address: str, *, timeout_s: float, greet: Callable[[], None]) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._greet = greet
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._wanted = False
        self._greeting = False
        self._lock = threading.RLock()

    def open(self) -> None:
        """Connect and greet. Raises `ConnectionLost` when nobody listens at the address."""
        with self._lock:
            self.close()
            self._wanted = True
            try:
                self._connect()
            except BaseException:
                self._wanted = False
                raise

    def close(self) -> None:
        """Disconnect. Never raises; may be called twice."""
        with self._lock:
            self._wanted = False
            self._disconnect()

    def request(self, text: str, *, timeout_s: float | None = None) -> str:
        """Send one message and return the answer, without white space around it.

        Raises `Timeout`, `ConnectionLost`, or `ProtocolError` for an answer that is no text.
        """
        with self._lock:
            if not self._wanted:
                raise ConnectionLost(f"{self.address} is not open")
            if not self._greeting and (self._socket is None or self._ended()):
                self._connect()
            try:
                return self._exchange(text, timeout_s or self.timeout_s)
            except zmq.ZMQError as error:
                self._disconnect()
                raise ConnectionLost(f"{self.address}: {error}") from error
            except BaseException:
                self._disconnect()
                raise

    def _connect(self) -> None:
        self._disconnect()
        connecting: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        connecting.linger = 0
        connecting.reconnect_ivl = -1
        connecting.immediate = True  # a message goes into a connection, or nowhere
        monitor: zmq.Socket[bytes] = connecting.get_monitor_socket(CONNECTION_ENDED)
        monitor.linger = 0
        self._socket, self._monitor = connecting, monitor
        try:
            connecting.connect(self.address)
            self._greeting = True
            self._greet()
        except zmq.ZMQError as error:
            self._disconnect()
            raise ConnectionLost(f"{self.address}: {error}") from error
        except BaseException:
            self._disconnect()
            raise
        finally:
            self._greeting = False

    def _disconnect(self) -> None:
        connected, monitor, self._socket, self._monitor = self._socket, self._monitor, None, None
        if connected is not None and monitor is not None:
            connected.disable_monitor()
            connected.close()
            monitor.close()

    def _ended(self) -> bool:
        assert self._monitor is not None
        return bool(self._monitor.poll(0))

    def _exchange(self, text: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        if not self._wait(zmq.POLLOUT, deadline):
            raise ConnectionLost(f"{self.address}: nobody takes requests")
        assert self._socket is not None
        self._socket.send(text.encode("ascii"), zmq.DONTWAIT)
        if not self._wait(zmq.POLLIN, deadline):
            raise Timeout(f"{self.address}: no answer to {text} within {timeout_s:g} s")
        frames = self._socket.recv_multipart(zmq.DONTWAIT)
        try:
            (frame,) = frames
            answer = frame.decode("utf-8").strip()
        except ValueError:
            raise ProtocolError(f"{self.address}: {text} was answered by {frames!r:.80}") from None
        if not answer.isprintable() and not answer.replace("\n", "").isprintable():
            raise ProtocolError(f"{self.address}: {text} was answered by {answer[:80]!r}")
        return answer

    def _wait(self, event: int, deadline: float) -> bool:
        """Wait for the socket to be ready; `ConnectionLost` when the connection ends."""
        if self._socket is None or self._monitor is None:
            raise ConnectionLost(f"{self.address} was lost")
        poller = zmq.Poller()
        poller.register(self._socket, event)
        poller.register(self._monitor, zmq.POLLIN)
        ready = dict(poller.poll(max(0, round((deadline - time.monotonic()) * 1000))))
        if self._socket in ready:
            return True
        if self._monitor in ready:
            recv_monitor_message(self._monitor)
            raise ConnectionLost(f"{self.address}: the connection ended or was refused")
        return False
