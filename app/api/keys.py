"""A tenant's keys under /v1/keys: inventory, bindings, the kill switch, rotation and the policy."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from app.api.http import Answer, Request, json_answer
from app.api.key_schemas import (
    ActivatedOut,
    BindingIn,
    BindingOut,
    BindingsOut,
    CheckedOut,
    CheckOut,
    InventoryOut,
    KeyStateOut,
    PolicyIn,
    PolicyOut,
    RetiredOut,
    StartedOut,
    StepOut,
)
from app.api.table import LOCATION, ResponseDoc, Route
from app.errors import (
    BadRequest,
    Conflict,
    KeyAccessDenied,
    KeyMisconfigured,
    KeyUnavailable,
    NotFound,
    TenantSealed,
    TenantSuspended,
)
from app.identity import Scope
from app.kms.doctor import may_activate
from app.services.access import trace_of
from app.services.services import Services

_TAGS: Final = ("keys",)


async def inventory(services: Services, request: Request, _body: None) -> Answer:
    found = await services.keys.bindings.inventory(request.caller, trace_of(request))
    return json_answer(InventoryOut.of(found, services.region))


async def create(services: Services, request: Request, body: BindingIn) -> Answer:
    given = {name: getattr(body, name) for name in body.__struct_fields__}
    given = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    row = await services.keys.bindings.create(request.caller, given, trace_of(request))
    steps = [StepOut.of(step) for step in services.keys.bindings.to_paste(request.caller.tenant, row)]
    where = b"/v1/keys/bindings/%s" % str(row["id"]).encode()
    return json_answer(BindingOut.of(row, steps=steps), 201, ((b"location", where),))


async def bindings(services: Services, request: Request, _body: None) -> Answer:
    found = await services.keys.bindings.inventory(request.caller, trace_of(request))
    return json_answer(BindingsOut([BindingOut.of(row) for row in found.bindings]))


async def binding(services: Services, request: Request, _body: None) -> Answer:
    row, depending = await services.keys.bindings.get(request.caller, request.path_id(), trace_of(request))
    steps = [StepOut.of(step) for step in services.keys.bindings.to_paste(request.caller.tenant, row)]
    return json_answer(BindingOut.of(row, steps=steps, depending=depending))


async def check(services: Services, request: Request, _body: None) -> Answer:
    row, checks = await services.keys.bindings.check(request.caller, request.path_id(), trace_of(request))
    return json_answer(CheckedOut(BindingOut.of(row), may_activate(checks), [CheckOut.of(each) for each in checks]))


async def activate(services: Services, request: Request, _body: None) -> Answer:
    done = await services.keys.moves.activate(request.caller, request.path_id(), trace_of(request))
    return json_answer(ActivatedOut(BindingOut.of(done.binding), done.generation, done.job), 202, _job(done.job))


async def retire(services: Services, request: Request, _body: None) -> Answer:
    row, depending = await services.keys.bindings.retire(request.caller, request.path_id(), trace_of(request))
    return json_answer(RetiredOut.of(row, depending))


async def seal(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(KeyStateOut.of(await services.keys.bindings.seal(request.caller, trace_of(request))))


async def unseal(services: Services, request: Request, _body: None) -> Answer:
    return json_answer(KeyStateOut.of(await services.keys.bindings.unseal(request.caller, trace_of(request))))


async def rotate(services: Services, request: Request, _body: None) -> Answer:
    done = await services.keys.moves.rotate(request.caller, trace_of(request))
    return json_answer(StartedOut(done.job), 202, _job(done.job))


async def rekey(services: Services, request: Request, _body: None) -> Answer:
    job = await services.keys.rekey.start(request.caller, trace_of(request))
    return json_answer(StartedOut(job), 202, _job(job))


async def policy(services: Services, request: Request, body: PolicyIn) -> Answer:
    given = {name: getattr(body, name) for name in body.__struct_fields__}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not msgspec.UNSET}
    if not changes:
        raise BadRequest("The body names nothing to change.")
    row = await services.keys.bindings.set_policy(request.caller, changes, trace_of(request))
    return json_answer(PolicyOut.of(row, services.region))


def _job(job: Any) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"location", b"/v1/jobs/%s" % str(job).encode()),)


def _route(
    method: Any, path: str, handler: Any, name: str, summary: str, responses: Any, scope: Scope, **more: Any
) -> Route:
    errors = (TenantSuspended, *more.pop("errors", ()))
    path = "/v1/keys" + path
    return Route(method, path, handler, name, summary, responses, scope=scope, tags=_TAGS, errors=errors, **more)


_READ: Final = Scope.KEYS_READ
_WRITE: Final = Scope.KEYS_WRITE
_STARTED: Final = {202: ResponseDoc("Begun; the job tells how far it is.", StartedOut, headers=(LOCATION,))}
_NOW: Final = (Conflict, KeyUnavailable, KeyAccessDenied, TenantSealed)

ROUTES: Final = (
    _route(
        "GET",
        "",
        inventory,
        "get_keys",
        "What opens the tenant's data: keys, generations, states, ages, and how much depends on each.",
        {200: ResponseDoc("The inventory.", InventoryOut)},
        _READ,
    ),
    _route(
        "POST",
        "/bindings",
        create,
        "create_key_binding",
        "Name a key of your own. Answers what to paste into your cloud.",
        {201: ResponseDoc("Pending: paste the steps, then check.", BindingOut, headers=(LOCATION,))},
        _WRITE,
        body=BindingIn,
        errors=(Conflict,),
        request_example={
            "provider": "aws-kms",
            "key_arn": "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "role_arn": "arn:aws:iam::111122223333:role/confide",
        },
    ),
    _route(
        "GET",
        "/bindings",
        bindings,
        "list_key_bindings",
        "List the tenant's key bindings, oldest first.",
        {200: ResponseDoc("All bindings, retired ones too.", BindingsOut)},
        _READ,
    ),
    _route(
        "GET",
        "/bindings/{id}",
        binding,
        "get_key_binding",
        "Get a key binding, what to paste for it, and what depends on it.",
        {200: ResponseDoc("The binding.", BindingOut)},
        _READ,
        errors=(NotFound,),
    ),
    _route(
        "POST",
        "/bindings/{id}/check",
        check,
        "check_key_binding",
        "Run the doctor: every check with its cause and its fix.",
        {200: ResponseDoc("What was found.", CheckedOut)},
        _WRITE,
        errors=(NotFound, Conflict),
    ),
    _route(
        "POST",
        "/bindings/{id}/activate",
        activate,
        "activate_key_binding",
        "Let this key rule. Live: both the old and the new key open until the job is done.",
        {202: ResponseDoc("The new key seals from now on.", ActivatedOut, headers=(LOCATION,))},
        _WRITE,
        errors=(NotFound, KeyMisconfigured, *_NOW),
    ),
    _route(
        "POST",
        "/bindings/{id}/retire",
        retire,
        "retire_key_binding",
        "Take a key out of use. Finishes only when nothing depends on it; else answers what does.",
        {200: ResponseDoc("Retired with a statement, or what still depends on the key.", RetiredOut)},
        _WRITE,
        errors=(NotFound, Conflict),
    ),
    _route(
        "POST",
        "/seal",
        seal,
        "seal_tenant",
        "The kill switch: no key of the tenant's is used from the next statement of any worker on.",
        {200: ResponseDoc("Sealed.", KeyStateOut)},
        _WRITE,
    ),
    _route(
        "POST",
        "/unseal",
        unseal,
        "unseal_tenant",
        "Lift the seal. A key that is revoked at its KMS stays so.",
        {200: ResponseDoc("How the tenant's keys stand now.", KeyStateOut)},
        _WRITE,
    ),
    _route(
        "POST",
        "/rotate",
        rotate,
        "rotate_keys",
        "Begin a new root key generation under the present key.",
        _STARTED,
        _WRITE,
        errors=(KeyMisconfigured, *_NOW),
    ),
    _route(
        "POST",
        "/rekey",
        rekey,
        "rekey_tenant",
        "Encrypt everything anew, under new container keys and a new index key.",
        _STARTED,
        _WRITE,
        errors=_NOW,
        description="Live: requests go on meanwhile, and one that meets a container which hasn't been encrypted anew"
        " yet does that first. Idempotency keys from before stay known for as long as they would have been.",
    ),
    _route(
        "PATCH",
        "/policy",
        policy,
        "update_key_policy",
        "Change lease, grace, rotation period or the regions where a KMS key may be.",
        {200: ResponseDoc("The policy.", PolicyOut)},
        _WRITE,
        body=PolicyIn,
        request_example={"lease_seconds": 30, "grace_seconds": 300},
    ),
)
