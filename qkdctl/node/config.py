"""The configuration of one node: a YAML file, typed, with every error at file and line.

See `NodeConfig` for the shape. Paths in it are relative to the file itself.
"""

from __future__ import annotations

import importlib
import inspect
import ipaddress
import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from qkdctl.node.yaml_document import YamlDocument
from qkdctl.roles.errors import ConfigError, QkdctlError
from qkdctl.roles.instrument import Instrument, check_value

DRIVER_GROUP = "qkdctl.drivers"
# An instrument's name stands in topics and as an attribute of the client, beside these.
RESERVED = frozenset(
    ("node", "link", "ping", "describe", "status", "start", "stop", "get", "set", "call", "keys",
     "snapshot", "watch", "close", "request", "endpoint")
)  # fmt: skip
Name = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Seconds = Annotated[float, Meta(gt=0)]


class NodeSection(Struct, frozen=True, forbid_unknown_fields=True):
    """Who this node is, and where it keeps its store."""

    name: Name
    role: Literal["transmitter", "receiver"]
    state_dir: Path


class BindSection(Struct, frozen=True, forbid_unknown_fields=True):
    """A socket clients connect to. Anything but loopback and ipc needs the CURVE keys."""

    bind: str
    curve_secret: Path | None = None  # this node's certificate, a .key_secret file
    curve_clients: Path | None = None  # folder of the .key files of those who may connect


class PeerSection(Struct, frozen=True, forbid_unknown_fields=True):
    """The other node of the link."""

    name: Name
    channel: str
    preshared: Path
    listen: bool = False  # one of the two binds, the other connects


class RandomSection(Struct, frozen=True, forbid_unknown_fields=True):
    """Where random bits come from."""

    source: Literal["kernel", "seeded"] = "kernel"
    seed: int | None = None


class InstrumentConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One instrument: its driver, where it is, and what it may do."""

    driver: str
    address: str
    serial: str | None = None
    timeout_s: Seconds = 2.0
    limits: dict[str, tuple[float, float]] = {}
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}


class NodeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole node."""

    node: NodeSection
    command: BindSection
    telemetry: BindSection
    link: Any  # a `qkdctl.link.config.LinkConfig`
    instruments: dict[str, InstrumentConfig]
    peer: PeerSection | None = None
    random: RandomSection = RandomSection()


S = TypeVar("S", BindSection, PeerSection)


def load_node_config(path: str | Path) -> NodeConfig:
    """Read and check a node's configuration; no instrument is contacted.

    Raises
    ------
    ConfigError
        With file, line, what was expected and what came.
    """
    document = YamlDocument(Path(path))
    folder = Path(path).resolve().parent

    def path_hook(kind: type, value: Any) -> Any:
        if kind is Path:
            if not isinstance(value, str) or not value:
                raise ValueError(f"Expected `path`, got `{type(value).__name__}`")
            return folder / Path(value).expanduser()
        raise NotImplementedError(f"no conversion to {kind}")

    config = document.convert(NodeConfig, dec_hook=path_hook)
    link = document.convert(_link_config_type(), at=["link"], dec_hook=path_hook)
    config = msgspec.structs.replace(
        config,
        link=link,
        command=_with_ipc_path(config.command, "bind", folder),
        telemetry=_with_ipc_path(config.telemetry, "bind", folder),
        peer=config.peer and _with_ipc_path(config.peer, "channel", folder),
    )
    for section in ("command", "telemetry"):
        _check_bind(document, section, getattr(config, section))
    _check_random(document, config)
    for name, instrument in config.instruments.items():
        _check_instrument(document, name, instrument)
    return config


def _with_ipc_path(section: S, field: str, folder: Path) -> S:
    endpoint = getattr(section, field)
    if endpoint.startswith("ipc://") and not endpoint.startswith("ipc://@"):
        endpoint = f"ipc://{folder / endpoint.removeprefix('ipc://')}"
    return msgspec.structs.replace(section, **{field: endpoint})


def _link_config_type() -> Any:
    # Imported here: the link's own modules may import this package's sections.
    try:
        return importlib.import_module("qkdctl.link.config").LinkConfig
    except ModuleNotFoundError as error:
        if error.name != "qkdctl.link.config":
            raise
        return dict[str, Any]


def _check_bind(document: YamlDocument, name: str, section: BindSection) -> None:
    at = [name, "bind"]
    if not re.match(r"^(tcp://[^/]+:(\d+|\*)|ipc://.+)$", section.bind):
        raise document.error(at, f"expected tcp://host:port or ipc://path, got {section.bind!r}")
    if (section.curve_secret is None) != (section.curve_clients is None):
        raise document.error([name], "curve_secret and curve_clients are needed together")
    if section.curve_secret is not None and section.curve_clients is not None:
        if not section.curve_secret.is_file():
            raise document.error(
                [name, "curve_secret"], f"expected a certificate file, found no such file "
                f"({section.curve_secret})",
            )  # fmt: skip
        if not section.curve_clients.is_dir():
            raise document.error(
                [name, "curve_clients"], f"expected a folder with the clients' .key files, found "
                f"no such folder ({section.curve_clients})",
            )  # fmt: skip
    elif not is_local_endpoint(section.bind):
        raise document.error(
            at,
            f"{section.bind} can be reached from other machines: expected a loopback or ipc "
            "address, or curve_secret and curve_clients beside it",
        )


