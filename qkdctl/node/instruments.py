"""Supervision of the instruments: one worker thread each, reconnection, polled readings.

Instrument I/O blocks and must stay in order, so every instrument has one thread and a queue. The
thread opens the instrument, runs what it is asked, polls the parameters that declare a period, and
when the connection is lost opens it again with growing pauses. A reading says when it was taken
and whether it is good; after a loss it is *unavailable*, never the last value.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

from qkdctl.node.config import NodeConfig, make_instrument
from qkdctl.roles.errors import ConnectionLost, NotSupported, QkdctlError, Timeout
from qkdctl.roles.instrument import Identity, Instrument

T = TypeVar("T")
P = ParamSpec("P")
Quality = Literal["good", "unavailable"]
Connection = Literal["connecting", "up", "down", "stopped"]

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 10.0
# A silent instrument behind a living socket (a terminal server) is opened again after this many.
TIMEOUTS_TO_REOPEN = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """A value with the time it was taken (seconds since 1970) and its quality."""

    value: Any
    time: float
    quality: Quality = "good"


Publish = Callable[[str, Reading], None]


@dataclass(slots=True)
class _Job:
    run: Callable[[], Any]
    future: Future[Any]


class InstrumentWorker:
    """One instrument and the thread that talks to it.

    Parameters
    ----------
    name : str
        As in the configuration; topics are ``name.parameter`` and ``name.connection``.
    instrument : Instrument
    settings : mapping, optional
        Set after each opening, in this order.
    publish : callable, optional
        ``publish(topic, reading)``; called from the worker's thread.
    retry : bool
        Whether to open again after a failure. ``False`` gives one attempt (``qkdctl check``).
    """

    def __init__(
        self,
        name: str,
        instrument: Instrument,
        *,
        settings: Mapping[str, Any] | None = None,
        publish: Publish | None = None,
        retry: bool = True,
    ) -> None:
        self.name = name
        self.instrument = instrument
        self.connection: Connection = "connecting"
        self.identity: Identity | None = None
        self.error: QkdctlError | None = None
        self.readings: dict[str, Reading] = {}
        self._settings = dict(settings or {})
        self._publish = publish
        self._retry = retry
        self._polled = {n: p.poll_s for n, p in instrument.parameters().items() if p.poll_s}
        self._poll_at: dict[str, float] = {}
        self._complained: set[str] = set()
        self._timeouts = 0
        self._pause_s = FIRST_RETRY_S
        self._open_at = 0.0
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._opened: Future[Identity] = Future()
        self._thread = threading.Thread(target=self._run, name=f"instrument-{name}", daemon=True)

    # -- for the event loop -------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which opens the instrument at once."""
        self._thread.start()

    async def opened(self) -> Identity:
        """Wait for the end of the first attempt to open; raise what it raised."""
        return await asyncio.shield(asyncio.wrap_future(self._opened))

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function(*args)`` in the instrument's thread, after what was asked before.

        Cancelling gives up a call that has not begun. One that has begun ends by the driver's
        own deadline.

        Raises
        ------
        ConnectionLost
            At once, while the instrument is not connected.
        """
        return await asyncio.wrap_future(self.submit(lambda: function(*args, **kwargs)))

    def submit(self, run: Callable[[], T], *, urgent: bool = False) -> Future[T]:
        """Queue ``run()``; from any thread. An urgent job goes before all that wait."""
        future: Future[T] = Future()
        with self._wake:
            if self._stopping or self.connection in ("down", "stopped"):
                future.set_exception(self._not_connected())
                return future
            job = _Job(run, future)
            if urgent:
                self._jobs.appendleft(job)
            else:
                self._jobs.append(job)
            self._wake.notify()
        return future

    async def get(self, name: str) -> Any:
        """Read a parameter from the instrument."""
        value = await self.call(self.instrument.get, name)
        self._note(name, Reading(value, time.time()))
        return value

    async def set(self, name: str, value: Any) -> Any:
        """Set a parameter; return the value the instrument accepted."""
        accepted = await self.call(self.instrument.set, name, value)
        self._note(name, Reading(accepted, time.time()))
        return accepted

    async def action(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run an action the driver declares."""
        if name not in self.instrument.actions():
            known = ", ".join(self.instrument.actions()) or "none"
            raise NotSupported(f"{self.name} has no action '{name}'; it has: {known}")
        return await self.call(getattr(self.instrument, name), *args, **kwargs)

    def make_safe(self) -> Future[None]:
        """Bring the instrument to its safe state before anything else that waits."""
        return self.submit(self.instrument.make_safe, urgent=True)

    def stop(self) -> None:
        """End the thread and close the instrument. Calls that wait fail. May be called twice."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self.connection = "stopped"

    # -- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                if self.connection != "up" and time.monotonic() >= self._open_at:
                    self._open()
                job = self._next_job()
                if job is not None:
                    self._do(job)
                if self.connection == "up":
                    self._poll()
        finally:
            with self._wake:
                self._stopping = True
                self.connection = "stopped"
                waiting = list(self._jobs)
                self._jobs.clear()
            self._fail(waiting)
            if not self._opened.done():
                self._opened.set_exception(self._not_connected())
            self._close_instrument()

    def _next_job(self) -> _Job | None:
        """Wait for a job, the next poll or the next attempt to open, whichever is first."""
        with self._wake:
            if not self._jobs and not self._stopping:
                if self.connection != "up":
                    until = self._open_at
                else:
                    until = min(self._poll_at.values(), default=float("inf"))
                pause = until - time.monotonic()
                if pause > 0:
                    self._wake.wait(min(pause, 3600.0))
            return self._jobs.popleft() if self._jobs and not self._stopping else None

    def _do(self, job: _Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        if self.connection != "up":
            job.future.set_exception(self._not_connected())
            return
        try:
            result = job.run()
        except BaseException as error:
            self._judge(error)
            job.future.set_exception(error)
        else:
            self._timeouts = 0
            job.future.set_result(result)

    def _open(self) -> None:
        try:
            identity = self.instrument.open()
            for name, value in self._settings.items():
                self._note(name, Reading(self.instrument.set(name, value), time.time()))
        except Exception as error:
            known = error if isinstance(error, QkdctlError) else QkdctlError(f"{error!r}")
            if not isinstance(error, QkdctlError):
                log.exception("%s: the driver failed while opening", self.name)
            self._down(known)
            if not self._opened.done():
                self._opened.set_exception(known)
            return
        with self._wake:
            self.identity, self.error, self.connection = identity, None, "up"
        self._pause_s = FIRST_RETRY_S
        self._timeouts = 0
        self._complained.clear()
        self._poll_at = dict.fromkeys(self._polled, time.monotonic())
        log.info(
            "%s: connected to %s %s, serial %s",
            self.name, identity.vendor, identity.model, identity.serial,
        )  # fmt: skip
        self._note("connection", Reading("up", time.time()))
        if not self._opened.done():
            self._opened.set_result(identity)

    def _poll(self) -> None:
        """Read the parameter that is due longest; jobs get their turn between two readings."""
        now = time.monotonic()
        name = min(self._poll_at, key=self._poll_at.__getitem__, default=None)
        if name is None or self._poll_at[name] > now:
            return
        period = self._polled[name]
        assert period is not None
        self._poll_at[name] = max(self._poll_at[name] + period, now)
        try:
            value = self.instrument.get(name)
        except Exception as error:
            self._note(name, Reading(None, time.time(), "unavailable"))
            if name not in self._complained:
                self._complained.add(name)
                log.warning("%s.%s cannot be read: %s", self.name, name, error)
            self._judge(error)
            return
        self._timeouts = 0
        if name in self._complained:
            self._complained.discard(name)
            log.info("%s.%s can be read again", self.name, name)
        self._note(name, Reading(value, time.time()))

    def _judge(self, error: BaseException) -> None:
        """Decide whether an error means that the connection is gone."""
        if isinstance(error, Timeout):
            self._timeouts += 1
            if self._timeouts >= TIMEOUTS_TO_REOPEN:
                self._down(ConnectionLost(f"no answer {self._timeouts} times: {error}"))
        elif isinstance(error, ConnectionLost):
            self._down(error)

    def _down(self, error: QkdctlError) -> None:
        with self._wake:
            news = self.connection != "down" or type(self.error) is not type(error)
            self.connection, self.error = "down", error
            waiting = list(self._jobs)
            self._jobs.clear()
        self._close_instrument()
        self._open_at = time.monotonic() + (self._pause_s if self._retry else float("inf"))
        self._pause_s = min(2 * self._pause_s, LONGEST_RETRY_S)
        if news:
            log.warning(
                "%s at %s is not connected: %s", self.name, self.instrument.address, error
            )  # fmt: skip
            self._note("connection", Reading("down", time.time()))
            for name in [n for n in self.readings if n != "connection"]:
                self._note(name, Reading(None, time.time(), "unavailable"))
        self._fail(waiting)

    def _fail(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(self._not_connected())

    def _not_connected(self) -> ConnectionLost:
        cause = "the node is stopping" if self._stopping else self.error or "not opened yet"
        return ConnectionLost(f"{self.name} is not connected: {cause}")

    def _close_instrument(self) -> None:
        try:
            self.instrument.close()
        except Exception:
            log.exception("%s: the driver failed while closing", self.name)

    def _note(self, name: str, reading: Reading) -> None:
        self.readings[name] = reading
        if self._publish is not None:
            self._publish(f"{self.name}.{name}", reading)


class InstrumentRack:
    """All instruments of a node.

    Parameters
    ----------
    config : NodeConfig
    publish : callable, optional
        Receives every reading, from the workers' threads.
    retry : bool
        Whether lost instruments are opened again.

    Examples
    --------
    ::

        rack = InstrumentRack(config, publish=telemetry.publish_reading)
        try:
            await rack.open()
            await rack.set("laser.power_dbm", 7.0)
            laser = rack["laser"]
            await laser.call(laser.instrument.some_method, argument)
        finally:
            rack.stop()
    """

    def __init__(
        self, config: NodeConfig, *, publish: Publish | None = None, retry: bool = True
    ) -> None:
        self.workers: dict[str, InstrumentWorker] = {
            name: InstrumentWorker(
                name,
                make_instrument(instrument),
                settings=instrument.settings,
                publish=publish,
                retry=retry,
            )
            for name, instrument in config.instruments.items()
        }

    def __getitem__(self, name: str) -> InstrumentWorker:
        try:
            return self.workers[name]
        except KeyError:
            known = ", ".join(self.workers) or "none"
            raise NotSupported(f"no instrument '{name}'; this node has: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.workers)

    def with_role(self, role: str) -> list[InstrumentWorker]:
        """Return the instruments that play `role`, in the order of the configuration."""
        return [w for w in self.workers.values() if role in w.instrument.roles]

    def start(self) -> None:
        """Start all workers; they open their instruments at the same time."""
        for worker in self.workers.values():
            worker.start()

    async def opened(self) -> dict[str, Identity | QkdctlError]:
        """Wait for the first attempt of every worker; return who answered, or why not."""
        outcome = await asyncio.gather(
            *(w.opened() for w in self.workers.values()), return_exceptions=True
        )
        found: dict[str, Identity | QkdctlError] = {}
        for name, result in zip(self.workers, outcome, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, QkdctlError):
                raise result
            found[name] = result
        return found

    async def open(self) -> dict[str, Identity]:
        """Start all workers and wait until every instrument is connected.

        Raises
        ------
        QkdctlError
            One or more failed; the message has a line for each. The class is that of the
            failures when they are all of one. The workers keep trying.
        """
        self.start()
        outcome = await self.opened()
        failed = {n: r for n, r in outcome.items() if isinstance(r, QkdctlError)}
        if failed:
            raise together(failed, self.workers)
        return {n: r for n, r in outcome.items() if isinstance(r, Identity)}

    def _find(self, dotted: str) -> tuple[InstrumentWorker, str]:
        instrument, dot, name = dotted.partition(".")
        if not dot or not name:
            raise NotSupported(f"expected instrument.name, got '{dotted}'")
        return self[instrument], name

    async def get(self, name: str) -> Any:
        """Read ``instrument.parameter``."""
        worker, parameter = self._find(name)
        return await worker.get(parameter)

    async def set(self, name: str, value: Any) -> Any:
        """Set ``instrument.parameter``; return the accepted value."""
        worker, parameter = self._find(name)
        return await worker.set(parameter, value)

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run ``instrument.action``."""
        worker, action = self._find(name)
        return await worker.action(action, *args, **kwargs)

    async def make_safe(self) -> dict[str, QkdctlError]:
        """Bring all instruments to their safe states at the same time; return the failures."""
        outcome = await asyncio.gather(
            *(asyncio.wrap_future(w.make_safe()) for w in self.workers.values()),
            return_exceptions=True,
        )
        failed: dict[str, QkdctlError] = {}
        for name, result in zip(self.workers, outcome, strict=True):
            if isinstance(result, QkdctlError):
                failed[name] = result
            elif isinstance(result, BaseException):
                failed[name] = QkdctlError(repr(result))
        return failed

    def describe(self) -> dict[str, Any]:
        """Return every instrument's declarations, identity and connection, as plain data."""
        return {
            name: {
                **worker.instrument.describe(),
                "identity": worker.identity,
                "connection": worker.connection,
            }
            for name, worker in self.workers.items()
        }

    def status(self) -> dict[str, Any]:
        """Return every instrument's connection, last error and last readings."""
        return {
            name: {
                "connection": worker.connection,
                "error": str(worker.error) if worker.error else None,
                "readings": {n: r for n, r in worker.readings.copy().items() if n != "connection"},
            }
            for name, worker in self.workers.items()
        }

    def stop(self) -> None:
        """Stop all workers at the same time and close the instruments."""
        stoppers = [threading.Thread(target=worker.stop) for worker in self.workers.values()]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()


def together(
    failed: Mapping[str, QkdctlError], workers: Mapping[str, InstrumentWorker]
) -> QkdctlError:
    """Return one error that tells all `failed` ones, a line each."""
    kinds = {type(error) for error in failed.values()}
    kind = kinds.pop() if len(kinds) == 1 else QkdctlError
    lines = [
        f"  {name} ({workers[name].instrument.address}): {type(error).__name__}: {error}"
        for name, error in failed.items()
    ]
    return kind(f"{len(failed)} of {len(workers)} instruments failed:\n" + "\n".join(lines))
