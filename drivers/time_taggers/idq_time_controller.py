"""ID Quantique ID900 / ID1000 Time Controller: time tags with a reference marker.

Sources: IDQ *Time Controller Series User Manual* (command tree) and IDQ's Python samples. The
instrument takes SCPI text in ZeroMQ messages (port 5555). Tags come by way of IDQ's
DataLinkTarget program (DLT, port 6060) on this or another computer, as one PAIR stream per channel.

Conventions
-----------
Where the manual is silent we assume the following (guesses, to be checked on an instrument):

* With ``--with-ref-index`` a message is a run of little-endian uint64 pairs *(timestamp, index)*.
* With a REF linked, *timestamp* is in picoseconds since the last START edge and *index* is the
  number of START edges since ``REC:PLAY``. Both carry on over the borders of sub-acquisitions.
* Index 0 means before any START edge; the timestamp is then since the start of the recording.
* An empty sub-acquisition sends no message, because a message of zero length ends the stream.
* Inputs take thresholds of -2 .. 2 V; ``COUN:INTE`` is in nanoseconds.

Messages carry no sub-acquisition number, so every channel is its own ordered stream of (index,
time). A block is what has come from all channels when each has delivered, or when one and a half
periods have passed. Tags of one START edge can therefore lie in consecutive blocks: a consumer that
closes a marker's interval waits for two more blocks.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from drivers.transports.endpoint import parse_endpoint
from drivers.transports.identification import parse_identification, require_identity
from drivers.transports.zmq_request import ZmqRequest
from qkdctl.roles import (
    ConnectionLost,
    Denied,
    Fails,
    Identity,
    Instrument,
    InstrumentFault,
    InvalidValue,
    OutOfRange,
    Parameter,
    ProtocolError,
    TagBlock,
    Timeout,
)

INPUTS = (1, 2, 3, 4)
MODELS = ("ID900", "ID1000")
THRESHOLD_V = 2.0
SHORTEST_BLOCK_S = 0.2
LONGEST_BLOCK_S = 10.0
DEAD_TIME_PS = 40_000  # between sub-acquisitions, the least the instrument allows
COUNT_TIME_NS = 1_000_000_000
RAW_LINK_PORT = 5555  # the instrument sends channel n to DLT from this port + n; so DLT's ids end

GRACE_PERIODS = 1.5  # how many periods a block waits for a channel that delivers nothing
LOSS_CHECK_S = 1.0
LOSS_CHECKS_MISSED = 3  # this many in a row without an answer end the stream
SILENCE_S = 5.0
DRAIN_S = 1.0  # after stop_stream, how long the end of a channel is waited for
POLL_S = 0.05
PORT_ATTEMPTS = 3


def decode_tags(message: bytes) -> NDArray[np.uint64]:
    """Return a stream message as (n, 2) uint64: timestamp in ps, index of the START edge."""
    if len(message) % 16:
        raise ProtocolError(f"a tag message has {len(message)} bytes, not a multiple of 16")
    return np.frombuffer(message, dtype="<u8").reshape(-1, 2)


def merge_tags(
    pieces: Sequence[tuple[int, NDArray[np.uint64]]], *, sequence: int, lost: int
) -> TagBlock:
    """Return one block of the channels' pieces, sorted by (marker index, time).

    Raises `ProtocolError` for a time that does not fit into 63 bits.
    """
    if not pieces:
        return TagBlock(
            sequence,
            np.empty(0, np.int64),
            np.empty(0, np.uint8),
            np.empty(0, np.uint64),
            lost,
        )
    tags = np.concatenate([tags for _, tags in pieces])
    time_ps, index = tags[:, 0], tags[:, 1]
    latest, first = int(time_ps.max()), int(index.min())
    if latest >= 1 << 63:
        raise ProtocolError(f"a tag at {latest} ps")
    channel = np.repeat(
        np.array([channel for channel, _ in pieces], np.uint8), [len(tags) for _, tags in pieces]
    )
    # One combined key sorts 5 to 10 times faster than two (the pieces are sorted runs already).
    time_bits = latest.bit_length()
    if time_bits + (int(index.max()) - first).bit_length() <= 64:
        key = ((index - np.uint64(first)) << np.uint64(time_bits)) | time_ps
        order = np.argsort(key, kind="stable")
    else:
        order = np.lexsort((time_ps, index))
    return TagBlock(sequence, time_ps[order].astype(np.int64), channel[order], index[order], lost)


class TagStream:
    """The PAIR sockets of one recording, one per channel."""

    def __init__(self, block_s: float) -> None:
        self.block_s = block_s
        self.channels: list[int] = []
        self.ids: list[str] = []
        self.ended: set[int] = set()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._sockets: dict[int, tuple[zmq.Socket[bytes], zmq.Socket[bytes]]] = {}

    def connect(self, channel: int, endpoint: str) -> None:
        """Connect a channel; DLT binds the endpoint later, so this waits for nobody."""
        pair: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        pair.linger = 0
        pair.reconnect_ivl = 10
        monitor: zmq.Socket[bytes] = pair.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        monitor.linger = 0
        pair.connect(endpoint)
        with self._lock:
            self._sockets[channel] = (pair, monitor)
            self.channels.append(channel)

    def disconnect(self, channel: int) -> None:
        """Give a channel up."""
        with self._lock:
            self._release(channel)
            self.channels.remove(channel)

    def close(self) -> None:
        """Disconnect all channels. May be called twice, and from any thread."""
        with self._lock:
            for channel in list(self._sockets):
                self._release(channel)
            self.ended.update(self.channels)

    def receive(self, timeout_s: float) -> list[tuple[int, NDArray[np.uint64]]]:
        """Return what arrives within the time, as (channel, tags); empty if nothing does.

        A channel whose stream ends joins `ended`. Raises `ConnectionLost` when one breaks off.
        """
        arrived: list[tuple[int, NDArray[np.uint64]]] = []
        with self._lock:
            poller = zmq.Poller()
            for pair, monitor in self._sockets.values():
                poller.register(pair, zmq.POLLIN)
                poller.register(monitor, zmq.POLLIN)
            ready = dict(poller.poll(max(0, round(timeout_s * 1000))))
            for channel, (pair, monitor) in list(self._sockets.items()):
                broken = monitor in ready
                while channel in self._sockets and pair.poll(0):
                    message = pair.recv(zmq.DONTWAIT)
                    if message:
                        arrived.append((channel, decode_tags(message)))
                    else:
                        self._release(channel)
                        self.ended.add(channel)
                if broken and channel in self._sockets:
                    if not self.stopped.is_set():
                        raise ConnectionLost(f"the tag stream of channel {channel} broke off")
                    self._release(channel)
                    self.ended.add(channel)
        return arrived

    def _release(self, channel: int) -> None:
        pair, monitor = self._sockets.pop(channel)
        pair.disable_monitor()
        pair.close()
        monitor.close()


class IdqTimeController(Instrument):
    """ID900 / ID1000 Time Controller with a DataLinkTarget program.

    Parameters
    ----------
    address : str
        ``tcp://host:5555`` of the instrument.
    dlt : str, optional
        ``tcp://host:6060`` of DataLinkTarget; by default on ``stream_host``.
    stream_host : str
        Where DataLinkTarget offers the tag streams (it binds the loopback interface).
    stream_ports : sequence of int, optional
        Ports of the streams of channels 1..4; by default free ones of this computer.
    """

    model = "idq_time_controller"
    roles = ("time_tagger",)
    fails = Fails.HOLD

    resolution_ps = Parameter(float, unit="ps", doc="Bin width of the time stamps.")
    input_threshold_v = Parameter(
        list, unit="V", access="rw", minimum=-THRESHOLD_V, maximum=THRESHOLD_V, length=4,
        doc="Discriminator threshold of inputs 1..4.",
    )  # fmt: skip
    start_threshold_v = Parameter(
        float, unit="V", access="rw", minimum=-THRESHOLD_V, maximum=THRESHOLD_V,
        doc="Discriminator threshold of the START input.",
    )  # fmt: skip
    count_rates = Parameter(list, unit="1/s", length=4, poll_s=1.0, doc="Rates of inputs 1..4.")
    stage = Parameter(str, poll_s=2.0, doc="Stage of the recording: PLAYING or STOPPED.")
    lost_tags = Parameter(int, doc="Tags reported as lost since the recording was set up.")

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 2.0,
        limits: Mapping[str, tuple[float, float]] | None = None,
        serial: str | None = None,
        dlt: str | None = None,
        stream_host: str = "127.0.0.1",
        stream_ports: Sequence[int] | None = None,
    ) -> None:
        super().__init__(address, timeout_s=timeout_s, limits=limits, serial=serial)
        self._host, _ = parse_endpoint(address)
        dlt = dlt or f"tcp://{stream_host}:6060"
        parse_endpoint(dlt)
        if stream_ports is not None and len(set(stream_ports)) != len(INPUTS):
            raise InvalidValue(f"{self.model}: stream_ports takes {len(INPUTS)} different ports")
        self._stream_host = stream_host
        self._stream_ports = None if stream_ports is None else tuple(stream_ports)
        self._control = ZmqRequest(address, timeout_s=timeout_s, greet=self._greet)
        self._dlt = ZmqRequest(dlt, timeout_s=timeout_s, greet=self._greet_dlt)
        self._identity: Identity | None = None
        self._stream: TagStream | None = None

    # -- life -------------------------------------------------------------------------------

    def open(self) -> Identity:
        """Connect to the instrument and to DataLinkTarget, and identify."""
        self.close()
        try:
            self._control.open()
            self._dlt.open()
        except BaseException:
            self.close()
            raise
        assert self._identity is not None
        return self._identity

    def close(self) -> None:
        """End a recording, and disconnect."""
        with suppress(Exception):  # the instrument may be gone; disconnecting goes on regardless
            self.stop_stream()
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._dlt.close()
        self._control.close()

    def identify(self) -> Identity:
        """Ask ``*IDN?``."""
        return parse_identification(self._control.request("*IDN?"), self.address)

    def _greet(self) -> None:
        self._identity = require_identity(
            self.identify(), models=MODELS, serial=self.expected_serial, where=self.address
        )
        for n in INPUTS:
            self._control.request(f"INPU{n}:COUN:MODE CYCL")
            self._control.request(f"INPU{n}:COUN:INTE {COUNT_TIME_NS}")

    def _greet_dlt(self) -> None:
        self._acquisitions()

    # -- parameters -------------------------------------------------------------------------

    def read_resolution_ps(self) -> float:
        """Ask for the bin width."""
        return self._number("DEVI:RES:BWID?")

    def read_input_threshold_v(self) -> list[float]:
        """Ask for the thresholds."""
        return [self._number(f"INPU{n}:THRE?") for n in INPUTS]

    def write_input_threshold_v(self, value: list[float]) -> list[float]:
        """Set the thresholds."""
        for n, volts in zip(INPUTS, value, strict=True):
            self._control.request(f"INPU{n}:THRE {volts:.6g}")
        return self.read_input_threshold_v()

    def read_start_threshold_v(self) -> float:
        """Ask for the threshold of START."""
        return self._number("STAR:THRE?")

    def write_start_threshold_v(self, value: float) -> float:
        """Set the threshold of START."""
        self._control.request(f"STAR:THRE {value:.6g}")
        return self.read_start_threshold_v()

    def read_count_rates(self) -> list[float]:
        """Ask for the counters of the inputs, over the integration time set at connecting."""
        return [self._number(f"INPU{n}:COUN?") * 1e9 / COUNT_TIME_NS for n in INPUTS]

    def read_stage(self) -> str:
        """Ask for the stage of the recording."""
        return self._control.request("REC:STAG?").upper()

    def read_lost_tags(self) -> int:
        """Ask for the lost tags of all channels."""
        return self._lost(self._stream.channels if self._stream is not None else INPUTS)

    # -- stream -----------------------------------------------------------------------------

    def start_stream(self, channels: tuple[int, ...], *, block_s: float = 0.2) -> None:
        """Begin an endless recording of `channels`, referenced to the START input.

        A recording that is still running, also one that an earlier process left behind, is ended
        first. ``block_s`` is the length of a sub-acquisition, at least 0.2 s.
        """
        if not channels or len(set(channels)) != len(channels) or not set(channels) <= set(INPUTS):
            raise OutOfRange(f"{self.model}: channels are different ones of {INPUTS}: {channels}")
        if not SHORTEST_BLOCK_S <= block_s <= LONGEST_BLOCK_S:
            raise OutOfRange(
                f"{self.model}: block_s = {block_s:g} s is outside "
                f"{SHORTEST_BLOCK_S} .. {LONGEST_BLOCK_S} s"
            )
        if self._stream is not None:
            self.stop_stream()
            self._stream.close()
        self._stop_leftovers(channels)
        self._set_up_recording(channels, block_s)
        self._stream = stream = TagStream(block_s)
        try:
            for channel in channels:
                self._control.request(f"RAW{channel}:ERRO:CLEA")
                self._start_channel(stream, channel)
                self._control.request(f"RAW{channel}:SEND ON")
            self._control.request("REC:PLAY")
            deadline = time.monotonic() + self.timeout_s
            while (stage := self.read_stage()) != "PLAYING":
                if time.monotonic() > deadline:
                    raise InstrumentFault(f"{self.address}: {stage} in spite of REC:PLAY")
                time.sleep(POLL_S)
        except BaseException:
            with suppress(Exception):  # the first failure is the one to report
                self.stop_stream()
            stream.close()
            self._stream = None
            raise

    def blocks(self) -> Iterator[TagBlock]:
        """Yield blocks as they arrive; ends when the stream is stopped.

        An empty block is yielded when a period passes without tags. Raises `ConnectionLost` when
        the stream breaks off, and `InstrumentFault` or `Timeout` when no tags come and the
        instrument does not say that it is recording.
        """
        stream = self._stream
        if stream is None:
            raise Denied(f"{self.model}: start_stream comes before blocks")
        grace_s = GRACE_PERIODS * stream.block_s
        live = list(stream.channels)
        sequence, lost_before, missed = 0, 0, 0
        heard = checked = emitted = ending = time.monotonic()
        pieces: list[tuple[int, NDArray[np.uint64]]] = []
        lost = 0
        try:
            while True:
                arrived = stream.receive(min(POLL_S, emitted + grace_s - time.monotonic()))
                pieces += arrived
                now = time.monotonic()
                if arrived:
                    heard = now
                live = [channel for channel in stream.channels if channel not in stream.ended]
                delivered = {channel for channel, _ in pieces}
                if not stream.stopped.is_set():
                    ending = now
                    if now - heard > SILENCE_S:
                        self._require_recording()
                        heard = now
                    if now - checked > LOSS_CHECK_S:
                        checked = now
                        try:
                            total = self._lost(live)
                            lost, lost_before = lost + max(0, total - lost_before), total
                            missed = 0
                        except (ConnectionLost, ProtocolError, Timeout):
                            missed += 1
                            if missed == LOSS_CHECKS_MISSED:
                                raise
                elif now - max(heard, ending) > DRAIN_S:
                    live = []
                if (pieces and delivered >= set(live)) or now - emitted >= grace_s:
                    yield merge_tags(pieces, sequence=sequence, lost=lost)
                    sequence, lost, pieces = sequence + 1, 0, []
                    emitted = time.monotonic()
                if not live and not pieces:
                    return
        finally:
            stream.close()

    def stop_stream(self) -> None:
        """End the recording; `blocks` delivers what is on its way, and finishes.

        What the instrument had not sent of the last sub-acquisition is lost. `InstrumentFault`
        when DataLinkTarget reports errors of the recording.
        """
        stream = self._stream
        if stream is None or stream.stopped.is_set():
            return
        stream.stopped.set()
        errors: list[Any] = []
        try:
            self._control.request("REC:STOP")
            for channel in stream.channels:
                self._control.request(f"RAW{channel}:SEND OFF")
        finally:
            for acquisition in stream.ids:
                errors += self._stop_acquisition(acquisition)
        if errors:
            raise InstrumentFault(f"{self._dlt.address}: {'; '.join(map(str, errors))}")

    def _set_up_recording(self, channels: tuple[int, ...], block_s: float) -> None:
        width_ps = round(block_s * 1e12)
        commands = ["STAR:ENAB ON"]
        commands += [f"INPU{n}:ENAB ON" for n in channels]
        for n in channels:
            commands += [f"RAW{n}:REF:LINK STARt", f"RAW{n}:STOP:LINK INPU{n}"]
        commands += [
            "REC:TRIG:ARM:MODE MANU",
            "REC:ENAB ON",
            "REC:STOP",
            "REC:NUM INF",
            f"REC:PWID {width_ps};PPER {width_ps + DEAD_TIME_PS}",
        ]
        for command in commands:
            self._control.request(command)

    def _start_channel(self, stream: TagStream, channel: int) -> None:
        attempts = PORT_ATTEMPTS if self._stream_ports is None else 1
        for attempt in range(1, attempts + 1):
            port = self._stream_port(channel)
            stream.connect(channel, f"tcp://{self._stream_host}:{port}")
            try:
                answer = self._ask_dlt(
                    f"start-stream --address {self._host} --channel {channel} "
                    f"--stream-port {port} --with-ref-index"
                )
            except InstrumentFault:
                # A free port of a moment ago may be taken by now.
                stream.disconnect(channel)
                if attempt == attempts:
                    raise
                continue
            if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
                raise ProtocolError(f"{self._dlt.address}: start-stream answered {answer!r:.80}")
            stream.ids.append(answer["id"])
            return

    def _stream_port(self, channel: int) -> int:
        if self._stream_ports is not None:
            return self._stream_ports[channel - 1]
        with socket.socket() as probe:
            probe.bind((self._stream_host, 0))
            port: int = probe.getsockname()[1]
            return port

    def _require_recording(self) -> None:
        stage = self.read_stage()
        if stage != "PLAYING":
            raise InstrumentFault(f"{self.address}: the recording ended by itself ({stage})")

    # -- DataLinkTarget ---------------------------------------------------------------------

    def _ask_dlt(self, command: str) -> Any:
        text = self._dlt.request(command)
        try:
            answer = msgspec.json.decode(text)
        except msgspec.DecodeError:
            raise ProtocolError(
                f"{self._dlt.address}: {command} was answered by {text[:80]!r}"
            ) from None
        if isinstance(answer, dict) and "error" in answer:
            error = answer["error"]
            description = error.get("description") if isinstance(error, dict) else error
            raise InstrumentFault(f"{self._dlt.address}: {command}: {description}")
        return answer

    def _acquisitions(self) -> list[str]:
        answer = self._ask_dlt("list")
        if not isinstance(answer, list) or not all(isinstance(i, str) for i in answer):
            raise ProtocolError(f"{self._dlt.address}: list was answered by {answer!r:.80}")
        return answer

    def _stop_leftovers(self, channels: tuple[int, ...]) -> None:
        """End acquisitions of our channels that an earlier process left running in DLT."""
        ours = {f"{self._host}:{RAW_LINK_PORT + n}" for n in channels}
        for acquisition in self._acquisitions():
            if acquisition in ours:
                self._stop_acquisition(acquisition)

    def _stop_acquisition(self, acquisition: str) -> list[Any]:
        answer = self._ask_dlt(f"stop --id {acquisition}")
        status = answer.get("status") if isinstance(answer, dict) else None
        errors = status.get("errors") if isinstance(status, dict) else None
        return errors if isinstance(errors, list) else []

    # -- answers ----------------------------------------------------------------------------

    def _number(self, question: str) -> float:
        """Return a numeric answer; it may carry a unit, as in ``100TB`` or ``0.5V``."""
        answer = self._control.request(question)
        found = re.fullmatch(r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*[A-Za-z]*", answer)
        if found is None:
            raise ProtocolError(f"{self.address}: {question} was answered by {answer[:80]!r}")
        return float(found.group(1))

    def _lost(self, channels: Sequence[int]) -> int:
        return sum(int(self._number(f"RAW{n}:ERRO?")) for n in channels)
