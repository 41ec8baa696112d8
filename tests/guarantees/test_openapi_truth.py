"""The OpenAPI document tells the truth: requests made from it, well formed and not, meet the answers that it declares.

``CONFIDE_FUZZ_EXAMPLES`` sets how many random requests each operation gets beside the systematic ones (``make fuzz``).
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import strategies as st
from schemathesis.config import (
    ChecksConfig,
    GenerationConfig,
    OperationConfig,
    OperationsConfig,
    PositiveDataAcceptanceConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.filters import FilterSet

from app.api.openapi import document
from app.assembly import assemble, routes_of
from app.kms.aws_cell import AwsSettings
from app.kms.azure_cell import AzureSettings
from app.kms.binding import LocalBinding
from app.kms.registry import KmsSettings
from app.kms.transit import TokenAuth, TransitEndpoint
from tests.cell import REGION, Tenant, running_cell, settings_of
from tests.conftest import temporary_database
from tests.guarantees.openapi_cases import RULES, complete
from tests.guarantees.openapi_stock import TERMS, Stock

FUZZ = "CONFIDE_FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("CONFIDE_FUZZ_EXAMPLES", "5"))
WELL_FORMED = 30
"""So many systematic well-formed requests an operation gets in a short run; of further ones, each sixteenth."""
SEED = 20_240_601

APART = {
    # They close the tenant to its own keys, or narrow what these may do: a tenant of their own has them.
    "seal_tenant",
    "unseal_tenant",
    "update_own_tenant",
    "update_key_policy",
}

REFUSED: dict[str, tuple[str, ...]] = {
    # Statuses that a well-formed request may meet because of what is stored at the moment. Nothing else but success is
    # taken for one; each of these stands in the document.
    "activate_key_binding": ("409",),  # it is active, or a move is under way
    "retire_key_binding": ("409",),  # it seals the tenant's keys
    "rotate_keys": ("409",),  # a move is under way
    "rekey_tenant": ("409",),
    "commit": ("404", "412"),  # it names an object or a version that isn't stored
    "export_data": ("429",),  # so many begun within an hour
}


@dataclass
class Running:
    own: Stock
    apart: Stock

    def stock(self, operation: dict[str, Any]) -> Stock:
        return self.apart if operation["operationId"] in APART else self.own


@pytest.fixture(scope="module")
def running(postgres: str, database_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A cell behind a real server, in a thread with a loop of its own."""
    ready, stop = threading.Event(), threading.Event()
    found: list[Running] = []

    async def serve(listener: socket.socket) -> None:
        async with running_cell(database, state, _kms(state), trust_file=terms) as cell:
            config = uvicorn.Config(
                cell.api,
                http="app.api.protocol:Protocol",
                lifespan="off",
                log_config=None,
                proxy_headers=False,
                server_header=False,
                access_log=False,
            )
            server = uvicorn.Server(config)
            task = asyncio.create_task(server.serve(sockets=[listener]))
            operator = cell.operator.headers["authorization"].removeprefix("Bearer ")
            tenants: list[Tenant] = [await cell.tenant("acme"), await cell.tenant("apart")]
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            keys = [{**tenant.keys, "operator": operator} for tenant in tenants]
            found.append(Running(*[await asyncio.to_thread(Stock, url, each) for each in keys]))
            ready.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await task

    state = tmp_path_factory.mktemp("openapi-truth") / "state"
    terms = state.parent / "trust.yaml"
    terms.write_text(f"documents: [{{id: {TERMS['document']}, title: Terms, version: {TERMS['version']}}}]")
    with (
        temporary_database(postgres, database_template) as database,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)), name="cell")
        thread.start()
        try:
            assert ready.wait(120)
            yield found[0]
        finally:
            stop.set()
            thread.join(120)
            assert not thread.is_alive()


