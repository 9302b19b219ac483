"""Finite-key bounds of decoy-state BB84 with two decoys (Lim 2014) and with one (Rusca 2018).

Both estimate, from counts per intensity, how many detections of the key basis came from vacuum
and from single photons, and how many phase errors the latter can have. Symbols as in the papers:

``tau_n``   probability that Alice sends n photons, sum_k e^-k k^n p_k / n!
``n_k``     detections of intensity k in one basis, ``m_k`` the bit errors among them
``n^+-_k``  e^k/p_k times ``n_k`` plus or minus its fluctuation (``m^+-_k`` likewise)
``s_0``     vacuum events, ``s_1`` single-photon events, ``v_1`` errors of single photons
``phi``     phase error of the key basis' single photons, ``gamma`` its sampling correction

A lower bound on a count (``n^-``, ``m^-``, ``s_0``, ``s_1``) that comes out negative is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qkdctl.protocols.block_counts import KeyLength, binary_entropy

Deviation = Callable[[float, float], float]
"""Fluctuation of a count: (the count, the total of its basis) -> how far it may be off."""

LIM2014 = "Lim et al., PRA 89, 022307 (2014), Eqs. 1-5"
RUSCA2018 = "Rusca et al., APL 112, 171104 (2018), Eqs. 1-3 and appendix A"
CHERNOFF = "; fluctuations after Sidhu et al., npj Quantum Inf. 8, 18 (2022)"
ASYMPTOTIC = ", without fluctuations: no finite-key statement"


@dataclass(frozen=True)
class DecoyCounts:
    """Counts of one basis by intensity, brightest first; expected values need not be whole."""

    detections: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class DecoySource:
    """Mean photon numbers, brightest first, and the probability of each."""

    intensities: tuple[float, ...]
    probabilities: tuple[float, ...]

    def tau(self, n: int) -> float:
        """Probability that a pulse holds n photons."""
        return math.fsum(
            math.exp(-k) * k**n * p / math.factorial(n)
            for k, p in zip(self.intensities, self.probabilities, strict=True)
        )


@dataclass(frozen=True)
class Fluctuation:
    """How far counts may lie from their expectation, above and below."""

    above: Deviation
    below: Deviation


def hoeffding(failures: float, eps_sec: float) -> Fluctuation:
    """sqrt((total/2) ln(failures/eps_sec)), the same for every intensity of a basis."""
    log = math.log(failures / eps_sec)

    def delta(_count: float, total: float) -> float:
        return math.sqrt(total / 2.0 * log)

    return Fluctuation(above=delta, below=delta)


def chernoff(failures: float, eps_sec: float) -> Fluctuation:
    """Multiplicative Chernoff bounds from an observed count (Sidhu et al. 2022).

    With B = ln(failures/eps_sec): n + B + sqrt(2nB + B^2) above, n - B/2 - sqrt(2nB + B^2/4)
    below; each uses its own count and not the total of the basis.
    """
    b = math.log(failures / eps_sec)

    def above(count: float, _total: float) -> float:
        return b + math.sqrt(2.0 * count * b + b * b)

    def below(count: float, _total: float) -> float:
        return b / 2.0 + math.sqrt(2.0 * count * b + b * b / 4.0)

    return Fluctuation(above=above, below=below)


def _none(_count: float, _total: float) -> float:
    return 0.0


def gamma(a: float, b: float, c: float, d: float, failures: float) -> float:
    """Sampling correction to the phase error (Lim Eq. 5; Rusca has 19 for 21).

    ``a`` is eps_sec, ``b`` the error ratio seen on ``c`` test events and carried to ``d`` key
    events. Natural logarithm of 2 outside, logarithm to base 2 inside.
    """
    if b <= 0.0:
        return 0.0  # the limit of b log(1/b)
    spread = (c + d) * (1.0 - b) * b / (c * d * math.log(2.0))
    inside = math.log2((c + d) / (c * d * (1.0 - b) * b) * failures**2 / a**2)
    return math.sqrt(spread * max(0.0, inside))


@dataclass(frozen=True)
class _Basis:
    upper: tuple[float, ...]
    lower: tuple[float, ...]
    error_upper: tuple[float, ...]
    error_lower: tuple[float, ...]


def _scaled(source: DecoySource, counts: DecoyCounts, fluctuation: Fluctuation) -> _Basis:
    scale = [math.exp(k) / p for k, p in zip(source.intensities, source.probabilities, strict=True)]

    def plus(values: tuple[float, ...]) -> tuple[float, ...]:
        total = math.fsum(values)
        return tuple(
            s * (x + fluctuation.above(x, total)) for s, x in zip(scale, values, strict=True)
        )

    def minus(values: tuple[float, ...]) -> tuple[float, ...]:
        total = math.fsum(values)
        return tuple(
            max(0.0, s * (x - fluctuation.below(x, total)))
            for s, x in zip(scale, values, strict=True)
        )

    return _Basis(
        plus(counts.detections), minus(counts.detections), plus(counts.errors), minus(counts.errors)
    )


def _lim_events(source: DecoySource, basis: _Basis) -> tuple[float, float]:
    mu1, mu2, mu3 = source.intensities
    tau0, tau1 = source.tau(0), source.tau(1)
    s0 = max(0.0, tau0 * (mu2 * basis.lower[2] - mu3 * basis.upper[1]) / (mu2 - mu3))
    s1 = (
        tau1
        * mu1
        * (
            basis.lower[1]
            - basis.upper[2]
            - (mu2**2 - mu3**2) / mu1**2 * (basis.upper[0] - s0 / tau0)
        )
        / (mu1 * (mu2 - mu3) - mu2**2 + mu3**2)
    )
    return s0, max(0.0, s1)


def _rusca_events(
    source: DecoySource, counts: DecoyCounts, basis: _Basis, fluctuation: Fluctuation
) -> tuple[float, float]:
    mu1, mu2 = source.intensities
    tau0, tau1 = source.tau(0), source.tau(1)
    total = math.fsum(counts.detections)
    delta_n = fluctuation.above(total, total)
    s0_upper = min(2.0 * (tau0 * m + delta_n) for m in basis.error_upper)
    s0 = max(0.0, tau0 / (mu1 - mu2) * (mu1 * basis.lower[1] - mu2 * basis.upper[0]))
    s1 = (
        tau1
        * mu1
        / (mu2 * (mu1 - mu2))
        * (
            basis.lower[1]
            - mu2**2 / mu1**2 * basis.upper[0]
            - (mu1**2 - mu2**2) / mu1**2 * s0_upper / tau0
        )
    )
    return s0, max(0.0, s1)


def decoy_length(
    source: DecoySource,
    key: DecoyCounts,
    test: DecoyCounts,
    leaked_bits: float,
    eps_sec: float,
    eps_cor: float,
    *,
    concentration: str = "hoeffding",
    cap_errors: bool = False,
    asymptotic: bool = False,
) -> KeyLength:
    """Secret length from counts per intensity: three intensities after Lim, two after Rusca.

    l = floor{ s_0 + s_1 [1 - h(phi)] - leak - 6 log2(21/eps_sec) - log2(2/eps_cor) }, with 19
    for one decoy. With ``asymptotic`` all fluctuations and epsilon terms are left out.

    The arguments are taken as they are (`key_length.secret_length` checks first), so expected
    counts, which are not whole numbers, can be used for planning.
    """
    two_decoys = len(source.intensities) == 3
    failures = 21.0 if two_decoys else 19.0
    name, paper = ("lim2014", LIM2014) if two_decoys else ("rusca2018", RUSCA2018)
    if asymptotic:
        fluctuation, concentration = Fluctuation(_none, _none), "none"
        name, paper = "asymptotic", paper + ASYMPTOTIC
    elif concentration == "chernoff":
        fluctuation, paper = chernoff(failures, eps_sec), paper + CHERNOFF
    else:
        fluctuation = hoeffding(failures, eps_sec)

    key_scaled, test_scaled = (_scaled(source, basis, fluctuation) for basis in (key, test))
    if two_decoys:
        s0, s1 = _lim_events(source, key_scaled)
        test_s0, test_s1 = _lim_events(source, test_scaled)
        strong, weak = 1, 2
    else:
        s0, s1 = _rusca_events(source, key, key_scaled, fluctuation)
        test_s0, test_s1 = _rusca_events(source, test, test_scaled, fluctuation)
        strong, weak = 0, 1
    v1 = max(
        0.0,
        source.tau(1)
        * (test_scaled.error_upper[strong] - test_scaled.error_lower[weak])
        / (source.intensities[strong] - source.intensities[weak]),
    )
    if cap_errors:
        v1 = min(v1, math.fsum(test.errors))

    secrecy = 0.0 if asymptotic else 6.0 * math.log2(failures / eps_sec)
    verification = 0.0 if asymptotic else math.log2(2.0 / eps_cor)
    margin, reason = 0.0, ""
    if s1 <= 0.0:
        reason = "no single-photon events can be guaranteed in the key basis"
    elif test_s1 <= 0.0:
        reason = "no single-photon events can be guaranteed in the test basis"
    elif v1 / test_s1 >= 0.5:
        reason = "the single photons of the test basis may be wrong half of the time"
    if reason:
        phase_error, length = 0.5, 0.0
    else:
        ratio = v1 / test_s1
        margin = 0.0 if asymptotic else gamma(eps_sec, ratio, test_s1, s1, failures)
        phase_error = min(0.5, ratio + margin)
        length = s0 + s1 * (1.0 - binary_entropy(phase_error)) - leaked_bits
        length -= secrecy + verification
        if length < 1.0:
            reason = (
                f"{s0 + s1 * (1.0 - binary_entropy(phase_error)):.0f} bits unknown to an "
                f"eavesdropper do not pay for {leaked_bits:.0f} leaked and "
                f"{secrecy + verification:.0f} fixed bits"
            )
    return KeyLength(
        bound=name,
        concentration=concentration,
        secret_bits=max(0, math.floor(length)),
        vacuum_events=s0,
        single_photon_events=s1,
        phase_error=phase_error,
        eps_total=eps_sec + eps_cor,
        eps_sec=eps_sec,
        eps_cor=eps_cor,
        key_basis_events=math.fsum(key.detections),
        test_basis_events=math.fsum(test.detections),
        test_vacuum_events=test_s0,
        test_single_photon_events=test_s1,
        single_photon_errors=v1,
        phase_error_margin=margin,
        leaked_bits=leaked_bits,
        secrecy_cost_bits=secrecy,
        verification_cost_bits=verification,
        length=length,
        reason=reason,
        source=paper,
    )


def by_intensity(counts: Mapping[str, float]) -> tuple[float, ...]:
    """Order a mapping ``mu1``, ``mu2``(, ``mu3``) as the tuples above, brightest first."""
    return tuple(counts[name] for name in sorted(counts))
