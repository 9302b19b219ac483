"""Single-photon detectors with their bias electronics; one driver serves several channels."""

from __future__ import annotations

from typing import Protocol


class SinglePhotonDetector(Protocol):
    """Parameters every detector set has; lists have one element per detector."""

    detector_count: int  # r
    enabled: bool  # rw: bias on
    bias_ua: list[float]  # rw
    trigger_mv: list[float]  # rw
    count_rates: list[float]  # r: counts per second over the last integration period
    integration_time_ms: float  # rw
