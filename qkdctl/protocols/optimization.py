"""Intensities and probabilities that give a link its highest finite-key rate.

Maximises secret bits per slot of `decoy_bounds.decoy_length` (two decoys) for the expected counts
of `channel_model.expected_block`. The search is deterministic: a differential evolution with a
fixed seed, then a simplex from its best point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import differential_evolution, minimize

from qkdctl.protocols.block_counts import KeyLength
from qkdctl.protocols.channel_model import ExpectedBlock, LinkParameters, expected_block
from qkdctl.protocols.decoy_bounds import DecoySource, decoy_length

_NO_KEY = 1.0
_BOUNDS = [
    (0.1, 1.0),  # mu1
    (0.05, 0.8),  # mu2 / mu1
    (0.05, 0.95),  # p1
    (0.05, 0.95),  # p2 as a part of what p1 leaves
    (0.05, 0.98),  # p_key_alice
    (0.05, 0.98),  # p_key_bob
]


@dataclass(frozen=True)
class Optimum:
    """Settings of the source and receiver, and what they are expected to give."""

    source: DecoySource
    p_key_alice: float
    p_key_bob: float
    secret_bits_per_block: int
    secret_bits_per_second: float
    blocks_per_second: float
    qber: float
    block: ExpectedBlock
    length: KeyLength


def plan(
    link: LinkParameters, source: DecoySource, p_key_alice: float, p_key_bob: float
) -> Optimum:
    """Forecast block and key of a link with given settings."""
    block = expected_block(link, source, p_key_alice, p_key_bob)
    length = decoy_length(
        source, block.key, block.test, block.leaked_bits, link.eps_sec, link.eps_cor
    )
    blocks_per_second = link.slot_rate_hz / block.slots
    return Optimum(
        source=source,
        p_key_alice=p_key_alice,
        p_key_bob=p_key_bob,
        secret_bits_per_block=length.secret_bits,
        secret_bits_per_second=length.secret_bits * blocks_per_second,
        blocks_per_second=blocks_per_second,
        qber=block.qber,
        block=block,
        length=length,
    )


def optimize(link: LinkParameters, p_key_bob: float | None = None, seed: int = 1) -> Optimum:
    """Choose intensities, probabilities and basis fractions for the highest rate of secret bits.

    mu3 is what the modulator's extinction leaves of mu1. ``p_key_bob`` fixes the receiver's
    splitter; None leaves it free.
    """
    extinction = 10.0 ** (-link.extinction_db / 10.0)

    def settings(x: NDArray[np.float64]) -> tuple[DecoySource, float, float]:
        mu1, mu2 = float(x[0]), float(x[0] * x[1])
        p1 = float(x[2])
        p2 = float((1.0 - x[2]) * x[3])
        source = DecoySource((mu1, mu2, mu1 * extinction), (p1, p2, 1.0 - p1 - p2))
        return source, float(x[4]), float(x[5]) if p_key_bob is None else p_key_bob

    def cost(x: NDArray[np.float64]) -> float:
        if any(not low <= v <= high for v, (low, high) in zip(x, bounds, strict=True)):
            return _NO_KEY
        source, alice, bob = settings(x)
        mu1, mu2, mu3 = source.intensities
        if not mu1 > mu2 + mu3 or not mu2 > mu3:
            return _NO_KEY
        block = expected_block(link, source, alice, bob)
        key = decoy_length(
            source, block.key, block.test, block.leaked_bits, link.eps_sec, link.eps_cor
        )
        if key.length > 0.0:
            return -key.length / block.slots / link.transmittance
        # No key yet: lead the search to fewer phase errors.
        missing = key.single_photon_errors / max(1.0, key.test_single_photon_events)
        return math.tanh(missing) * _NO_KEY

    bounds = _BOUNDS if p_key_bob is None else _BOUNDS[:-1]
    coarse = differential_evolution(
        cost, bounds, seed=seed, popsize=12, maxiter=150, tol=1e-6, polish=False
    )
    fine = minimize(
        cost,
        coarse.x,
        method="Nelder-Mead",
        options={"xatol": 1e-5, "fatol": 1e-10, "maxiter": 2000},
    )
    best = fine.x if fine.fun <= coarse.fun else coarse.x
    return plan(link, *settings(best))
