"""What makes a request well formed beyond what OpenAPI can say, by operation.

Each rule stands in the document in words: that an id or a cursor was issued, that two query parameters exclude each
other, that one time is before another. Here a generated request is made to keep it, and nothing else of it changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from ipaddress import ip_network
from typing import Any
from urllib.parse import quote

from schemathesis import Case
from schemathesis.core import NotSet
from schemathesis.core.parameters import ParameterLocation

from tests.cell import REGION
from tests.guarantees.openapi_stock import RECEIVER, TERMS, Stock

Rule = Callable[[Case, Stock], None]
_LISTS = {"list_session_objects", "list_subject_objects", "list_app_objects"}
_FIXED = "00000000-0000-0000-0000-000000000001"


def complete(case: Case, stock: Stock) -> dict[str, str]:
    """Let the case name what is there, in place; answers headers that it must be sent with."""
    definition = case.operation.definition.raw
    operation, path = definition["operationId"], case.operation.path
    if "{id}" in path and not (case.meta and case.meta.is_negative_at(ParameterLocation.PATH)):
        case.path_parameters["id"] = stock.id_for(operation, path)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return {}
    _headers(case, definition)
    if (case.media_type or "").endswith("json") and not isinstance(case.body, bytes | NotSet):
        _settle(case)
    if "cursor" in case.query or (operation in _LISTS and "before" in case.query):
        _cursor(case, stock)
    if "from" in case.query and not operation.startswith("prove_audit_consistency"):
        _period(case.query)
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = stock.name("once")
    rule = RULES.get(operation)
    headers = rule(case, stock) if rule is not None else None
    return headers if isinstance(headers, dict) else {}


def _headers(case: Case, definition: dict[str, Any]) -> None:
    """An entity tag has quotes, which the generator's systematic cases leave out; and a write takes one condition."""
    for parameter in definition.get("parameters", []):
        name, pattern = parameter["name"], parameter["schema"].get("pattern")
        sent = case.headers.get(name) if parameter["in"] == "header" and pattern is not None else None
        if sent is not None and re.search(pattern, sent) is None:
            case.headers[name] = parameter["example"]
    if case.method != "GET" and {"If-Match", "If-None-Match"} <= set(case.headers):
        del case.headers["If-Match"]


def _settle(case: Case) -> None:
    """Set only what changes: a case whose parts are set is judged anew by its maker."""
    kept = _kept(case.body)
    settled = _integers(kept) if case.media_type == "application/json" else kept
    if repr(settled) != repr(case.body):
        case.body = settled


def _kept(value: Any) -> Any:
    """Integers of 64 bits: greater ones are refused rather than rounded."""
    if isinstance(value, dict):
        return {name: _kept(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_kept(each) for each in value]
    return 0 if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


def _integers(value: Any) -> Any:
    """JSON Schema counts 2.0 as an integer; the service takes an integer as written without a fraction."""
    if isinstance(value, dict):
        return {name: each if name == "json" else _integers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_integers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _cursor(case: Case, stock: Stock) -> None:
    """The cursor of a first page of one, where there is a second page."""
    name = "cursor" if "cursor" in case.query else "before"
    others = {key: value for key, value in case.query.items() if key not in {name, "limit"}}
    role = case.operation.definition.raw["x-confide-roles"][0]
    query = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in {**others, "limit": 1}.items())
    first = stock.call(role, "GET", f"{case.formatted_path}?{query}")
    del case.query[name]
    if first.get("cursor") is not None:
        case.query[name] = first["cursor"]


def _period(query: dict[str, Any]) -> None:
    """``from`` is before ``to``, which is now where it is left out."""
    query.setdefault("to", "2199-12-31T00:00:00Z")
    if {"from", "to"} <= set(query) and all(isinstance(query[each], str) for each in ("from", "to")):
        first, last = sorted((query["from"], query["to"]), key=_moment)
        query["from"], query["to"] = first, last


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.upper())


# ---------------------------------------------------------------- rules of one operation


def _stored(case: Case, stock: Stock) -> None:
    """The object is there, it is JSON, and the version named is the present one."""
    version = stock.call("runtime", "PUT", case.formatted_path, {"n": 1})["version"]
    if case.headers.get("If-Match", "*") != "*":
        case.headers["If-Match"] = f'"{version}"'


