"""Secret length of a block from its counts: the one function a proof sheet is checked with.

>>> from qkdctl.protocols.key_length import block_counts, secret_length
>>> block = block_counts({
...     "bound": "bbm92", "leaked_bits": 20000, "eps_sec": 1e-10, "eps_cor": 1e-12,
...     "key_basis": {"detections": 100000}, "test_basis": {"detections": 100000, "errors": 2000}})
>>> secret_length(block).secret_bits
54710
"""

from __future__ import annotations

from qkdctl.protocols.block_counts import (
    BasisCounts,
    BlockCounts,
    Counts,
    InconsistentCounts,
    KeyLength,
    block_counts,
    check,
)
from qkdctl.protocols.decoy_bounds import DecoyCounts, DecoySource, by_intensity, decoy_length
from qkdctl.protocols.single_photon import single_photon_length

__all__ = [
    "BasisCounts",
    "BlockCounts",
    "InconsistentCounts",
    "KeyLength",
    "block_counts",
    "secret_length",
]


def secret_length(block: BlockCounts) -> KeyLength:
    """Apply the bound a block names to its counts.

    ``lim2014`` and ``rusca2018`` are decoy-state BB84 with two decoys and with one, ``bbm92`` has
    one basis as key and the other as test, ``asymptotic`` leaves all finite-key terms out of
    whichever of the three the counts fit.

    Raises
    ------
    InconsistentCounts
        If the counts contradict each other; it names the field.
    """
    check(block)
    asymptotic = block.bound == "asymptotic"
    if block.intensities:
        return decoy_length(
            DecoySource(by_intensity(block.intensities), by_intensity(block.probabilities)),
            _decoy_counts(block.key_basis),
            _decoy_counts(block.test_basis),
            block.leaked_bits,
            block.eps_sec,
            block.eps_cor,
            concentration=block.concentration,
            cap_errors=block.cap_errors,
            asymptotic=asymptotic,
        )
    return single_photon_length(
        _plain(block.key_basis.detections),
        _plain(block.test_basis.detections),
        _plain(block.test_basis.errors),
        block.leaked_bits,
        block.eps_sec,
        block.eps_cor,
        asymptotic=asymptotic,
    )


def _decoy_counts(basis: BasisCounts) -> DecoyCounts:
    assert isinstance(basis.detections, dict)
    detections = by_intensity(basis.detections)
    errors = by_intensity(basis.errors) if isinstance(basis.errors, dict) else None
    return DecoyCounts(detections, errors or (0.0,) * len(detections))


def _plain(counts: Counts | None) -> float:
    assert isinstance(counts, int | float)
    return float(counts)
