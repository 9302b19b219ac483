"""What every instrument driver is: declared parameters, identity, fail direction, safe state.

A driver declares its settings and readings as class attributes::

    class Itla(Instrument):
        model = "itla"
        roles = ("laser",)
        fails = Fails.DARK
        power_dbm = Parameter(float, unit="dBm", access="rw", minimum=6.0, maximum=13.5,
                              poll_s=2.0, doc="Optical output power set point.")

        def read_power_dbm(self) -> float: ...
        def write_power_dbm(self, value: float) -> float: ...   # returns the accepted value

From that one declaration come validation, ``describe``, the client's completion, telemetry and the
documentation. Everything here blocks; the daemon gives each instrument one thread.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

from qkdctl.roles.errors import InvalidValue, NotSupported, OutOfRange

T = TypeVar("T")
Access = Literal["r", "rw", "w"]


class Fails(enum.StrEnum):
    """What happens to the light when the instrument loses power or link."""

    DARK = "dark"
    BRIGHT = "bright"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers: as read from the instrument."""

    vendor: str
    model: str
    serial: str
    firmware: str


class Parameter(Generic[T]):
    """One declared setting or reading of a driver.

    Parameters
    ----------
    kind : type
        ``float``, ``int``, ``bool``, ``str`` or ``list`` (a list of floats, e.g. one per channel).
    unit : str
        As printed: ``"dBm"``, ``"V"``, ``"Hz"``, ``"ps"``, ``""`` when there is none.
    access : {"r", "rw", "w"}
    minimum, maximum : float, optional
        The instrument's limits, inclusive (for ``list``: of each element).
    choices : tuple of str
        Allowed values of a ``str`` parameter.
    length : int, optional
        Number of elements of a ``list`` parameter where it is fixed.
    poll_s : float, optional
        Telemetry period; ``None`` means read on request only.
    doc : str
        One line for people.
    """

    def __init__(
        self,
        kind: type[T],
        *,
        unit: str = "",
        access: Access = "r",
        minimum: float | None = None,
        maximum: float | None = None,
        choices: tuple[str, ...] = (),
        length: int | None = None,
        poll_s: float | None = None,
        doc: str,
    ) -> None:
        self.kind = kind
        self.unit = unit
        self.access = access
        self.minimum = minimum
        self.maximum = maximum
        self.choices = choices
        self.length = length
        self.poll_s = poll_s
        self.doc = doc
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Parameter[T]: ...
    @overload
    def __get__(self, instance: Instrument, owner: type) -> T: ...
    def __get__(self, instance: Instrument | None, owner: type) -> T | Parameter[T]:
        if instance is None:
            return self
        value: T = instance.get(self.name)
        return value

    def __set__(self, instance: Instrument, value: T) -> None:
        instance.set(self.name, value)

    def describe(self, limits: tuple[float, float] | None = None) -> dict[str, Any]:
        """Return this declaration as plain data, with the effective limits."""
        low, high = effective_limits(self, limits)
        return {
            "name": self.name,
            "type": self.kind.__name__,
            "unit": self.unit,
            "access": self.access,
            "minimum": low,
            "maximum": high,
            "choices": list(self.choices),
            "length": self.length,
            "poll_s": self.poll_s,
            "doc": self.doc,
        }


def effective_limits(
    parameter: Parameter[Any], limits: tuple[float, float] | None
) -> tuple[float | None, float | None]:
    """Intersect the instrument's limits with the configured ones."""
    low, high = parameter.minimum, parameter.maximum
    if limits is not None:
        low = limits[0] if low is None else max(low, limits[0])
        high = limits[1] if high is None else min(high, limits[1])
    return low, high


