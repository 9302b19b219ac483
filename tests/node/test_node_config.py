"""A node's configuration is checked before anything is contacted, with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qkdctl.node.config import (
    find_driver,
    is_emulated_address,
    is_local_endpoint,
    load_node_config,
    make_instrument,
)
from qkdctl.roles.errors import ConfigError

GOOD = """\
node: {name: alice, role: transmitter, state_dir: ./run/alice}
command: {bind: "tcp://127.0.0.1:5570"}
telemetry: {bind: "ipc://run/alice.ipc"}
peer:
  name: bob
  channel: "tcp://127.0.0.1:5590"
  listen: true
  preshared: ./run/preshared.key
LINK
random: {source: kernel}
instruments:
  laser:
    driver: tests.node.laser_on_socket:SocketLaser
    address: "tcp://127.0.0.1:7101"
    serial: null
    limits:
      power_dbm: [6, 1.2e1]
    options:
      greeting: hi
    settings:
      power_dbm: 7
"""
LINK = "link: {}"


def write(folder: Path, text: str) -> Path:
    path = folder / "node.yaml"
    path.write_text(text.replace("LINK", LINK))
    return path


def test_a_good_file_gives_typed_values_and_paths_beside_it(tmp_path: Path) -> None:
    config = load_node_config(write(tmp_path, GOOD))
    assert config.node.role == "transmitter"
    assert config.node.state_dir == tmp_path / "run/alice"
    assert config.telemetry.bind == f"ipc://{tmp_path}/run/alice.ipc"
    assert config.peer is not None
    assert config.peer.preshared == tmp_path / "run/preshared.key"
    laser = config.instruments["laser"]
    assert laser.limits == {"power_dbm": (6.0, 12.0)}
    assert laser.timeout_s == 2.0
    assert make_instrument(laser).describe()["parameters"][1]["maximum"] == 12.0


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("name: alice,", "", r":1: node: 'name' is missing"),
        ("role: transmitter", "role: sender", r":1: node.role: .*receiver, transmitter; got 'send"),
        ("state_dir: ./run/alice", "state_dir: 3", r":1: node.state_dir: expected path, got int"),
        ("listen: true", "listen: maybe", r":7: peer.listen: expected bool, got str \('maybe'\)"),
        ("listen: true", "lisen: true", r":7: peer.lisen: unknown .*one of: name, channel"),
        ("listen: true", "name: carol", r":7: 'name' is given twice, first in line 5"),
        ("[6, 1.2e1]", "[6, high]", r":17: instruments.laser.limits.power_dbm\[1\]: .*'high'"),
        ("[6, 1.2e1]", "[6]", r":17: instruments.laser.limits.power_dbm: .*length 2"),
        ("[6, 1.2e1]", "[7, 6]", r":17: .*expected \[low, high\], got \[7, 6\]"),
        ("power_dbm: [6", "power_mw: [6", r":17: .*power_mw: .* declares no .*: enabled, power"),
        ("greeting: hi", "grating: 1", r":19: .*options.grating: .*these options: greeting"),
        ("power_dbm: 7", "power_dbm: 5", r":21: .*power_dbm = 5 dBm is outside 6.0 .. 12"),
        ("power_dbm: 7", "colour: 5", r":21: .*no 'colour'; it has: enabled"),
        ("power_dbm: 7", "lines: 5", r":21: instruments.laser.settings.lines: can only be read"),
        ("tests.node.laser_on_socket:SocketLaser", "itlaser", r":13: .*one of: .* itla, "),
        ("laser_on_socket:", "laser_on_sockets:", r":13: .*cannot be imported"),
        (":SocketLaser", ":LaserServer", r":13: .*is no qkdctl.roles.Instrument"),
        ("tcp://127.0.0.1:7101", "COM3", r":14: instruments.laser.address: .*'COM3'"),
        ("  laser:", "  la ser:", r":12: instruments.la ser: .*small letters"),
        ("  laser:", "  watch:", r":12: instruments.watch: .*none of: call, close"),
        ("tcp://127.0.0.1:5570", "tcp://0.0.0.0:5570", r":2: command.bind: .*other machines"),
        ("tcp://127.0.0.1:5570", "127.0.0.1:5570", r":2: command.bind: expected tcp://host:port"),
        ("kernel", "seeded", r":10: random: 'source: seeded' needs 'seed'"),
        ("source: kernel", "seed: 3", r":10: random.seed: only"),
        ("instruments:", "instruments: [", r":\d+: no valid YAML"),
        ("serial: null", "serial: [1", r":\d+: no valid YAML"),
    ],
)
def test_every_mistake_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match="^" + re.escape(str(path)) + complaint):
        load_node_config(path)


def test_seeded_randomness_is_refused_next_to_a_real_instrument(tmp_path: Path) -> None:
    seeded = GOOD.replace("source: kernel", "source: seeded, seed: 7")
    assert load_node_config(write(tmp_path, seeded)).random.seed == 7
    with pytest.raises(ConfigError, match=r":10: random.source: .*'laser' at tcp://10.0.0.5:7101"):
        load_node_config(write(tmp_path, seeded.replace("127.0.0.1:7101", "10.0.0.5:7101")))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "\xff\xfe", "a: &a [*a]\n"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"node.yaml"):
        load_node_config(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_node_config(tmp_path / "missing.yaml")


def test_addresses_are_told_apart_on_the_safe_side() -> None:
    for emulated in (
        "tcp://127.0.0.1:5",
        "socket://localhost:7101",
        "TCPIP0::127.0.0.1::2000::SOCKET",
        "/dev/pts/3",
        "ASRL/dev/pts/3::INSTR",
        "tcp://[::1]:5",
    ):
        assert is_emulated_address(emulated), emulated
    for maybe_real in (
        "tcp://192.168.0.4:5",
        "TCPIP0::pm100.lab::INSTR",
        "/dev/ttyUSB0",
        "ASRL1::INSTR",
        "GPIB0::4::INSTR",
        "USB0::4883::32882::P1::INSTR",
        "tcp://127.0.0.1:5,tcp://10.0.0.1:5",
        "",
    ):
        assert not is_emulated_address(maybe_real), maybe_real
    assert is_local_endpoint("ipc:///tmp/x")
    for public in ("tcp://*:5570", "tcp://0.0.0.0:5570", "tcp://eth0:5570", "tcp://[::]:5570"):
        assert not is_local_endpoint(public), public


def test_our_own_drivers_are_found_like_a_strangers() -> None:
    assert find_driver("thorlabs_pm100").model == "thorlabs_pm100"
