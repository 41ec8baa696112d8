"""The OpenAPI document tells the truth: requests made from it, well formed and not, meet the answers that it declares.

``CONFIDE_FUZZ_EXAMPLES`` sets how many random requests each operation gets beside the systematic ones (``make fuzz``).
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from app.api.openapi import document
from app.assembly import assemble, routes_of
from tests.cell import Tenant, running_cell, settings_of
from tests.conftest import temporary_database

EXAMPLES = int(os.environ.get("CONFIDE_FUZZ_EXAMPLES", "5"))
SEED = 20_240_601

NOT_CALLED = (
    "create_audit_stream",  # it would send to whatever address was generated
)

APART = {
    # They close the tenant to its own keys, or narrow what these may do: a tenant of their own has them.
    "seal_tenant",
    "unseal_tenant",
    "leave",
    "update_own_tenant",
    "update_key_policy",
}

NOT_CHECKED = [
    # It repeats the call with the headers given here, the key among them, and so finds every route open. What a caller
    # without a key sees of each route is tested with the isolation of tenants.
    ignored_auth,
    # A request can be well formed and yet refused with 400: a cursor that nobody issued, 2.0 for an integer, a header
    # that is written by the rules of HTTP rather than by those of a pattern.
    positive_data_acceptance,
]


@dataclass
class Running:
    url: str
    keys: dict[str, str]
    apart: dict[str, str]

    def key(self, operation: dict[str, Any]) -> str | None:
        roles = operation.get("x-confide-roles")
        if not roles:
            return None
        return (self.apart if operation["operationId"] in APART else self.keys)[roles[0]]


@pytest.fixture(scope="module")
def running(postgres: str, database_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A cell behind a real server, in a thread with a loop of its own."""
    ready, stop = threading.Event(), threading.Event()
    found: list[Running] = []

    async def serve(listener: socket.socket) -> None:
        async with running_cell(database, state) as cell:
            config = uvicorn.Config(
                cell.api, lifespan="off", log_config=None, proxy_headers=False, server_header=False, access_log=False
            )
            server = uvicorn.Server(config)
            task = asyncio.create_task(server.serve(sockets=[listener]))
            operator = cell.operator.headers["authorization"].removeprefix("Bearer ")
            tenants: list[Tenant] = [await cell.tenant("acme"), await cell.tenant("apart")]
            own, apart = ({**tenant.keys, "operator": operator} for tenant in tenants)
            found.append(Running(f"http://127.0.0.1:{listener.getsockname()[1]}", own, apart))
            ready.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await task

    state = tmp_path_factory.mktemp("openapi-truth") / "state"
    with (
        temporary_database(postgres, database_template) as database,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)), name="cell")
        thread.start()
        try:
            assert ready.wait(20)
            yield found[0]
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()


def _schema() -> Any:
    """The document as the service would serve it; it depends on the routes alone."""
    parts = assemble(settings_of("postgresql://nobody@localhost/none", Path(tempfile.gettempdir()) / "none"))
    generation = GenerationConfig(max_examples=EXAMPLES, deterministic=True, with_security_parameters=False)
    project = ProjectConfig(generation=generation)
    config = SchemathesisConfig(projects=ProjectsConfig(default=project), seed=SEED)
    made = document(routes_of(parts), version="0")
    return schemathesis.openapi.from_dict(made, config=config).exclude(operation_id=list(NOT_CALLED))


schema = _schema()


@schema.parametrize()
@pytest.mark.timeout(60 + 10 * EXAMPLES)
@pytest.mark.xdist_group("openapi-truth")
def test_requests_made_from_the_document_meet_it(case: schemathesis.Case, running: Running) -> None:
    key = running.key(case.operation.definition.raw)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    case.call_and_validate(base_url=running.url, headers=headers, excluded_checks=NOT_CHECKED)
