"""qkdctl: open control software for quantum key distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "connect"]

if TYPE_CHECKING:
    from qkdctl.client.node import Node


def connect(endpoint: str, **options: Any) -> Node:
    """Connect to a running node: ``node = qkdctl.connect("tcp://127.0.0.1:5570")``.

    See `qkdctl.client.node.Node` for the options and for what the returned object can do.
    """
    from qkdctl.client.node import Node

    return Node(endpoint, **options)
