"""The trust page, acceptances, consents, the statement of purposes, and evidence."""

from __future__ import annotations

from datetime import datetime, timedelta
from html import escape
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from msgspec import Meta

from app.api.control_schemas import LIMIT, Aware, check_times
from app.api.http import Answer, Request, json_answer
from app.api.schemas import In, Out
from app.api.table import QueryParam, ResponseDoc, Route
from app.errors import InvalidRequest, NotFound, TenantSuspended, Unavailable
from app.identity import Scope
from app.services.access import trace_of
from app.services.services import Services

_TAGS: Final = ("trust",)
_LONGEST: Final = timedelta(days=400)
HTML: Final = b"text/html; charset=utf-8"
ZIP: Final = b"application/zip"


class AcceptIn(In):
    """The present version of a document of GET /v1/trust."""

    document: Annotated[str, Meta(pattern="^[a-z0-9-]{1,63}$")]
    version: Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{1,63}$")]


class AcceptanceOut(Out):
    id: UUID
    document: str
    version: str
    digest: str
    accepted_by: UUID
    api_key: UUID
    accepted_at: datetime


class AcceptancesOut(Out):
    acceptances: list[AcceptanceOut]


class ConsentIn(In):
    """A transfer that the tenant allows: of what, where to, on which safeguard (GDPR Art. 45 to 49), until when.

    ``destination`` isn't the tenant's own region, ``expires_at`` lies ahead.
    """

    scope: Literal["kms", "audit-stream", "incident-notice"]
    destination: Annotated[str, Meta(pattern="^[a-z0-9-]{2,32}$")]
    safeguard: Literal["adequacy", "scc", "bcr", "explicit-consent", "derogation"]
    expires_at: Aware


class ConsentOut(Out):
    id: UUID
    scope: str
    destination: str
    safeguard: str
    granted_by: UUID
    api_key: UUID
    granted_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    revoked_by: UUID | None = None


class ConsentsOut(Out):
    consents: list[ConsentOut]


class TrustOut(Out):
    """What the deployment states in public, and what the software knows of itself."""

    operator: str
    contact: str
    regions: list[str]
    encryption: str
    key_options: list[str]
    retention: dict[str, Any]
    erasure: dict[str, Any]
    incident_clock: dict[str, Any]
    data_use: str
    purposes: list[str]
    sub_processors: list[dict[str, Any]]
    documents: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    notice_days: int


class StatementOut(Out):
    """``note`` signs ``statement``; ``checkpoint`` is the audit log's, to verify the leaves against."""

    statement: dict[str, Any]
    note: str
    checkpoint: str | None = None


async def trust(services: Services, _request: Request, _body: None) -> Answer:
    return json_answer(services.privacy.trust.page)


async def page(services: Services, _request: Request, _body: None) -> Answer:
    found = services.privacy.trust.page
    rows = "".join(
        f"<tr><th scope=row>{_words(name)}</th><td>{_html(value)}</td></tr>" for name, value in found.items()
    )
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Trust</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "th{text-align:left;vertical-align:top;padding:.5rem 1rem .5rem 0;white-space:nowrap}"
        "td{padding:.5rem 0}</style>"
        f"<h1>How your data is kept</h1><table>{rows}</table>"
    )
    return Answer(
        200, text.encode(), HTML, ((b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),)
    )


def _words(name: str) -> str:
    return escape(name.replace("_", " ").capitalize())


def _html(value: Any) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{_words(name)}: {_html(each)}" for name, each in value.items() if each != "")
    if isinstance(value, list):
        return "<ul>" + "".join(f"<li>{_html(each)}</li>" for each in value) + "</ul>" if value else "none"
    return escape(str(value))


async def accept(services: Services, request: Request, body: AcceptIn) -> Answer:
    row = await services.privacy.trust.accept(request.caller, body.document, body.version, trace_of(request))
    return json_answer(dict(row), 201)


async def acceptances(services: Services, request: Request, _body: None) -> Answer:
    found = await services.privacy.trust.acceptances(request.caller, trace_of(request))
    return json_answer({"acceptances": [dict(row) for row in found]})


async def consent(services: Services, request: Request, body: ConsentIn) -> Answer:
    check_times(body.expires_at)
    row = await services.privacy.residency.grant(
        request.caller, body.scope, body.destination, body.safeguard, body.expires_at, trace_of(request)
    )
    return json_answer(dict(row), 201)


async def consents(services: Services, request: Request, _body: None) -> Answer:
    found = await services.privacy.residency.page(request.caller, request.query["limit"], trace_of(request))
    return json_answer({"consents": [dict(row) for row in found]})


async def revoke_consent(services: Services, request: Request, _body: None) -> Answer:
    row = await services.privacy.residency.revoke(request.caller, request.path_id(), trace_of(request))
    return json_answer(dict(row))