def _check_random(document: YamlDocument, config: NodeConfig) -> None:
    if config.random.source == "kernel":
        if config.random.seed is not None:
            raise document.error(["random", "seed"], "only 'source: seeded' takes a seed")
        return
    if config.random.seed is None:
        raise document.error(["random"], "'source: seeded' needs 'seed'")
    for name, instrument in config.instruments.items():
        if not is_emulated_address(instrument.address):
            raise document.error(
                ["random", "source"],
                f"seeded randomness is for emulation only, but instrument '{name}' at "
                f"{instrument.address} may be a real one; use 'source: kernel'",
            )


def _check_instrument(document: YamlDocument, name: str, config: InstrumentConfig) -> None:
    here = ["instruments", name]
    if not re.match(r"^[a-z][a-z0-9_]*$", name) or name in RESERVED:
        raise document.error(
            here,
            "an instrument's name has small letters, digits and _, starts with a letter, and is "
            f"none of: {', '.join(sorted(RESERVED))}",
        )
    try:
        driver = find_driver(config.driver)
    except ConfigError as error:
        raise document.error([*here, "driver"], str(error)) from None
    for parameter, (low, high) in config.limits.items():
        at = [*here, "limits", parameter]
        if parameter not in driver.parameters():
            known = ", ".join(driver.parameters())
            raise document.error(at, f"driver {config.driver} declares no '{parameter}': {known}")
        if low > high:
            raise document.error(at, f"expected [low, high], got [{low:g}, {high:g}]")
    accepted = inspect.signature(driver).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    options = [n for n in accepted if n not in ("address", "timeout_s", "limits", "serial")]
    for option in config.options:
        if option not in options and not takes_any:
            known = ", ".join(options) or "none"
            raise document.error(
                [*here, "options", option], f"driver {config.driver} takes these options: {known}"
            )
    for setting, value in config.settings.items():
        at = [*here, "settings", setting]
        try:
            declared = driver.parameter(setting)
            if declared.access == "r":
                raise document.error(at, "can only be read")
            check_value(declared, value, config.limits.get(setting), name)
        except ConfigError:
            raise
        except QkdctlError as error:
            raise document.error(at, str(error)) from None
    try:
        make_instrument(config).close()  # drivers check their address when they are made
    except QkdctlError as error:
        raise document.error([*here, "address"], str(error)) from None


def find_driver(name: str) -> type[Instrument]:
    """Return a driver by its name in the entry-point group, or as ``package.module:Class``.

    Raises
    ------
    ConfigError
        There is none of this name (the message lists those installed), or it cannot be imported.
    """
    installed = {e.name: e for e in entry_points(group=DRIVER_GROUP)}
    try:
        if name in installed:
            driver = installed[name].load()
        elif ":" in name:
            module, _, attribute = name.partition(":")
            driver = getattr(importlib.import_module(module), attribute)
        else:
            raise ConfigError(
                f"unknown driver '{name}'; expected one of: {', '.join(sorted(installed))}, "
                "or package.module:Class"
            )
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"driver '{name}' cannot be imported: {error}") from None
    if not (isinstance(driver, type) and issubclass(driver, Instrument)):
        raise ConfigError(f"driver '{name}' is no qkdctl.roles.Instrument")
    return driver


def make_instrument(config: InstrumentConfig) -> Instrument:
    """Make the driver object of one instrument; nothing is contacted before its ``open()``."""
    return find_driver(config.driver)(
        config.address,
        timeout_s=config.timeout_s,
        limits=config.limits,
        serial=config.serial,
        **config.options,
    )


def is_local_endpoint(endpoint: str) -> bool:
    """Whether only programs on this machine can reach a ZeroMQ endpoint."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return True
    return endpoint.startswith("tcp://") and _is_loopback(urlsplit(endpoint).hostname)


def is_emulated_address(address: str) -> bool:
    """Whether an instrument address can only be an emulator's: loopback, or a pseudo-terminal."""
    return all(_is_emulated(part.strip()) for part in address.split(","))


def _is_emulated(address: str) -> bool:
    if "://" in address:
        return _is_loopback(urlsplit(address).hostname)
    if visa := re.match(r"TCPIP\d*::([^:]+|\[.*\])::", address, re.IGNORECASE):
        return _is_loopback(visa[1].strip("[]"))
    if visa := re.match(r"ASRL(/.*?)(::INSTR)?$", address, re.IGNORECASE):
        address = visa[1]
    return os.path.realpath(address).startswith("/dev/pts/")


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
