"""What a laser, a modulator, a detector, a time tagger is: the vocabulary drivers are written in."""

from qkdctl.roles.errors import (
    VOCABULARY,
    AuthenticationFailed,
    Busy,
    ConfigError,
    ConnectionLost,
    Denied,
    InstrumentFault,
    Interlock,
    InvalidValue,
    KeyStoreError,
    NotSupported,
    OutOfRange,
    PeerError,
    ProtocolError,
    QkdctlError,
    Timeout,
    WrongInstrument,
)
from qkdctl.roles.instrument import Fails, Identity, Instrument, Parameter, action
from qkdctl.roles.random_source import KernelRandom, RandomSource, SeededRandom
from qkdctl.roles.time_tagger import TagBlock

__all__ = [
    "VOCABULARY", "AuthenticationFailed", "Busy", "ConfigError", "ConnectionLost", "Denied",
    "Fails", "Identity", "Instrument", "InstrumentFault", "Interlock", "InvalidValue",
    "KernelRandom", "KeyStoreError", "NotSupported", "OutOfRange", "Parameter", "PeerError",
    "ProtocolError", "QkdctlError", "RandomSource", "SeededRandom", "TagBlock", "Timeout",
    "WrongInstrument", "action",
]  # fmt: skip