def _put(case: Case, stock: Stock) -> None:
    """With ``If-Match`` as above; with ``If-None-Match`` nothing is stored yet."""
    _stored(case, stock)
    if "If-None-Match" in case.headers:
        stock.call("runtime", "DELETE", case.formatted_path)


def _named(body: dict[str, Any], names: dict[str, str]) -> None:
    for name, value in names.items():
        if body.get(name) is not None:
            body[name] = value


def _load(case: Case, stock: Stock) -> None:
    _named(case.body, {"session": stock.dialogue["session"], "external_id": "stock", "app": "stock-app"})


def _commit(case: Case, stock: Stock) -> None:
    """An existing session, or one that the commit creates; each object once; no number that another commit took."""
    body = case.body
    _named(body, {"session": stock.dialogue["session"], "external_id": "stock"})
    seen: set[tuple[str, str, str]] = set()
    for part in ("", "subject", "app"):
        changes = body if not part else body.get(part)
        if not isinstance(changes, dict):
            continue
        changes.pop("expected_commit", None)
        for kind in ("put", "merge"):
            kept = [each for each in changes.get(kind) or [] if _once(seen, part, each)]
            if kind in changes:
                changes[kind] = kept


def _once(seen: set[tuple[str, str, str]], part: str, each: dict[str, Any]) -> bool:
    place = (part, each["collection"], each["key"])
    fresh = place not in seen
    seen.add(place)
    return fresh


def _one_name(case: Case, _: Stock) -> None:
    """A collection, a tag or both; with ``keep_newest`` a collection alone."""
    query = case.query
    if "keep_newest" in query:
        query.pop("tag", None)
        query.setdefault("collection", "c")
    elif not {"collection", "tag"} & set(query):
        query["tag"] = "t"


def _one_side(case: Case, _: Stock) -> None:
    """At most one of after, before and last."""
    for name in [each for each in ("after", "before", "last") if each in case.query][1:]:
        del case.query[name]


def _append(case: Case, _: Stock) -> None:
    case.body.pop("expected_last", None)


def _branch(case: Case, stock: Stock) -> None:
    """Up to a turn or a commit that was; under a name that nothing has."""
    for name in ("turn", "commit"):
        if case.body.get(name) is not None:
            case.body[name] = 1
    if case.body.get("external_id") is not None:
        case.body["external_id"] = stock.name("branch")


def _lookup(case: Case, stock: Stock) -> None:
    if case.body.get("cursor") is not None:
        for name in ("a", "b"):
            stock.commit(external_id=f"look-up-{name}", create={"labels": ["look-up"]})
        body = {"label": "look-up", "limit": 1}
        case.body = body | {"cursor": stock.call("runtime", "POST", "/v1/sessions/lookup", body)["cursor"]}


def _lives(case: Case, _: Stock) -> None:
    """The idle time isn't longer than the longest."""
    names = ("ttl_idle_seconds", "ttl_max_seconds")
    if all(name in case.body for name in names):
        case.body.update(zip(names, sorted(case.body[name] for name in names), strict=True))
    elif "ttl_max_seconds" in case.body or "ttl_idle_seconds" in case.body:
        case.body["ttl_max_seconds"] = 315360000


def _key(case: Case, stock: Stock) -> None:
    if case.body.get("expires_at") is not None:
        case.body["expires_at"] = stock.ahead()
    for place, source in enumerate(case.body.get("sources") or []):
        if not _is_network(source):  # the systematic cases fill a text's length and forget its format
            case.body["sources"][place] = "10.0.0.0/8"


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def _redeem(case: Case, stock: Stock) -> None:
    case.body["token"] = stock.tenant()[1]


def _binding(case: Case, stock: Stock) -> None:
    """No more than there may be; a region that the tenant allows, one AWS account, an endpoint that is registered, an
    organisation's directory.
    """
    stock.retire_bindings()
    body = case.body
    if body["provider"] == "aws-kms":
        body["key_arn"] = re.sub(r"^arn:[^:]*:kms:[^:]*:[0-9]*", f"arn:aws:kms:{REGION}:111122223333", body["key_arn"])
        body["role_arn"] = re.sub(r"^arn:[^:]*:iam::[0-9]*", "arn:aws:iam::111122223333", body["role_arn"])
    if body["provider"] == "vault-transit":
        body |= {"endpoint": "own", "mount": "transit"}
    for name in ("entra_tenant_id", "client_id"):
        if name in body:
            body[name] = _FIXED