def action(method: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a driver's method as callable from a client (its docstring is what they see)."""
    method.__dict__["qkdctl_action"] = True
    return method


class Instrument:
    """Base of the drivers.

    Parameters
    ----------
    address : str
        Where it is; the form depends on the driver's transport (see its docstring).
    timeout_s : float
        Deadline of one exchange.
    limits : mapping of parameter name to (low, high), optional
        The configuration's limits; the effective limit is the intersection with the instrument's.
    serial : str, optional
        Expected serial number; `open` raises `WrongInstrument` when another one answers.
    options : driver-specific keyword arguments
    """

    model: ClassVar[str] = ""
    roles: ClassVar[tuple[str, ...]] = ()
    fails: ClassVar[Fails] = Fails.HOLD

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 2.0,
        limits: Mapping[str, tuple[float, float]] | None = None,
        serial: str | None = None,
    ) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.limits: dict[str, tuple[float, float]] = dict(limits or {})
        self.expected_serial = serial
        for name in self.limits:
            self.parameter(name)

    # -- what a driver overrides ------------------------------------------------------------

    def open(self) -> Identity:
        """Connect, resynchronise, identify. Raise `WrongInstrument` if it is another one."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the transport. Never raises; may be called twice."""
        raise NotImplementedError

    def identify(self) -> Identity:
        """Ask the open instrument who it is."""
        raise NotImplementedError

    def make_safe(self) -> None:
        """Bring the instrument to the state in which it lets no light out or takes no harm.

        Override where the role has a safe state (laser: output off; attenuator: maximum).
        Must be quick, and idempotent.
        """

    # -- what the base provides -------------------------------------------------------------

    @classmethod
    def parameters(cls) -> dict[str, Parameter[Any]]:
        """Return the declared parameters by name, in order of declaration."""
        found: dict[str, Parameter[Any]] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                if isinstance(value, Parameter):
                    found[name] = value
        return found

    @classmethod
    def actions(cls) -> dict[str, str]:
        """Return the names of the actions with the first line of their docstrings."""
        return {
            name: (getattr(cls, name).__doc__ or "").strip().split("\n")[0]
            for name in dir(cls)
            if "qkdctl_action" in getattr(getattr(cls, name), "__dict__", {})
        }

    @classmethod
    def parameter(cls, name: str) -> Parameter[Any]:
        """Return one declared parameter; `NotSupported` names the ones that exist."""
        try:
            return cls.parameters()[name]
        except KeyError:
            known = ", ".join(cls.parameters())
            raise NotSupported(f"{cls.model} has no '{name}'; it has: {known}") from None

    def get(self, name: str) -> Any:
        """Read one parameter from the instrument."""
        parameter = self.parameter(name)
        if parameter.access == "w":
            raise NotSupported(f"{self.model}.{name} can only be set")
        return getattr(self, f"read_{name}")()

    def set(self, name: str, value: Any) -> Any:
        """Validate, write, and return the value the instrument accepted."""
        parameter = self.parameter(name)
        if parameter.access == "r":
            raise NotSupported(f"{self.model}.{name} can only be read")
        checked = check_value(parameter, value, self.limits.get(name), self.model)
        accepted = getattr(self, f"write_{name}")(checked)
        return checked if accepted is None else accepted

    def describe(self) -> dict[str, Any]:
        """Return everything a client needs to know about this instrument, as plain data."""
        return {
            "model": self.model,
            "roles": list(self.roles),
            "fails": str(self.fails),
            "address": self.address,
            "parameters": [p.describe(self.limits.get(n)) for n, p in self.parameters().items()],
            "actions": [{"name": n, "doc": d} for n, d in self.actions().items()],
        }


def check_value(
    parameter: Parameter[Any], value: Any, limits: tuple[float, float] | None, owner: str
) -> Any:
    """Return `value` in the parameter's type, or raise `InvalidValue` / `OutOfRange`.

    Limits refuse, they never clip. ``bool`` is not a number here, and NaN is never in range.
    """
    where = f"{owner}.{parameter.name}"
    kind = parameter.kind
    if kind is bool:
        if not isinstance(value, bool):
            raise InvalidValue(f"{where} takes true or false, not {value!r}")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise InvalidValue(f"{where} takes a text, not {value!r}")
        if parameter.choices and value not in parameter.choices:
            raise OutOfRange(f"{where} takes one of {', '.join(parameter.choices)}, not {value!r}")
        return value
    if kind is list:
        if not isinstance(value, (list, tuple)):
            raise InvalidValue(f"{where} takes a list of numbers, not {value!r}")
        if parameter.length is not None and len(value) != parameter.length:
            raise InvalidValue(f"{where} takes {parameter.length} numbers, got {len(value)}")
        return [_check_number(parameter, v, limits, f"{where}[{i}]") for i, v in enumerate(value)]
    number = _check_number(parameter, value, limits, where)
    if kind is int:
        if number != int(number):
            raise InvalidValue(f"{where} takes a whole number, not {value!r}")
        return int(number)
    return number


def _check_number(
    parameter: Parameter[Any], value: Any, limits: tuple[float, float] | None, where: str
) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(f"{where} takes a number in {parameter.unit or '1'}, not {value!r}")
    number = float(value)
    low, high = effective_limits(parameter, limits)
    if (
        math.isnan(number)
        or (low is not None and number < low)
        or (high is not None and number > high)
    ):
        raise OutOfRange(
            f"{where} = {number:g} {parameter.unit} is outside {low} .. {high} {parameter.unit}"
        )
    return number
