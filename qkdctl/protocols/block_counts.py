"""What one block counted, and what a bound makes of it: the input and output of a key length.

`BlockCounts` is the document that ``qkdctl keylength`` reads and that a proof sheet carries.
Everything is checked on the way in, and a refusal names the field.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

Bound = Literal["lim2014", "rusca2018", "bbm92", "asymptotic"]
Concentration = Literal["hoeffding", "chernoff"]
Counts = int | dict[str, int]
"""A count per intensity (keys ``mu1``, ``mu2``, ``mu3``), or one number without decoy states."""

_PROBABILITY_SUM_TOLERANCE = 1e-9


class InconsistentCounts(ValueError):
    """A block's counts contradict each other or miss something. ``field`` says where."""

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(f"{field} {complaint}")
        self.field = field


class BasisCounts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sifted detections and bit errors of one basis, per intensity or (BBM92) in all.

    ``errors`` may be left out of the key basis where the bound does not use them.
    """

    detections: Counts
    errors: Counts | None = None


class BlockCounts(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Everything the secret length of one block depends on.

    ``intensities`` are mean photon numbers, ``probabilities`` how often each is sent (both empty
    for BBM92). ``leaked_bits`` is what reconciliation revealed, counted. ``eps_sec`` and
    ``eps_cor`` are the secrecy and correctness parameters. ``cap_errors`` caps the bound on
    single-photon errors at the errors counted, which the papers do not do.
    """

    bound: Bound
    key_basis: BasisCounts
    test_basis: BasisCounts
    leaked_bits: float
    eps_sec: float
    eps_cor: float
    concentration: Concentration = "hoeffding"
    intensities: dict[str, float] = {}
    probabilities: dict[str, float] = {}
    cap_errors: bool = False


class KeyLength(msgspec.Struct, frozen=True, kw_only=True):
    """The secret length of a block and every number on the way to it.

    Events are bounds on counts in the block: ``vacuum_events`` and ``single_photon_events`` from
    below in the key basis, ``test_single_photon_events`` from below in the test basis,
    ``single_photon_errors`` from above. ``phase_error`` is their ratio plus
    ``phase_error_margin`` (the sampling correction), at most 1/2. ``length`` is the formula's
    value before rounding down and before zero replaces what is negative.
    """

    bound: str
    concentration: str
    secret_bits: int
    vacuum_events: float
    single_photon_events: float
    phase_error: float
    eps_total: float
    eps_sec: float
    eps_cor: float
    key_basis_events: float
    test_basis_events: float
    test_vacuum_events: float
    test_single_photon_events: float
    single_photon_errors: float
    phase_error_margin: float
    leaked_bits: float
    secrecy_cost_bits: float
    verification_cost_bits: float
    length: float
    reason: str
    source: str