def _stream(case: Case, stock: Stock) -> None:
    stock.drop_streams()
    _receiver(case, stock)


def _receiver(case: Case, _: Stock) -> None:
    """A name that isn't this machine's, in the tenant's own region: another needs a consent."""
    case.body |= {"url": RECEIVER, "region": REGION}


def _log(case: Case, stock: Stock) -> str:
    """An event of the log that the route is of; there is a checkpoint over it."""
    return stock.cell_event if "/cell/" in case.operation.path else stock.event


def _inclusion(case: Case, stock: Stock) -> None:
    case.query["event"] = _log(case, stock)


def _consistency(case: Case, stock: Stock) -> None:
    """From a size that the log has had to one that it has reached."""
    assert _log(case, stock)
    case.query |= {"from": 1} | ({"to": 1} if "to" in case.query else {})
    _epoch(case, stock)


def _epoch(case: Case, _: Stock) -> None:
    if "epoch" in case.query:
        case.query["epoch"] = 1


def _export_log(case: Case, stock: Stock) -> None:
    assert _log(case, stock)
    case.query.pop("first", None)
    case.query |= {"from": "2000-01-01T00:00:00Z", "to": "2199-01-01T00:00:00Z"}
    _epoch(case, stock)


def _target(case: Case, stock: Stock) -> None:
    _named(case.body, stock.session())


def _export(case: Case, stock: Stock) -> None:
    """Who has an API key for both purposes names the one."""
    _target(case, stock)
    case.headers["Confide-Purpose"] = "tenant-export" if case.body.get("tenant") else "subject-access"


def _leave(case: Case, stock: Stock) -> dict[str, str]:
    case.body["confirm"], key = stock.admin()
    return {"Authorization": f"Bearer {key}"}


def _leaving(_: Case, stock: Stock) -> dict[str, str]:
    return {"Authorization": f"Bearer {stock.leaving}"}


def _detected(case: Case, stock: Stock) -> None:
    case.body["detected_at"] = stock.before()


def _notice(case: Case, stock: Stock) -> None:
    if case.body.get("tenants"):
        case.body["tenants"] = [stock.tenant()[0]]


def _scope(case: Case, stock: Stock) -> None:
    case.body |= {"since": stock.before(2), "until": stock.before()}


def _accept(case: Case, _: Stock) -> None:
    case.body |= TERMS


def _consent(case: Case, stock: Stock) -> None:
    case.body |= {"expires_at": stock.ahead()}
    if case.body["destination"] == REGION:
        case.body["destination"] = "us-east-1"


def _year(case: Case, stock: Stock) -> None:
    """A period of at most 400 days that has ended, and a control that exists."""
    case.query |= {"from": stock.before(48), "to": stock.before(24)}
    if "control" in case.query:
        case.query["control"] = "cc6.1"


RULES: dict[str, Any] = {
    "load": _load,
    "commit": _commit,
    "list_turns": _one_side,
    "append_turns": _append,
    "branch_session": _branch,
    "lookup_sessions": _lookup,
    "create_tenant": _lives,
    "update_own_tenant": _lives,
    "create_api_key": _key,
    "create_operator_key": _key,
    "redeem_enrolment": _redeem,
    "create_key_binding": _binding,
    "create_audit_stream": _stream,
    "set_incident_contact": _receiver,
    "prove_audit_inclusion": _inclusion,
    "prove_audit_consistency": _consistency,
    "get_audit_checkpoint": _epoch,
    "list_audit_checkpoints": _epoch,
    "export_audit_log": _export_log,
    "request_erasure": _target,
    "set_legal_hold": _target,
    "export_data": _export,
    "leave": _leave,
    "get_offboarding": _leaving,
    "open_incident": _detected,
    "notify_of_incident": _notice,
    "scope_incident": _scope,
    "accept_terms": _accept,
    "grant_consent": _consent,
    "get_purpose_statement": _year,
    "get_evidence": _year,
    "get_evidence_archive": _year,
}
for _name in [name for name in RULES if "_audit_" in name and name != "create_audit_stream"]:
    RULES[f"{_name}_of_cell"] = RULES[_name]
for _kind in ("session", "subject", "app"):
    RULES[f"delete_{_kind}_objects"] = _one_name
    RULES[f"put_{_kind}_object"] = _put
    for _verb in ("get", "patch", "delete"):
        RULES[f"{_verb}_{_kind}_object"] = _stored
