"""A YAML file as typed data, with every complaint at ``file:line``.

PyYAML's loader, with three differences: a repeated key is an error, ``1.934e14`` is a number (YAML
1.2), and each value remembers its line.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from qkdctl.roles.errors import ConfigError

T = TypeVar("T")
Step = str | int


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's floats; lines are taken from the composed nodes."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class YamlDocument:
    """One YAML file: its data, and where each value stands.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ConfigError
        The file cannot be read, is no YAML, repeats a key, or is no mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is no text in UTF-8") from None
        loader = _Loader(text)
        try:
            self._root = loader.get_single_node()
            self._refuse_repeated_keys(self._root)
            self.data: Any = None if self._root is None else loader.construct_document(self._root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise ConfigError(f"{path}:{line}: no valid YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}:1: no valid YAML: {error}") from None
        finally:
            loader.dispose()
        if not isinstance(self.data, dict):
            raise ConfigError(f"{path}:1: expected 'name: value' lines, the file has none")

    def _refuse_repeated_keys(self, node: yaml.Node | None) -> None:
        open_nodes, seen = [node], set[int]()
        while open_nodes:
            here = open_nodes.pop()
            if id(here) in seen:  # an alias; it may even contain itself
                continue
            seen.add(id(here))
            if isinstance(here, yaml.SequenceNode):
                open_nodes.extend(here.value)
            elif isinstance(here, yaml.MappingNode):
                lines: dict[Hashable, int] = {}
                for key, value in here.value:
                    line = key.start_mark.line + 1
                    if isinstance(key.value, str) and key.value != "<<":
                        if key.value in lines:
                            raise ConfigError(
                                f"{self.path}:{line}: '{key.value}' is given twice, "
                                f"first in line {lines[key.value]}"
                            )
                        lines[key.value] = line
                    open_nodes.append(value)

    def line(self, path: Sequence[Step]) -> int:
        """Return the line (from 1) of a value, or of the nearest thing around it that exists."""
        node: yaml.Node | None = self._root
        line = 1
        for step in path:
            if isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == str(step)]
                if not found:
                    break
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
                if step >= len(node.value):
                    break
                node = node.value[step]
                line = node.start_mark.line + 1
            else:
                break
        return line

    def error(self, path: Sequence[Step], message: str) -> ConfigError:
        """Return the `ConfigError` that says what is wrong with the value at `path`."""
        where = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in path).lstrip(".")
        return ConfigError(
            f"{self.path}:{self.line(path)}: {where}: {message}"
            if where
            else f"{self.path}:{self.line(path)}: {message}"
        )

    def convert(
        self,
        kind: type[T],
        *,
        at: Sequence[Step] = (),
        dec_hook: Callable[[type, Any], Any] | None = None,
    ) -> T:
        """Return the value at `at` as `kind`, usually a ``msgspec.Struct``."""
        data = _follow(self.data, at)
        try:
            return msgspec.convert(data, kind, dec_hook=dec_hook)
        except msgspec.ValidationError as error:
            text, path = _split(str(error))

        def message(trial: Any) -> str:
            try:
                msgspec.convert(trial, kind, dec_hook=dec_hook)
            except msgspec.ValidationError as error:
                return str(error)
            return ""

        steps = _pin_down(data, path, message)
        raise self.error([*at, *_blame(text, steps)], _explain(text, kind, data, steps))


def _split(message: str) -> tuple[str, list[Step]]:
    """Split msgspec's message into its text and the path at its end."""
    found = re.match(r"(.*?)(?: - at (?:`key` in )?`\$(.*)`)?$", message, re.DOTALL)
    assert found is not None
    steps: list[Step] = []
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", found[2] or ""):
        steps.append(name or (index if index == "..." else int(index)))
    return found[1], steps


def _pin_down(data: Any, path: list[Step], message: Callable[[Any], str]) -> list[Step]:
    """Replace ``...`` (msgspec names no keys of a dict) by the key whose value is to blame."""
    trial = data
    steps: list[Step] = []
    for step in path:
        if step != "...":
            steps.append(step)
            continue
        complaint = message(trial)
        for key in _follow(trial, steps):
            single = copy.deepcopy(trial)
            mapping = _follow(single, steps)
            kept = mapping[key]
            mapping.clear()
            mapping[key] = kept
            if message(single) == complaint:
                trial = single
                steps.append(key)
                break
        else:
            break
    return steps


def _follow(data: Any, steps: Sequence[Step]) -> Any:
    for step in steps:
        data = data[step]
    return data


def _blame(text: str, steps: list[Step]) -> list[Step]:
    """Return the path of the line to show: an unknown field's own line."""
    found = re.match(r"Object contains unknown field `(.*)`", text)
    return [*steps, found[1]] if found else steps


def _explain(text: str, kind: Any, data: Any, steps: list[Step]) -> str:
    """Add what msgspec leaves out: the value that came, the names that would be right."""
    expected = _type_at(kind, steps)
    if found := re.match(r"Object contains unknown field `(.*)`", text):
        known = [f.encode_name for f in getattr(expected, "fields", ())]
        return f"unknown setting '{found[1]}', expected one of: {', '.join(known)}"
    if found := re.match(r"Object missing required field `(.*)`", text):
        return f"'{found[1]}' is missing"
    try:
        value = _follow(data, steps)
    except (KeyError, IndexError, TypeError):
        return text
    came = "" if isinstance(value, (dict, list)) or value is None else f" ({value!r})"
    if isinstance(expected, msgspec.inspect.LiteralType):
        allowed = ", ".join(str(v) for v in expected.values)
        return f"expected one of: {allowed}; got {value!r}"
    return text.replace("Expected", "expected").replace("`", "") + came


def _type_at(kind: Any, steps: list[Step]) -> Any:
    here: Any = msgspec.inspect.type_info(kind)
    for step in steps:
        if isinstance(here, msgspec.inspect.StructType):
            here = next((f.type for f in here.fields if f.encode_name == step), None)
        elif isinstance(here, msgspec.inspect.DictType):
            here = here.value_type
        elif isinstance(here, msgspec.inspect.ListType):
            here = here.item_type
        else:
            return None
        if isinstance(here, msgspec.inspect.UnionType):  # X | None
            rest = [t for t in here.types if not isinstance(t, msgspec.inspect.NoneType)]
            here = rest[0] if len(rest) == 1 else None
    return here
