"""Supervised instruments: in order, one thread each, and healing by themselves."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qkdctl.node.config import NodeConfig, load_node_config
from qkdctl.node.instruments import InstrumentRack, InstrumentWorker, Reading
from qkdctl.roles.errors import ConnectionLost, NotSupported, OutOfRange, QkdctlError, Timeout
from tests.node.laser_on_socket import LaserServer, SocketLaser


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def rack_config(folder: Path, instruments: dict[str, str]) -> NodeConfig:
    lines = "".join(
        f"  {name}: {{driver: 'tests.node.laser_on_socket:SocketLaser', address: '{address}',"
        " serial: S1, timeout_s: 1.0, limits: {power_dbm: [2, 9]}}\n"
        for name, address in instruments.items()
    )
    path = folder / "node.yaml"
    path.write_text(
        "node: {name: alice, role: transmitter, state_dir: .}\n"
        "command: {bind: 'tcp://127.0.0.1:*'}\ntelemetry: {bind: 'tcp://127.0.0.1:*'}\n"
        f"link: {{}}\ninstruments:\n{lines}"
    )
    return load_node_config(path)


def test_values_are_read_set_within_limits_and_published(tmp_path: Path) -> None:
    seen: dict[str, Reading] = {}

    async def scenario(server: LaserServer) -> None:
        rack = InstrumentRack(
            rack_config(tmp_path, {"laser": server.address}), publish=seen.__setitem__
        )
        try:
            identities = await rack.open()
            assert identities["laser"].serial == "S1"
            assert await rack.set("laser.power_dbm", 7.123) == 7.12, "what the laser accepted"
            assert await rack.get("laser.power_dbm") == 7.12
            with pytest.raises(OutOfRange, match=r"outside 2.0 .. 9"):
                await rack.set("laser.power_dbm", 9.5)
            with pytest.raises(NotSupported, match="it has: enabled"):
                await rack.get("laser.colour")
            with pytest.raises(NotSupported, match="this node has: laser"):
                await rack.get("maser.power_dbm")
            assert await rack.call("laser.blink", 2) == "blinked 2"
            with pytest.raises(NotSupported, match="no action 'close'"):
                await rack.call("laser.close")
            server.power = 3.0  # somebody turns the knob
            await until(lambda: seen["laser.power_dbm"].value == 3.0)
            assert seen["laser.power_dbm"].quality == "good"
            await rack.set("laser.enabled", True)
            assert await rack.make_safe() == {}
            assert not server.enabled
            assert [w.name for w in rack.with_role("laser")] == ["laser"]
        finally:
            rack.stop()
        with pytest.raises(ConnectionLost, match="stopping"):
            await rack.get("laser.power_dbm")

    with LaserServer() as server:
        asyncio.run(scenario(server))


def test_a_lost_instrument_is_unavailable_and_comes_back_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    seen: dict[str, Reading] = {}

    async def scenario() -> None:
        server = LaserServer()
        worker = InstrumentWorker(
            "laser",
            SocketLaser(server.address, timeout_s=1.0),
            settings={"power_dbm": 5.0},
            publish=seen.__setitem__,
        )
        worker.start()
        try:
            await worker.opened()
            await until(lambda: "laser.power_dbm" in seen)
            server.close()
            await until(lambda: worker.connection == "down")
            assert seen["laser.power_dbm"] == worker.readings["power_dbm"]
            assert seen["laser.power_dbm"].value is None
            assert seen["laser.power_dbm"].quality == "unavailable"
            with pytest.raises(ConnectionLost, match="laser is not connected"):
                await worker.get("power_dbm")
            await asyncio.sleep(1.2)  # some attempts fail meanwhile
            with LaserServer(server.port):
                await until(lambda: worker.connection == "up")
                assert await worker.get("power_dbm") == 5.0, "the settings are set again"
                await until(lambda: seen["laser.connection"].value == "up")
        finally:
            worker.stop()

    asyncio.run(scenario())
    messages = [r.getMessage() for r in caplog.records if r.name == "qkdctl.node.instruments"]
    assert sum("not connected" in m for m in messages) == 1, "the loss is logged once"
    assert sum("connected to Lamp" in m for m in messages) == 2


def test_another_instrument_at_the_address_is_not_taken(tmp_path: Path) -> None:
    async def scenario(right: LaserServer, wrong: LaserServer, dead: str) -> None:
        config = rack_config(
            tmp_path, {"right": right.address, "wrong": wrong.address, "dead": dead}
        )
        rack = InstrumentRack(config, retry=False)
        try:
            with pytest.raises(QkdctlError) as caught:
                await rack.open()
        finally:
            rack.stop()
        first, *lines = str(caught.value).splitlines()
        assert first == "2 of 3 instruments failed:"
        assert "wrong (" in lines[0]
        assert "WrongInstrument: serial S2, not S1" in lines[0]
        assert "dead (" in lines[1]
        assert "ConnectionLost" in lines[1]

    with LaserServer() as gone:
        dead = gone.address
    with LaserServer() as right, LaserServer(serial="S2") as wrong:
        asyncio.run(scenario(right, wrong, dead))


def test_a_silent_instrument_is_given_up_and_waiting_calls_with_it() -> None:
    async def scenario(server: LaserServer) -> None:
        worker = InstrumentWorker("laser", SocketLaser(server.address, timeout_s=0.2))
        worker.start()
        try:
            await worker.opened()
            server.deaf = True
            calls = [asyncio.create_task(worker.get("enabled")) for _ in range(6)]
            outcome = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(o, (Timeout, ConnectionLost)) for o in outcome)
            server.deaf = False
            await until(lambda: worker.connection == "up")
            assert await worker.get("enabled") is False
        finally:
            worker.stop()

    with LaserServer() as server:
        asyncio.run(scenario(server))


def test_the_safe_state_overtakes_waiting_calls_and_a_cancelled_call_is_not_made() -> None:
    async def scenario(server: LaserServer) -> None:
        worker = InstrumentWorker("laser", SocketLaser(server.address))
        worker.start()
        try:
            await worker.opened()
            gate = threading.Event()
            done: list[str] = []
            blocking = asyncio.create_task(worker.call(gate.wait))
            waiting = asyncio.create_task(worker.call(done.append, "later"))
            cancelled = asyncio.create_task(worker.call(done.append, "never"))
            await asyncio.sleep(0.05)
            safe = worker.submit(lambda: done.append("safe"), urgent=True)
            cancelled.cancel()
            await asyncio.sleep(0.05)
            gate.set()
            await asyncio.gather(blocking, waiting, asyncio.wrap_future(safe))
            assert done == ["safe", "later"]
        finally:
            worker.stop()

    with LaserServer() as server:
        asyncio.run(scenario(server))
