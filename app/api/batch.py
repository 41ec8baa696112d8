"""POST /v1/batch: independent reads and writes over many containers, each with its own precondition and outcome."""

from __future__ import annotations

import asyncio
from typing import Final

import orjson
from msgspec import Raw

from app.api.convert import call_of, object_out, put_in, version_in
from app.api.http import Answer, Request, json_answer
from app.api.problems import problem_answer
from app.api.schemas import BatchIn, BatchItem, BatchOut, BatchResult, ObjectIn
from app.api.table import PURPOSE, ResponseDoc, Route
from app.errors import ConfideError, Forbidden, InvalidRequest
from app.identity import Kind, Purpose, Scope
from app.services import content
from app.services.changes import Call, Changes, Merge, Where
from app.services.services import Services

CONCURRENT: Final = 64
"""Items of one batch under way at a time: a batch must not crowd out other requests."""


async def batch(services: Services, request: Request, body: BatchIn) -> Answer:
    call = call_of(request)
    slots = asyncio.Semaphore(CONCURRENT)

    async def run(index: int, item: BatchItem) -> BatchResult:
        async with slots:
            try:
                return await _item(services, request, call, item, f"/requests/{index}")
            except ConfideError as error:
                answer = problem_answer(error, request.request_id_text)
                return BatchResult(answer.status, problem=orjson.loads(answer.body))

    results = await asyncio.gather(*(run(index, item) for index, item in enumerate(body.requests)))
    return json_answer(BatchOut(list(results)))


def _where(item: BatchItem, pointer: str) -> Where:
    named = [
        Where(kind, container)
        for kind, container in ((Kind.SESSION, item.session), (Kind.SUBJECT, item.subject), (Kind.APP, item.app))
        if container is not None
    ]
    if len(named) != 1:
        raise InvalidRequest("Name one container: session, subject or app.", pointer)
    return named[0]


async def _item(services: Services, request: Request, call: Call, item: BatchItem, pointer: str) -> BatchResult:
    where = _where(item, pointer)
    if item.op == "get":
        if Scope.CONTEXT_READ not in request.caller.scopes:
            raise Forbidden
        found = await services.dialogue.read_object(call, where, item.collection, item.key)
        return BatchResult(200, object_out(found), found.version, found.commit)
    if item.op == "delete":
        condition = version_in(item.if_match)
        done = await services.dialogue.delete_object(call, where, item.collection, item.key, condition)
        return BatchResult(200, commit=done.commit)
    if item.op == "merge":
        if isinstance(item.base64, str) or not isinstance(item.json, Raw):
            raise InvalidRequest("A merge takes json.", pointer)
        patch, largest = content.patch(memoryview(item.json)), services.limits.object
        merge = Merge(item.collection, item.key, patch, version_in(item.if_match), largest)
        done = (await services.dialogue.commit(call, [Changes(where, "context.commit", merges=[merge])]))[0]
        return BatchResult(201 if done.inserted else 200, version=done.merges[0], commit=done.commit)
    put = put_in(
        ObjectIn(
            item.collection,
            item.key,
            item.json,
            item.base64,
            item.content_type,
            item.tags,
            item.if_match,
            item.if_none_match,
        ),
        pointer,
        services.limits.object,
    )
    done = await services.dialogue.put(call, where, put)
    return BatchResult(201 if done.inserted else 200, version=done.puts[0], commit=done.commit)


ROUTES: Final = (
    Route(
        "POST",
        "/v1/batch",
        batch,
        "batch",
        "Read, write and delete over many containers",
        {200: ResponseDoc("One result for each request, in its order.", BatchOut)},
        scope=Scope.CONTEXT_WRITE,
        purpose=True,
        purposes=(Purpose.SERVE,),
        body=BatchIn,
        limit="envelope",
        headers=(PURPOSE,),
        tags=("dialogue",),
        description="Not atomic: for all or nothing there is POST /v1/commit.",
        request_example={
            "requests": [
                {"op": "get", "app": "01980a3e-7c1b-7d52-9f0e-2b6a4c8d1e3f", "collection": "prompts", "key": "greeting"}
            ]
        },
    ),
)
