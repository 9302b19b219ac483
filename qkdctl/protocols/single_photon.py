"""Finite-key bound without decoy states: entangled pairs (BBM92) and true single photons.

One basis gives the key, the other tells the phase error. The theorem is Tomamichel, Lim, Gisin,
Renner, Nat. Commun. 3, 634 (2012), Eqs. 1-2, with preparation quality q = 1:

    l = floor{ n [1 - h(Q + mu)] - leak - log2( 2 / (eps_sec^2 eps_cor) ) }
    mu = sqrt( (n+k)/(n k) (k+1)/k ln(4/eps_sec) )

for n key bits and k test bits with error rate Q. For BBM92 it holds for either basis as key with
the other as test *even if the test string is public*, so the keys of both bases may be joined and
their epsilons add: that is how `bbm92.both_bases` uses it. The shorter deviation printed for the
Micius link, sqrt((n+1) ln(1/eps) / (2k(n+k))), bounds the error of key and test together and not
that of the key; it is not used here.
"""

from __future__ import annotations

import math

from qkdctl.protocols.block_counts import KeyLength, binary_entropy

SOURCE = "Tomamichel, Lim, Gisin, Renner, Nat. Commun. 3, 634 (2012), Eqs. 1-2"


def phase_error_margin(key_bits: float, test_bits: float, eps_sec: float) -> float:
    """How far the key's phase error may exceed the error rate of the test bits."""
    n, k = key_bits, test_bits
    return math.sqrt((n + k) / (n * k) * (k + 1.0) / k * math.log(4.0 / eps_sec))


def single_photon_length(
    key_bits: float,
    test_bits: float,
    test_errors: float,
    leaked_bits: float,
    eps_sec: float,
    eps_cor: float,
    *,
    asymptotic: bool = False,
) -> KeyLength:
    """Secret length of ``key_bits`` sifted bits, from the errors seen in the other basis.

    With ``asymptotic``: n [1 - h(Q)] - leak, Shor and Preskill, PRL 85, 441 (2000), without
    finite-key terms.
    """
    secrecy = 0.0 if asymptotic else 2.0 * math.log2(1.0 / eps_sec)
    verification = 0.0 if asymptotic else math.log2(2.0 / eps_cor)
    margin, phase_error, length, reason = 0.0, 0.5, 0.0, ""
    if key_bits <= 0 or test_bits <= 0:
        reason = "no bits in the key basis" if key_bits <= 0 else "no bits in the test basis"
    else:
        if not asymptotic:
            margin = phase_error_margin(key_bits, test_bits, eps_sec)
        observed = test_errors / test_bits
        phase_error = min(0.5, observed + margin)
        hidden = key_bits * (1.0 - binary_entropy(phase_error))
        length = hidden - leaked_bits - secrecy - verification
        if phase_error >= 0.5:
            reason = (
                f"the phase error may be one half: {observed:.4f} seen, "
                f"{margin:.4f} allowed for the sample size"
            )
        elif length < 1.0:
            reason = (
                f"{hidden:.0f} bits unknown to an eavesdropper (phase error {observed:.4f} seen "
                f"+ {margin:.4f} for the sample size) do not pay for {leaked_bits:.0f} leaked and "
                f"{secrecy + verification:.0f} fixed bits"
            )
    return KeyLength(
        bound="asymptotic" if asymptotic else "bbm92",
        concentration="none" if asymptotic else "serfling",
        secret_bits=max(0, math.floor(length)),
        vacuum_events=0.0,
        single_photon_events=float(key_bits),
        phase_error=phase_error,
        eps_total=eps_sec + eps_cor,
        eps_sec=eps_sec,
        eps_cor=eps_cor,
        key_basis_events=float(key_bits),
        test_basis_events=float(test_bits),
        test_vacuum_events=0.0,
        test_single_photon_events=float(test_bits),
        single_photon_errors=float(test_errors),
        phase_error_margin=margin,
        leaked_bits=leaked_bits,
        secrecy_cost_bits=secrecy,
        verification_cost_bits=verification,
        length=length,
        reason=reason,
        source="Shor, Preskill, PRL 85, 441 (2000), without finite-key terms"
        if asymptotic
        else SOURCE,
    )
