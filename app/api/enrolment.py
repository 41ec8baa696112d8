"""Redeeming the one-time token that an operator was given for a new tenant."""

from __future__ import annotations

from typing import Final

from app.api.control_schemas import ApiKeyIssued, ApiKeyOut, RedeemIn
from app.api.http import Answer, Request, json_answer
from app.api.table import ResponseDoc, Route
from app.errors import Conflict, TenantSuspended, Unauthenticated, Unavailable, WrongRegion
from app.services.access import trace_of
from app.services.services import Services


async def redeem(services: Services, request: Request, body: RedeemIn) -> Answer:
    issued = await services.tenants.redeem(body.token, body.name, trace_of(request))
    return json_answer(ApiKeyIssued(ApiKeyOut.of(issued.row), issued.secret), 201)


ROUTES: Final = (
    Route(
        "POST",
        "/v1/enrolments/redeem",
        redeem,
        "redeem_enrolment",
        "Exchange a one-time enrolment token for the tenant's first admin key.",
        {201: ResponseDoc("The key. Its secret is shown this once.", ApiKeyIssued)},
        public=True,
        description="The token stands in for an API key: no Authorization header is needed. It works once, for 7 days.",
        tags=("tenants",),
        body=RedeemIn,
        errors=(Unauthenticated, TenantSuspended, WrongRegion, Conflict, Unavailable),
        request_example={"token": "cfe_live_eu-central-1_…", "name": "first-admin"},
    ),
)