def _kms(state: Path) -> KmsSettings:
    """Every provider, so that bindings to each can be made; nothing is behind them, and making one calls nobody."""
    aws = AwsSettings("arn:aws:iam::999900001111:role/confide", "key", "secret", kms_endpoint="http://127.0.0.1:9")
    transit = TransitEndpoint("own", "https://transit.confide.invalid", None, TokenAuth("token"), REGION)
    azure = AzureSettings(client_id="11111111-1111-4111-8111-111111111111", client_secret="secret")
    folder = state.parent / "keys"
    folder.mkdir(mode=0o700)
    return KmsSettings(
        REGION, LocalBinding("vendor"), dev=True, local_folder=folder, aws=aws, azure=azure, transit=(transit,)
    )


def _networks() -> st.SearchStrategy[str]:
    """Addresses, and networks without bits beyond their prefix."""
    sixteen = st.integers(0, 255)
    return st.one_of(
        st.ip_addresses().map(str),
        st.builds("10.{}.0.0/16".format, sixteen),
        st.builds("2001:db8:{:x}::/48".format, sixteen),
    )


def _times() -> st.SearchStrategy[str]:
    """RFC 3339 in the years that the document names."""
    times = st.datetimes(min_value=datetime(2000, 1, 2), max_value=datetime(2199, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
    return times.map(lambda moment: moment.isoformat())


def _schema() -> Any:
    """The document as the service would serve it; it depends on the routes alone."""
    parts = assemble(settings_of("postgresql://nobody@localhost/none", Path(tempfile.gettempdir()) / "none"))
    generation = GenerationConfig(max_examples=EXAMPLES, deterministic=True, with_security_parameters=False)
    project = ProjectConfig(
        request_timeout=120,  # a log of many thousand events is exported whole
        generation=generation,
        checks=_accepted(),
        operations=OperationsConfig(
            operations=[
                OperationConfig(filter_set=_named(operation), checks=_accepted(*statuses))
                for operation, statuses in REFUSED.items()
            ]
        ),
    )
    config = SchemathesisConfig(projects=ProjectsConfig(default=project), seed=SEED)
    made = document(routes_of(parts), version="0")
    there = {operation["operationId"] for methods in made["paths"].values() for operation in methods.values()}
    assert {*REFUSED, *APART, *RULES} <= there
    return schemathesis.openapi.from_dict(made, config=config)


def _accepted(*beside: str) -> ChecksConfig:
    """Every check, and a well-formed request must succeed or meet one of the statuses named."""
    accepted = PositiveDataAcceptanceConfig(expected_statuses=["2xx", "3xx", *beside])
    return ChecksConfig(positive_data_acceptance=accepted)


def _named(operation: str) -> FilterSet:
    chosen = FilterSet()
    chosen.include(operation_id=operation)
    return chosen


_sent: Counter[str] = Counter()


def _spared(case: schemathesis.Case) -> bool:
    """Whether a short run leaves this one out: a body of many parts has hundreds of well-formed shapes."""
    if FUZZ or case.meta is None or not case.meta.generation.mode.is_positive:
        return False
    _sent[case.operation.label] += 1
    number = _sent[case.operation.label]
    # An export waits until what was just recorded is sealed.
    enough = 6 if case.operation.path.endswith("/export") else WELL_FORMED
    return number > enough and number % 16 != 0


schemathesis.openapi.format("cidr", _networks())
schemathesis.openapi.format("date-time", _times())
schema = _schema()


@schema.parametrize()
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # the service does, in a thread beside
@pytest.mark.timeout(300 + 10 * EXAMPLES)
def test_requests_made_from_the_document_meet_it(case: schemathesis.Case, running: Running) -> None:
    """With all checks: statuses, headers, bodies, refusal of what is malformed, acceptance of what isn't, and that no
    route answers without an API key.
    """
    definition = case.operation.definition.raw
    if _spared(case):
        return
    stock = running.stock(definition)
    own = complete(case, stock)
    roles = definition.get("x-confide-roles")
    key = {"Authorization": f"Bearer {stock.keys[roles[0]]}"} if roles else {}
    case.call_and_validate(base_url=stock.url, headers=key | own)
