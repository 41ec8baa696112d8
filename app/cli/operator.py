"""``confide operator-key``: the first operator's key comes from the cell itself, further ones from an operator."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

from app.cli.output import OK, CommandError, Subparsers, emit, write_private


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds ``operator-key``."""
    parser = subparsers.add_parser("operator-key", help="make an operator's key on the cell itself")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    create = commands.add_parser(
        "create",
        help="make an operator's key with the cell's own settings, not through the REST API",
        description="Makes an operator's key in the database. It needs the service's settings (CONFIDE_DATABASE_URL,"
        " CONFIDE_CELL_SECRET, CONFIDE_REGION, CONFIDE_ENV); the event is in the cell's log.",
    )
    create.add_argument("--name", default="first-operator", help="a-z, 0-9 and - (default: first-operator)")
    create.add_argument(
        "--secret-file", type=Path, metavar="FILE", help="write the key there (0600), not to the terminal"
    )
    create.add_argument("--json", action="store_true", help="print JSON")
    create.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from app.errors import ConfideError  # noqa: PLC0415
    from app.main import Settings, assemble, load, serving  # noqa: PLC0415  imports all of the service
    from app.store.cell import CellError  # noqa: PLC0415

    async def create(settings: Settings) -> Any:
        parts = assemble(settings)
        async with serving(parts):
            return await parts.services.api_keys.bootstrap(args.name)

    try:
        settings = load(_with_embedded(os.environ))
        issued = asyncio.run(create(settings))
    except CellError as error:
        raise CommandError(str(error)) from None
    except ConfideError:
        raise CommandError("The database refused the key: is the name of a-z, 0-9 and - only?") from None
    answer = {"id": str(issued.row["id"]), "name": issued.row["name"], "role": "operator"}
    if args.secret_file is not None:
        write_private(args.secret_file, issued.secret + "\n")
        answer["secret_file"] = str(args.secret_file)
    else:
        answer["secret"] = issued.secret
    emit(answer, as_json=args.json)
    return OK


def _with_embedded(environ: Any) -> dict[str, str]:
    """In development without an address: that of the running embedded server, where there is one."""
    values = dict(environ)
    if values.get("CONFIDE_ENV") == "dev" and not {"CONFIDE_DATABASE_URL", "CONFIDE_DATABASE_URL_FILE"} & values.keys():
        path = Path(values.get("CONFIDE_STATE_DIR", ".confide")) / "database.url"
        if not path.exists():
            raise CommandError("CONFIDE_DATABASE_URL is not set, and there is no embedded server: run `confide serve`")
        values["CONFIDE_DATABASE_URL_FILE"] = str(path)
    return values
