"""``qkdctl keylength``: the secret length of a block from its counts, so anyone can check it."""

from __future__ import annotations

import json
from typing import Any, TextIO

import click
import msgspec
from rich.console import Console
from rich.table import Table

from qkdctl.protocols.key_length import (
    BlockCounts,
    InconsistentCounts,
    KeyLength,
    block_counts,
    secret_length,
)
from qkdctl.roles.errors import ConfigError


@click.command("keylength")
@click.argument("file", type=click.File("r"), default="-")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(file: TextIO, as_json: bool) -> None:
    """Compute the secret length of a block from its counts.

    FILE is a JSON document (standard input if left out or "-") with: bound (lim2014, rusca2018,
    bbm92, asymptotic), concentration (hoeffding, chernoff), intensities and probabilities (mu1,
    mu2, mu3), key_basis and test_basis (detections and errors, each per intensity, or plain
    numbers for bbm92), leaked_bits, eps_sec, eps_cor and, if wanted, cap_errors.
    """
    block = read_block(file)
    try:
        result = secret_length(block)
    except InconsistentCounts as error:
        raise ConfigError(f"{file.name}: {error}") from None
    except (ArithmeticError, ValueError) as error:
        raise ConfigError(f"{file.name}: the counts are outside the bound's range: {error}") from None
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        _print(block, result)


def read_block(file: TextIO) -> BlockCounts:
    """Read and check a block document; a `ConfigError` names the file and the field or line."""
    try:
        document: Any = json.load(file, object_pairs_hook=_refuse_repeats)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{file.name}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file.name}: not a text file") from None
    except InconsistentCounts as error:
        raise ConfigError(f"{file.name}: {error}") from None
    try:
        return block_counts(document)
    except InconsistentCounts as error:
        raise ConfigError(f"{file.name}: {error}") from None


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise InconsistentCounts(name, "is given twice")
        document[name] = value
    return document


def _print(block: BlockCounts, result: KeyLength) -> None:
    table = Table(title=f"Secret length, {result.bound}", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    rows = [
        ("sifted bits, key basis", f"{result.key_basis_events:.0f}"),
        ("sifted bits, test basis", f"{result.test_basis_events:.0f}"),
    ]
    if block.intensities:
        rows += [
            ("vacuum events, key basis, at least", f"{result.vacuum_events:.1f}"),
            ("single-photon events, key basis, at least", f"{result.single_photon_events:.1f}"),
            ("single-photon events, test basis, at least", f"{result.test_single_photon_events:.1f}"),
            ("single-photon errors, test basis, at most", f"{result.single_photon_errors:.1f}"),
        ]
    rows += [
        ("phase error, at most", f"{result.phase_error:.5f}"),
        ("  of which sampling margin", f"{result.phase_error_margin:.5f}"),
        ("leaked bits", f"{result.leaked_bits:.0f}"),
        ("cost of secrecy, bits", f"{result.secrecy_cost_bits:.1f}"),
        ("cost of verification, bits", f"{result.verification_cost_bits:.1f}"),
        ("secret bits", f"{result.secret_bits}"),
        ("eps_total", f"{result.eps_total:.6g}"),
    ]
    for row in rows:
        table.add_row(*row)
    console = Console(width=100)
    console.print(table)
    if result.reason:
        console.print(f"No key: {result.reason}.", highlight=False)
    console.print(
        f"Fluctuations: {result.concentration}. Source: {result.source}.", highlight=False
    )