def binary_entropy(x: float) -> float:
    """h(x) = -x log2 x - (1-x) log2(1-x), in bits.

    >>> binary_entropy(0.5)
    1.0
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0
    return -x * math.log2(x) - (1.0 - x) * math.log2(1.0 - x)


def block_counts(document: Mapping[str, Any]) -> BlockCounts:
    """Build a checked `BlockCounts` from a decoded JSON or YAML document.

    Raises
    ------
    InconsistentCounts
        With the dotted name of the field, for anything missing, unknown, of the wrong kind, or in
        contradiction with the rest.
    """
    if not isinstance(document, Mapping):
        raise InconsistentCounts("the document", "is not an object with named fields")
    known = {f.name for f in msgspec.structs.fields(BlockCounts)}
    _refuse_unknown(document, known, "")
    for field in ("bound", "key_basis", "test_basis", "leaked_bits", "eps_sec", "eps_cor"):
        if field not in document:
            raise InconsistentCounts(field, "is missing")
    bound = _choice(document, "bound", get_args(Bound))
    block = BlockCounts(
        bound=bound,
        concentration=_choice(
            {"concentration": "hoeffding", **document}, "concentration", get_args(Concentration)
        ),
        key_basis=_basis(document["key_basis"], "key_basis"),
        test_basis=_basis(document["test_basis"], "test_basis"),
        intensities=_numbers(document.get("intensities", {}), "intensities"),
        probabilities=_numbers(document.get("probabilities", {}), "probabilities"),
        leaked_bits=_number(document["leaked_bits"], "leaked_bits"),
        eps_sec=_number(document["eps_sec"], "eps_sec"),
        eps_cor=_number(document["eps_cor"], "eps_cor"),
        cap_errors=_flag(document.get("cap_errors", False), "cap_errors"),
    )
    check(block)
    return block


def check(block: BlockCounts) -> None:
    """Refuse a block whose numbers contradict each other; `InconsistentCounts` names the field."""
    _choice({"bound": block.bound}, "bound", get_args(Bound))
    _choice({"concentration": block.concentration}, "concentration", get_args(Concentration))
    for name in ("eps_sec", "eps_cor"):
        value = _number(getattr(block, name), name)
        if not 0.0 < value < 1.0:
            raise InconsistentCounts(name, f"= {value:g} is not between 0 and 1")
    if _number(block.leaked_bits, "leaked_bits") < 0:
        raise InconsistentCounts("leaked_bits", f"= {block.leaked_bits:g} is negative")
    names = _intensity_names(block)
    if names is not None:
        _check_intensities(block, names)
    _check_basis(block.key_basis, "key_basis", names, block.bound == "rusca2018")
    _check_basis(block.test_basis, "test_basis", names, True)
    if block.bound == "asymptotic" and names == ("mu1", "mu2") and block.key_basis.errors is None:
        raise InconsistentCounts("key_basis.errors", "is missing (the one-decoy bound needs it)")


def _intensity_names(block: BlockCounts) -> tuple[str, ...] | None:
    three, two = ("mu1", "mu2", "mu3"), ("mu1", "mu2")
    if block.bound == "lim2014":
        return three
    if block.bound == "rusca2018":
        return two
    if block.bound == "asymptotic" and (block.intensities or block.probabilities):
        return three if "mu3" in block.intensities else two
    for name in ("intensities", "probabilities"):
        if getattr(block, name):
            raise InconsistentCounts(name, f"does not belong to the bound {block.bound}")
    return None


def _check_intensities(block: BlockCounts, names: tuple[str, ...]) -> None:
    for field in ("intensities", "probabilities"):
        values: dict[str, float] = getattr(block, field)
        _same_names(values, names, field)
        for name in names:
            _number(values[name], f"{field}.{name}")
    mu = block.intensities
    last = names[-1]
    if mu[last] < 0 or (last == "mu2" and mu[last] == 0):
        wanted = "negative" if mu[last] < 0 else "zero (one-decoy bounds need a weak decoy)"
        raise InconsistentCounts(f"intensities.{last}", f"= {mu[last]:g} is {wanted}")
    for higher, lower in itertools.pairwise(names):
        if not mu[higher] > mu[lower]:
            raise InconsistentCounts(
                f"intensities.{higher}",
                f"= {mu[higher]:g} is not larger than intensities.{lower} = {mu[lower]:g}",
            )
    if len(names) == 3 and not mu["mu1"] > mu["mu2"] + mu["mu3"]:
        raise InconsistentCounts(
            "intensities.mu1",
            f"= {mu['mu1']:g} is not larger than mu2 + mu3 = {mu['mu2'] + mu['mu3']:g}",
        )
    for name in names:
        p = block.probabilities[name]
        if not 0.0 < p < 1.0:
            raise InconsistentCounts(f"probabilities.{name}", f"= {p:g} is not between 0 and 1")
    total = math.fsum(block.probabilities[name] for name in names)
    if abs(total - 1.0) > _PROBABILITY_SUM_TOLERANCE:
        raise InconsistentCounts("probabilities", f"sum to {total:.12g}, not to 1")


def _check_basis(
    basis: BasisCounts, path: str, names: tuple[str, ...] | None, errors_needed: bool
) -> None:
    if basis.errors is None and errors_needed:
        raise InconsistentCounts(f"{path}.errors", "is missing")
    for field in ("detections", "errors"):
        counts: Counts | None = getattr(basis, field)
        if counts is None:
            continue
        if names is None:
            if isinstance(counts, Mapping):
                raise InconsistentCounts(f"{path}.{field}", "must be one number for this bound")
            _count(counts, f"{path}.{field}")
            continue
        if not isinstance(counts, Mapping):
            raise InconsistentCounts(f"{path}.{field}", "must have one count per intensity")
        _same_names(counts, names, f"{path}.{field}")
        for name in names:
            _count(counts[name], f"{path}.{field}.{name}")
    if basis.errors is None:
        return
    pairs: list[tuple[str, int, int]]
    if isinstance(basis.detections, Mapping) and isinstance(basis.errors, Mapping):
        pairs = [(f".{name}", basis.errors[name], basis.detections[name]) for name in names or ()]
    elif not isinstance(basis.detections, Mapping) and not isinstance(basis.errors, Mapping):
        pairs = [("", basis.errors, basis.detections)]
    else:  # pragma: no cover - excluded by the checks above
        raise InconsistentCounts(path, "mixes counts per intensity with plain numbers")
    for suffix, errors, detections in pairs:
        if errors > detections:
            raise InconsistentCounts(
                f"{path}.errors{suffix}",
                f"= {errors} is larger than {path}.detections{suffix} = {detections}",
            )


def _same_names(given: Mapping[str, Any], names: tuple[str, ...], path: str) -> None:
    for name in names:
        if name not in given:
            raise InconsistentCounts(f"{path}.{name}", "is missing")
    for name in given:
        if name not in names:
            raise InconsistentCounts(
                f"{path}.{name}", f"is not an intensity of this bound ({', '.join(names)})"
            )


def _refuse_unknown(given: Mapping[str, Any], known: set[str], path: str) -> None:
    for name in given:
        if name not in known:
            raise InconsistentCounts(f"{path}{name}", "is not a field of a block")


def _choice(document: Mapping[str, Any], field: str, choices: tuple[Any, ...]) -> Any:
    value = document[field]
    if value not in choices:
        raise InconsistentCounts(field, f"= {value!r} is none of {', '.join(choices)}")
    return value


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise InconsistentCounts(path, f"= {value!r} is neither true nor false")
    return value


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InconsistentCounts(path, f"= {value!r} is not a number")
    if not math.isfinite(value):
        raise InconsistentCounts(path, f"= {value!r} is not a finite number")
    return value


def _numbers(values: Any, path: str) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise InconsistentCounts(path, "is not an object with one number per intensity")
    return {str(name): _number(value, f"{path}.{name}") for name, value in values.items()}


def _count(value: Any, path: str) -> int:
    number = _number(value, path)
    if number != int(number):
        raise InconsistentCounts(path, f"= {value!r} is not a whole number")
    if number < 0:
        raise InconsistentCounts(path, f"= {value!r} is negative")
    return int(number)


def _basis(document: Any, path: str) -> BasisCounts:
    if not isinstance(document, Mapping):
        raise InconsistentCounts(path, "is not an object with detections and errors")
    _refuse_unknown(document, {"detections", "errors"}, f"{path}.")
    if "detections" not in document:
        raise InconsistentCounts(f"{path}.detections", "is missing")
    errors = document.get("errors")
    return BasisCounts(
        detections=_counts(document["detections"], f"{path}.detections"),
        errors=None if errors is None else _counts(errors, f"{path}.errors"),
    )


def _counts(value: Any, path: str) -> Counts:
    if isinstance(value, Mapping):
        return {str(name): _count(count, f"{path}.{name}") for name, count in value.items()}
    return _count(value, path)
