"""Addresses of the form ``tcp://host:port``."""

from __future__ import annotations

from urllib.parse import urlsplit

from qkdctl.roles import InvalidValue


def parse_endpoint(address: str) -> tuple[str, int]:
    """Return host and port; `InvalidValue` when the address has another form."""
    parts = urlsplit(address)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number
        host, port = None, None
    if parts.scheme != "tcp" or not host or not port or parts.path:
        raise InvalidValue(f"address {address!r} is not of the form tcp://host:port")
    return host, port
