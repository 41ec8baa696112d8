"""``confide serve``: check the ground, then run the workers until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from app import __version__
from app.cli.beside import keep
from app.cli.output import FAILED, OK, CommandError, Subparsers, complain
from app.cli.postgres import StartPostgres

_READY_SECONDS: Final = 120.0
_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the idle time of usual load balancers, so that they are the ones who close."""


def add_parser(subparsers: Subparsers[argparse.ArgumentParser], start_postgres: StartPostgres) -> None:
    """Adds ``serve``."""
    parser = subparsers.add_parser(
        "serve",
        help="run the service",
        description="Runs the service. Settings are CONFIDE_* variables (docs/configuration.md). With CONFIDE_ENV=dev"
        " and no CONFIDE_DATABASE_URL it starts an embedded PostgreSQL of its own.",
        epilog="exit status: 0 stopped as asked; 1 could not start; 2 wrong usage",
    )
    parser.add_argument(
        "--demo", action="store_true", help="make a demo tenant once and print calls to paste (dev only)"
    )
    parser.add_argument("--host", help="address to listen on (CONFIDE_HOST, default 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on, 0 for any (CONFIDE_PORT, default 8080)")
    parser.add_argument("--workers", help="worker processes (CONFIDE_WORKERS, default 1)")
    parser.add_argument(
        "--json", action="store_true", help="print one line of JSON once it answers: url, pid, workers and so on"
    )
    parser.set_defaults(run=partial(run, start_postgres=start_postgres))


def run(args: argparse.Namespace, *, start_postgres: StartPostgres) -> int:
    """Serve until SIGTERM or SIGINT. In-flight requests are finished; then the embedded server, if any, stops."""
    # Workers inherit the environment: that is how the options reach them, and no secret ever stands in an argument.
    for name in ("host", "port", "workers"):
        if getattr(args, name) is not None:
            os.environ[f"CONFIDE_{name.upper()}"] = getattr(args, name)
    signal.signal(signal.SIGTERM, _stop)
    with ExitStack() as stack:
        try:
            return _serve(stack, demo=args.demo, as_json=args.json, start_postgres=start_postgres)
        except KeyboardInterrupt:
            return OK


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit(OK)


def _serve(stack: ExitStack, *, demo: bool, as_json: bool, start_postgres: StartPostgres) -> int:
    from app.cli import demo as demo_tenant  # noqa: PLC0415  the service's modules take a second to import
    from app.cli.database import bring_up, head, set_up_embedded  # noqa: PLC0415
    from app.main import load, preflight, private_dir  # noqa: PLC0415
    from app.observability.logs import configure  # noqa: PLC0415
    from app.store.cell import CellError, join_service  # noqa: PLC0415

    settings = load(os.environ)
    configure(settings.log_level)
    if demo and not settings.dev:
        raise CommandError("--demo is for development: set CONFIDE_ENV=dev")
    listener = stack.enter_context(_listen(settings.host, settings.port))
    embedded = settings.database_url is None
    if settings.database_url is None:
        server = start_postgres(private_dir(settings.state_dir) / "postgres")
        stack.callback(server.stop)
        os.environ["CONFIDE_DATABASE_URL_FILE"] = str(set_up_embedded(server, settings).absolute())
        settings = load(os.environ)
    elif settings.dev:
        bring_up(settings.owner_database_url or settings.database_url, settings.region)
    try:
        if settings.dev and not embedded and settings.owner_database_url is None:
            asyncio.run(join_service(settings.database_url or ""))
        asyncio.run(preflight(settings, head()))
        url = _url(settings.host, listener.getsockname()[1])
        if demo:
            asyncio.run(demo_tenant.prepare(settings, url))
    except CellError as error:
        raise CommandError(str(error)) from None
    if as_json:
        told = _told(settings, url, embedded=embedded)
        _say_when_ready(
            url, json.dumps(told | ({"demo": str(settings.state_dir.absolute() / "demo.env")} if demo else {}))
        )
    elif demo:
        _say_when_ready(url, demo_tenant.banner(settings.state_dir, url))
    if settings.sealer == "process":
        stack.callback(keep("app.main:seal_forever", "sealer"))
    return _run_server(listener, settings)


def _told(settings: Any, url: str, *, embedded: bool) -> dict[str, Any]:
    """What a script wants to know of a service that it started. No secrets."""
    return {
        "event": "ready",
        "url": url,
        "pid": os.getpid(),
        "workers": settings.workers,
        "version": __version__,
        "env": settings.env,
        "region": settings.region,
        "database": "embedded" if embedded else "external",
        "state": str(settings.state_dir.absolute()),
    }


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is told before anything else is started. Raises CommandError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CommandError(
            f"can't listen on {host} port {port}: {error.strerror}. Choose another: --port, or `make run PORT=8081`"
        ) from None
    listener.set_inheritable(True)
    return listener


def _run_server(listener: socket.socket, settings: Any) -> int:
    from uvicorn import Config, Server  # noqa: PLC0415
    from uvicorn.supervisors import Multiprocess  # noqa: PLC0415

    config = Config(
        "app.main:application",
        factory=True,
        workers=settings.workers,
        loop="uvloop",
        http="app.api.protocol:Protocol",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    if settings.workers > 1:
        Multiprocess(config, sockets=[listener]).run()
        return OK
    server = Server(config)
    server.run(sockets=[listener])
    if not server.started:
        complain("the service could not start: see the log above")
        return FAILED
    return OK


def _url(host: str, port: int) -> str:
    """Where a client on this machine finds the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  compared, not bound
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"


def _say_when_ready(url: str, text: str) -> None:
    """Print ``text`` once the service answers, so that what it shows works at once."""

    def wait() -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=2).close()  # noqa: S310  our own address
            except OSError:  # refused, or not ready yet: 503
                time.sleep(0.05)
                continue
            print(text, flush=True)
            return
        print("confide: the service doesn't answer yet", file=sys.stderr)

    threading.Thread(target=wait, name="banner", daemon=True).start()
