"""A variable optical attenuator."""

from __future__ import annotations

from typing import Protocol


class Attenuator(Protocol):
    """Parameters every attenuator has. Its fail direction is in the driver's `fails`."""

    attenuation_db: float  # rw
    attenuator_settled: bool  # r
