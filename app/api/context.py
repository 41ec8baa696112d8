"""Context objects one by one, and lists of them: the same routes under sessions, subjects and apps."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final
from uuid import UUID

from msgspec import Meta

from app.api.convert import NO_VERSION, article, call_of, kind_path, object_out
from app.api.http import ANY, Answer, Request, etag, json_answer
from app.api.schemas import Collection, ObjectsOut, Removed, Tag, Written
from app.api.table import (
    ETAG,
    IDEMPOTENCY_KEY,
    IF_MATCH,
    IF_NONE_MATCH,
    NOT_STORED,
    PURPOSE,
    QueryParam,
    RawBody,
    ResponseDoc,
    Route,
)
from app.crypto.tokens import open_token, seal_token
from app.errors import (
    BadRequest,
    Conflict,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    NumberNotRepresentable,
    PreconditionFailed,
    PreconditionRequired,
)
from app.identity import NO_UUID, Kind, Purpose, Scope
from app.services import content
from app.services.changes import Changes, Delete, Merge, Put, Select, Where
from app.services.dialogue import Loading
from app.services.services import Services

Run = Callable[[Services, Request, Any], Coroutine[Any, Any, Answer]]


def if_version(request: Request) -> UUID | None:
    """If-Match as the services take it: ``*`` is the nil UUID; a foreign tag equals no version."""
    asked = request.if_match()
    if asked is None:
        return None
    if not isinstance(asked, UUID):
        return NO_UUID
    return NO_VERSION if asked == NO_UUID else asked


def if_none(request: Request) -> bool:
    """Whether If-None-Match: * was sent; for a write, another tag has no meaning here."""
    asked = request.if_none_match()
    if asked is None:
        return False
    if asked != ANY:
        raise BadRequest("A write takes If-None-Match: * only.")
    if request.if_match() is not None:
        raise BadRequest("Send either If-Match or If-None-Match.")
    return True


def _place(kind: Kind, request: Request) -> tuple[Where, str, str]:
    return Where(kind, request.path_id()), request.path_text("collection"), request.path_text("key")


def _get(kind: Kind) -> Run:
    async def get_object(services: Services, request: Request, _body: None) -> Answer:
        where, collection, key = _place(kind, request)
        found = await services.dialogue.read_object(call_of(request), where, collection, key)
        tag = etag(found.version)
        if request.if_none_match() in {ANY, found.version}:
            return Answer(304, headers=(tag,))
        wanted = request.if_match()
        if wanted is not None and wanted not in {ANY, found.version}:
            raise PreconditionFailed(current=str(found.version))
        return Answer(200, found.body, found.content_type.encode(), (tag,))

    return get_object


def _put(kind: Kind) -> Run:
    async def put_object(services: Services, request: Request, body: bytes) -> Answer:
        where, collection, key = _place(kind, request)
        put = Put(
            collection,
            key,
            request.content_type().decode(),
            body,
            request.query["tag"],
            if_version=if_version(request),
            if_none=if_none(request),
        )
        done = await services.dialogue.put(call_of(request, body), where, put)
        version = done.puts[0]
        status = 201 if done.inserted else 200
        return json_answer(Written(version, done.commit), status, (etag(version),))

    return put_object


def _patch(kind: Kind) -> Run:
    async def patch_object(services: Services, request: Request, body: bytes) -> Answer:
        where, collection, key = _place(kind, request)
        merge = Merge(collection, key, content.patch(body), if_version(request), services.limits.object)
        call = call_of(request, body)
        done = (await services.dialogue.commit(call, [Changes(where, "context.commit", merges=[merge])]))[0]
        version = done.merges[0]
        return json_answer(Written(version, done.commit), 201 if done.inserted else 200, (etag(version),))

    return patch_object


def _delete(kind: Kind) -> Run:
    async def delete_object(services: Services, request: Request, _body: None) -> Answer:
        where, collection, key = _place(kind, request)
        done = await services.dialogue.delete_object(call_of(request), where, collection, key, if_version(request))
        return json_answer(Removed(1, done.commit))

    return delete_object


def _list(kind: Kind) -> Run:
    async def list_objects(services: Services, request: Request, _body: None) -> Answer:
        query, tenant, place = request.query, request.caller.tenant, str(request.path_id())
        before = None
        if query["before"] is not None:
            before = UUID(bytes=open_token(services.secrets.cursors, tenant, place, query["before"]))
        select = Select(query["collection"], None, query["tag"], query["limit"], before)
        loading = Loading(Where(kind, request.path_id()), "context.read", [select])
        opened = (await services.dialogue.load(call_of(request), [loading]))[0]
        if opened is None:
            raise NotFound
        cursor = None
        if opened.objects and (len(opened.objects) == query["limit"] or opened.truncated):
            cursor = seal_token(services.secrets.cursors, tenant, place, opened.objects[-1].version.bytes)
        return json_answer(ObjectsOut([object_out(found) for found in opened.objects], cursor))

    return list_objects


def _clear(kind: Kind) -> Run:
    async def delete_objects(services: Services, request: Request, _body: None) -> Answer:
        collection, tag, keep = (request.query[name] for name in ("collection", "tag", "keep_newest"))
        if collection is None and tag is None:
            raise InvalidRequest("Name what to delete: a collection, a tag, or both.")
        if keep is not None and (collection is None or tag is not None):
            raise InvalidRequest("keep_newest goes with a collection and nothing else.")
        delete = Delete(collection, None, tag, keep)
        changes = Changes(Where(kind, request.path_id()), "context.delete", deletes=[delete])
        done = (await services.dialogue.commit(call_of(request), [changes]))[0]
        return json_answer(Removed(done.removed, done.commit))

    return delete_objects


# ---------------------------------------------------------------- routes

_COLLECTION: Final = QueryParam("collection", Collection, "Only this collection.")
_TAG: Final = QueryParam("tag", Tag, "Only objects with this tag.")
_SERVE: Final = (Purpose.SERVE,)


def _routes(kind: Kind) -> tuple[Route, ...]:
    name, base = kind.value, f"{kind_path(kind)}/{{id}}/context"
    one = f"{base}/{{collection}}/{{key}}"
    common: dict[str, Any] = {"purpose": True, "purposes": _SERVE, "tags": (f"{name} context",)}
    read: dict[str, Any] = common | {"scope": Scope.CONTEXT_READ}
    write: dict[str, Any] = common | {"scope": Scope.CONTEXT_WRITE}
    written = {
        200: ResponseDoc("It is stored.", Written, headers=(ETAG,)),
        201: ResponseDoc("It is stored, and was not there before.", Written, headers=(ETAG,)),
    }
    checked = (NotFound, PreconditionFailed, PreconditionRequired)
    return (
        Route("GET", base, _list(kind), f"list_{name}_objects", f"List the context of {article(kind)} {name}",
              {200: ResponseDoc("A page.", ObjectsOut)},
              query=(_COLLECTION, _TAG,
                     QueryParam("limit", Annotated[int, Meta(ge=1, le=1000)], "Objects in a page.", default=100),
                     QueryParam("before", str, "The cursor of the page before.")),
              headers=(PURPOSE,), errors=(NotFound,), **read),
        Route("DELETE", base, _clear(kind), f"delete_{name}_objects", "Delete a collection or a tag, or prune",
              {200: ResponseDoc("How many went.", Removed)},
              query=(_COLLECTION, _TAG,
                     QueryParam("keep_newest", Annotated[int, Meta(ge=0, le=100000)], "Keep so many of it.")),
              headers=(PURPOSE,), errors=(InvalidRequest, NotFound, Conflict, PreconditionRequired), **write),
        Route("GET", one, _get(kind), f"get_{name}_object", "Get one object's bytes",
              {200: ResponseDoc("The bytes, with their content type.", content_type="*/*", headers=(ETAG,)),
               304: ResponseDoc("It is still the version of If-None-Match.", headers=(ETAG,))},
              headers=(IF_MATCH, IF_NONE_MATCH, PURPOSE), errors=(NotFound, PreconditionFailed), **read),
        Route("PUT", one, _put(kind), f"put_{name}_object", "Put one object's bytes", written,
              body=RawBody(), limit="object",
              query=(QueryParam("tag", Tag, "A tag of the object; may be repeated.", many=True, max_items=16),),
              headers=(IF_MATCH, NOT_STORED, IDEMPOTENCY_KEY, PURPOSE), errors=(*checked, IdempotencyMismatch),
              description="An equal object put again with If-None-Match: * is answered 200 with its version.", **write),
        Route("PATCH", one, _patch(kind), f"patch_{name}_object", "Merge into a JSON object (RFC 7396)", written,
              body=RawBody(("application/merge-patch+json", "application/json"), "A merge patch (RFC 7396)."),
              limit="object", headers=(IF_MATCH, IDEMPOTENCY_KEY, PURPOSE),
              errors=(*checked, IdempotencyMismatch, InvalidRequest, NumberNotRepresentable), **write),
        Route("DELETE", one, _delete(kind), f"delete_{name}_object", "Delete one object",
              {200: ResponseDoc("It is gone.", Removed)},
              headers=(IF_MATCH, PURPOSE), errors=(*checked, Conflict), **write),
    )  # fmt: skip


ROUTES: Final = (*_routes(Kind.SESSION), *_routes(Kind.SUBJECT), *_routes(Kind.APP))
