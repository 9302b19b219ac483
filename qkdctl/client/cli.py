"""The ``qkdctl`` command: a table of lazily imported subcommands, so that start-up stays quick."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import entry_points

import click

from qkdctl.roles.errors import ConfigError, QkdctlError

COMMANDS = {
    "demo": "qkdctl.client.commands.demo:command",
    "daemon": "qkdctl.client.commands.daemon:command",
    "check": "qkdctl.client.commands.check:command",
    "status": "qkdctl.client.commands.node:status",
    "describe": "qkdctl.client.commands.node:describe",
    "get": "qkdctl.client.commands.node:get",
    "set": "qkdctl.client.commands.node:set_",
    "start": "qkdctl.client.commands.node:start",
    "stop": "qkdctl.client.commands.node:stop",
    "watch": "qkdctl.client.commands.node:watch",
    "keys": "qkdctl.client.commands.node:keys",
    "distill": "qkdctl.client.commands.distill:command",
    "replay": "qkdctl.client.commands.replay:command",
    "keylength": "qkdctl.client.commands.keylength:command",
    "benchmark": "qkdctl.client.commands.benchmark:command",
}
COMMAND_GROUP = "qkdctl.commands"


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return our own commands in the order of the table, then those of installed packages."""
        return [*COMMANDS, *(e.name for e in entry_points(group=COMMAND_GROUP))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command, from the table or from an entry point."""
        target = COMMANDS.get(cmd_name)
        if target is None:
            for entry in entry_points(group=COMMAND_GROUP, name=cmd_name):
                loaded: click.Command = entry.load()
                return loaded
            return None
        module, _, attribute = target.partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qkdctl")
def cli() -> None:
    """Control software for quantum key distribution."""


def main() -> None:
    """Run the command line; errors of the vocabulary become one line and an exit status."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2 if isinstance(error, click.UsageError) else error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except ConfigError as error:
        click.echo(f"qkdctl: {error}", err=True)
        sys.exit(2)
    except QkdctlError as error:
        click.echo(f"qkdctl: {type(error).__name__}: {error}", err=True)
        sys.exit(1)