async def statement(services: Services, request: Request, _body: None) -> Answer:
    since, until = _period(request)
    return json_answer(await services.privacy.statements.make(request.caller, since, until, trace_of(request)))


async def evidence(services: Services, request: Request, _body: None) -> Answer:
    since, until = _period(request)
    found = await services.privacy.evidence.one(
        request.caller, request.query["control"], since, until, trace_of(request)
    )
    return json_answer(found)


async def archive(services: Services, request: Request, _body: None) -> Answer:
    since, until = _period(request)
    made = await services.privacy.evidence.archive(request.caller, since, until, trace_of(request))
    return Answer(200, made, ZIP, ((b"content-disposition", b'attachment; filename="confide-evidence.zip"'),))


def _period(request: Request) -> tuple[datetime, datetime]:
    since, until = request.query["from"], request.query["to"]
    check_times(since, until)
    if not since < until or until - since > _LONGEST:
        raise InvalidRequest("from must be before to, and the period at most 400 days.", "/from")
    return since, until


class EvidenceOut(Out):
    """One control: ``result`` is kept, broken, empty (nothing in the period) or not-evidenced. ``note`` signs it."""

    evidence: dict[str, Any]
    note: str
    checkpoint: str | None = None


_FROM: Final = QueryParam("from", Aware, "The period's beginning, included.", required=True)
_TO: Final = QueryParam("to", Aware, "The period's end, excluded.", required=True)
_CONTROL: Final = QueryParam(
    "control", Annotated[str, Meta(pattern="^[a-z0-9.-]{2,32}$")], "E.g. cc6.1, gdpr-17, q-training.", required=True
)

ROUTES: Final = (
    Route("GET", "/v1/trust", trust, "get_trust", "What this deployment states about itself",
          {200: ResponseDoc("The statement.", TrustOut)}, public=True, tags=_TAGS),
    Route("GET", "/trust", page, "trust_page", "The same as a page", public=True, tags=_TAGS, documented=False,
          responses={200: ResponseDoc("The page.", content_type="text/html")}),
    Route("POST", "/v1/trust/acceptances", accept, "accept_terms", "Accept the present version of a document",
          {201: ResponseDoc("Recorded.", AcceptanceOut)}, scope=Scope.PRIVACY_WRITE, tags=_TAGS, body=AcceptIn,
          errors=(NotFound, TenantSuspended), request_example={"document": "dpa", "version": "2026-01"}),
    Route("GET", "/v1/trust/acceptances", acceptances, "list_acceptances", "What the tenant has accepted",
          {200: ResponseDoc("The newest first.", AcceptancesOut)}, scope=Scope.PRIVACY_READ, tags=_TAGS,
          errors=(TenantSuspended,)),
    Route("POST", "/v1/privacy/consents", consent, "grant_consent", "Consent to a transfer to another region",
          {201: ResponseDoc("The consent.", ConsentOut)}, scope=Scope.PRIVACY_WRITE, tags=_TAGS, body=ConsentIn,
          errors=(TenantSuspended,), request_example={"scope": "incident-notice", "destination": "us-east-1",
          "safeguard": "scc", "expires_at": "2030-01-01T00:00:00Z"}),
    Route("GET", "/v1/privacy/consents", consents, "list_consents", "Consents, those that have ended too",
          {200: ResponseDoc("The newest first.", ConsentsOut)}, scope=Scope.PRIVACY_READ, tags=_TAGS, query=(LIMIT,),
          errors=(TenantSuspended,)),
    Route("POST", "/v1/privacy/consents/{id}/revoke", revoke_consent, "revoke_consent", "Revoke a consent, at once",
          {200: ResponseDoc("The revoked consent.", ConsentOut)}, scope=Scope.PRIVACY_WRITE, tags=_TAGS,
          errors=(NotFound, TenantSuspended)),
    Route("GET", "/v1/privacy/statement", statement, "get_purpose_statement",
          "A signed account of every opening by purpose, principal and region",
          {200: ResponseDoc("The statement.", StatementOut)}, scope=Scope.PRIVACY_READ, tags=_TAGS,
          query=(_FROM, _TO), errors=(InvalidRequest, Unavailable, TenantSuspended)),
    Route("GET", "/v1/evidence", evidence, "get_evidence", "Evidence for one control",
          {200: ResponseDoc("Population, query, result, leaves, signature.", EvidenceOut)}, scope=Scope.AUDIT_READ,
          tags=_TAGS, query=(_CONTROL, _FROM, _TO), errors=(InvalidRequest, NotFound, TenantSuspended)),
    Route("GET", "/v1/evidence/archive", archive, "get_evidence_archive", "Evidence for every control of a period",
          {200: ResponseDoc("A ZIP with a signed note for each control.", content_type="application/zip")},
          scope=Scope.AUDIT_READ, tags=_TAGS, query=(_FROM, _TO), errors=(InvalidRequest, TenantSuspended)),
)  # fmt: skip
