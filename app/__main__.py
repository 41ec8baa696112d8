"""The program ``confide``: reads its arguments and runs one command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from app import __version__
from app.cli import audit, backup, control, keys, migrate, operator, replay, serve
from app.cli.output import FAILED, CommandError, complain
from app.cli.postgres import Postgres
from app.config import ConfigError


def parser() -> argparse.ArgumentParser:
    """All commands with their options. Secrets have none: they come from the environment or from files."""
    top = argparse.ArgumentParser(
        prog="confide", description="A multi-tenant, sealed and audited store for dialogue context."
    )
    top.add_argument("--version", action="version", version=f"confide {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    serve.add_parser(commands, start_postgres)
    migrate.add_parser(commands)
    control.add_parsers(commands)
    keys.add_parser(commands)
    operator.add_parser(commands)
    replay.add_parser(commands)
    audit.add_parser(commands)
    backup.add_parsers(commands)
    return top


def start_postgres(folder: Path) -> Postgres:
    """The embedded server of development. Raises CommandError with what to do."""
    from app.embedded import EmbeddedPostgres, EmbeddedPostgresError  # noqa: PLC0415  production is without it

    try:
        return EmbeddedPostgres.start(folder)
    except EmbeddedPostgresError as error:
        raise CommandError(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Answers the exit status; what went wrong is told in one sentence, never with a traceback."""
    args = parser().parse_args(arguments)
    try:
        status: int = args.run(args)
    except (CommandError, ConfigError) as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001  a traceback could show values; type and place tell enough
        complain(f"internal error: {_place(error)}")
        return FAILED
    return status


def _place(error: BaseException) -> str:
    """The type of an unforeseen error and where it arose."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}" if trace is not None else ""
    return type(error).__name__ + where


if __name__ == "__main__":
    sys.exit(main())
