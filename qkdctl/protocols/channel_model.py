"""What a decoy-state BB84 link with a passive receiver is expected to count.

Threshold-detector model of Lim et al. 2014 (section IV), with a dead-time factor after Rusca et
al. 2018 (appendix B). For pulses of mean photon number k reaching the two detectors of one basis
through the transmittance eta:

    D_k = 1 - (1 - 2 p_dc) e^(-eta k)                      a click, afterpulses aside
    R_k = D_k (1 + p_ap)
    e_k = p_dc + e_mis (1 - e^(-eta k)) + p_ap D_k / 2      a wrong click

(the paper prints the channel's transmittance alone in the middle term; the detectors' belongs
there too). Passive basis choice splits the light, so eta carries the fraction of that basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qkdctl.protocols.block_counts import binary_entropy
from qkdctl.protocols.decoy_bounds import DecoyCounts, DecoySource


@dataclass(frozen=True)
class LinkParameters:
    """A link and the block it is to fill.

    Attributes
    ----------
    loss_db, receiver_loss_db : float
        Loss of the fibre and of the receiver's optics.
    detector_efficiency : float
        Of each of the four detectors.
    dark_rate_hz, gate_s : float
        Dark counts per detector, and how long a slot's gate accepts them.
    slot_rate_hz : float
        Pulses per second.
    misalignment : float
        Probability that a photon takes the wrong exit of its basis.
    dead_time_s : float
        Of each detector, not extended by further photons.
    afterpulse : float
        Afterpulses per click that fall into a gate.
    extinction_db : float
        Of the intensity modulator: mu3 is at least mu1 lowered by this.
    block_bits : int
        Sifted bits of the key basis in a block.
    reconciliation_efficiency : float
        Leaked bits over n h(QBER), used for planning only.
    """

    loss_db: float
    receiver_loss_db: float = 3.0
    detector_efficiency: float = 0.7
    dark_rate_hz: float = 100.0
    gate_s: float = 1.4e-9
    slot_rate_hz: float = 500e6
    misalignment: float = 0.01
    dead_time_s: float = 40e-9
    afterpulse: float = 0.0
    extinction_db: float = 30.0
    block_bits: int = 200_000
    eps_sec: float = 1e-10
    eps_cor: float = 1e-15
    reconciliation_efficiency: float = 1.16

    @property
    def transmittance(self) -> float:
        """From Alice's exit to a click."""
        loss = self.loss_db + self.receiver_loss_db
        return float(10.0 ** (-loss / 10.0) * self.detector_efficiency)

    @property
    def dark_probability(self) -> float:
        """Dark click of one detector in one gate."""
        return self.dark_rate_hz * self.gate_s


@dataclass(frozen=True)
class ExpectedBlock:
    """Expected counts of a block, and the number of slots it takes."""

    slots: float
    key: DecoyCounts
    test: DecoyCounts
    leaked_bits: float
    qber: float
    click_rate_hz: float

    @property
    def sifted_fraction(self) -> float:
        """Key-basis sifted bits per slot."""
        return math.fsum(self.key.detections) / self.slots


def _click(link: LinkParameters, k: float, share: float) -> tuple[float, float]:
    """Click and error probability per slot of one basis that gets ``share`` of the light."""
    photon = -math.expm1(-link.transmittance * share * k)
    click = photon + 2.0 * link.dark_probability * (1.0 - photon)
    error = link.dark_probability + link.misalignment * photon + link.afterpulse * click / 2.0
    click *= 1.0 + link.afterpulse
    return click, min(error, click)


def _live_fraction(link: LinkParameters, source: DecoySource, share: float) -> float:
    """How often a detector that gets half of ``share`` of the light is not dead."""
    clicks = math.fsum(
        p * (_click(link, k, share)[0] / 2.0)
        for k, p in zip(source.intensities, source.probabilities, strict=True)
    )
    return 1.0 / (1.0 + clicks * link.slot_rate_hz * link.dead_time_s)


def expected_block(
    link: LinkParameters, source: DecoySource, p_key_alice: float, p_key_bob: float
) -> ExpectedBlock:
    """Expected counts when the key basis has ``link.block_bits`` sifted bits.

    ``p_key_alice`` is how often Alice sends the key basis, ``p_key_bob`` the fraction of the light
    Bob's splitter sends to it.
    """
    shares = (p_key_bob, 1.0 - p_key_bob)
    live = {share: _live_fraction(link, source, share) for share in shares}

    def per_slot(p_alice: float, share: float) -> DecoyCounts:
        pairs = [_click(link, k, share) for k in source.intensities]
        weights = [p_alice * p * live[share] for p in source.probabilities]
        return DecoyCounts(
            tuple(w * click for w, (click, _) in zip(weights, pairs, strict=True)),
            tuple(w * error for w, (_, error) in zip(weights, pairs, strict=True)),
        )

    key = per_slot(p_key_alice, p_key_bob)
    test = per_slot(1.0 - p_key_alice, 1.0 - p_key_bob)
    sifted = math.fsum(key.detections)
    qber = math.fsum(key.errors) / sifted
    slots = link.block_bits / sifted
    clicks = math.fsum(
        p * live[share] * _click(link, k, share)[0]
        for share in shares
        for k, p in zip(source.intensities, source.probabilities, strict=True)
    )

    def times(counts: DecoyCounts) -> DecoyCounts:
        return DecoyCounts(
            tuple(slots * n for n in counts.detections), tuple(slots * m for m in counts.errors)
        )

    leaked = link.reconciliation_efficiency * link.block_bits * binary_entropy(qber)
    return ExpectedBlock(
        slots=slots,
        key=times(key),
        test=times(test),
        leaked_bits=leaked,
        qber=qber,
        click_rate_hz=clicks * link.slot_rate_hz,
    )
