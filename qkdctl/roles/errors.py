"""The closed vocabulary of errors.

Every failure that crosses a driver, the wire to a client, or the daemon's supervision is one of
these classes. The class name is the stable name on the wire; a client gets the same class back.
"""

from __future__ import annotations

from typing import ClassVar


class QkdctlError(Exception):
    """Base of the vocabulary. ``retryable`` says whether trying again later can help."""

    retryable: ClassVar[bool] = False


class ConnectionLost(QkdctlError):
    """The transport is gone: port closed, cable pulled, process ended."""

    retryable = True


class Timeout(QkdctlError):
    """The instrument or peer did not answer by the deadline."""

    retryable = True


class ProtocolError(QkdctlError):
    """An answer came, but it is not what the protocol allows (garbage, checksum, wrong shape)."""

    retryable = True


class OutOfRange(QkdctlError):
    """A value lies outside the effective limits. Nothing was sent; nothing was changed."""


class InvalidValue(QkdctlError):
    """A value has the wrong type or is not a number where one is needed."""


class NotSupported(QkdctlError):
    """The instrument has no such setting, reading or action."""


class InstrumentFault(QkdctlError):
    """The instrument itself reports an error."""


class WrongInstrument(QkdctlError):
    """Another instrument answers at this address than the one configured."""


class Interlock(QkdctlError):
    """A safety condition forbids the operation."""


class Busy(QkdctlError):
    """The instrument or node is occupied with something else."""

    retryable = True


class Denied(QkdctlError):
    """The caller may not do this in the present state or with its role."""


class PeerError(QkdctlError):
    """The other node reports an error or breaks the protocol between nodes."""

    retryable = True


class AuthenticationFailed(QkdctlError):
    """A message of the classical channel carries a wrong tag. The block is aborted."""


class ConfigError(QkdctlError):
    """A configuration is wrong; the message names file, line and what was expected."""


class KeyStoreError(QkdctlError):
    """The key store refuses: wrong state, used up, or damaged."""


VOCABULARY: dict[str, type[QkdctlError]] = {
    c.__name__: c
    for c in (
        QkdctlError, ConnectionLost, Timeout, ProtocolError, OutOfRange, InvalidValue, NotSupported,
        InstrumentFault, WrongInstrument, Interlock, Busy, Denied, PeerError,
        AuthenticationFailed, ConfigError, KeyStoreError,
    )
}  # fmt: skip
