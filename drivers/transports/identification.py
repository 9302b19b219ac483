"""The answer to ``*IDN?`` and the check that the right instrument gave it."""

from __future__ import annotations

from qkdctl.roles import Identity, ProtocolError, WrongInstrument


def parse_identification(answer: str, where: str) -> Identity:
    """Return the four comma-separated fields of an ``*IDN?`` answer (IEEE 488.2, 10.14).

    Further commas belong to the last field. Raises `ProtocolError` when it is something else.
    """
    fields = [field.strip() for field in answer.split(",", 3)]
    if len(fields) != 4 or not fields[1] or not answer.isprintable():
        raise ProtocolError(f"{where}: *IDN? was answered by {answer[:80]!r}")
    return Identity(*fields)


def require_identity(
    identity: Identity, *, models: tuple[str, ...], serial: str | None, where: str
) -> Identity:
    """Return `identity` if its model contains one of `models` and its serial is the expected one.

    Raises `WrongInstrument`, which says who answered instead.
    """
    if not any(model.lower() in identity.model.lower() for model in models):
        raise WrongInstrument(
            f"{where}: expected {' or '.join(models)}, found {identity.vendor} {identity.model}"
        )
    if serial is not None and identity.serial != serial:
        raise WrongInstrument(
            f"{where}: expected serial {serial}, found {identity.model} serial {identity.serial}"
        )
    return identity
