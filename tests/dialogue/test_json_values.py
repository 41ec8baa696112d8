"""What inline JSON may be, and what becomes of stored JSON that a merge would have to change."""

from __future__ import annotations

import pytest

from tests.cell import Tenant
from tests.dialogue.calls import done, refused, session

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}


async def sent(tenant: Tenant, place: str, value: str) -> tuple[int, str]:
    """Commit ``value`` as it stands; the status, and the problem's or the stored text."""
    body = f'{{"session":"{place}","put":[{{"collection":"c","key":"k","json":{value}}}]}}'
    answer = await tenant.runtime.post("/v1/commit", content=body.encode(), headers=JSON)
    if answer.status_code != 200:
        return answer.status_code, answer.json()["type"].rpartition(":")[2]
    return 200, (await tenant.runtime.get(f"/v1/sessions/{place}/context/c/k")).text


TWICE = [
    '{"a":1,"a":1}',
    '{"a":1,"b":[{"c":{"d":1,"e":2,"d":3}}]}',
    '{"a":1,"\\u0061":2}',
    '{"\\"":1,"\\u0022":2}',
    '{"a":1,"a":"\\u0022\\u0022"}',
    '[{"x":1,"x":"\\u0022"}]',
    '{"":1,"":2}',
    '{ "a" : 1 ,\n"a" : 2 }',
    '{"é":1,"\\u00e9":2}',
]


async def test_an_object_with_a_name_twice_is_refused_and_nothing_is_stored(tenant: Tenant) -> None:
    """One of the values would be lost in silence."""
    place = await session(tenant.runtime)
    url = f"/v1/sessions/{place}/context/c/k"
    for value in TWICE:
        assert await sent(tenant, place, value) == (400, "bad-request"), value
        refused(await tenant.runtime.patch(url, content=f'{{"in":{value}}}'.encode(), headers=JSON), 400)
    refused(await tenant.runtime.get(url), 404)


async def test_names_that_only_look_alike_are_kept(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    for value in ('{"A":1,"a":2}', '{"a":"\\"a\\":1","b":"a"}', '[{"a":1},{"a":2}]', '{"e\\u0301":2,"é":1}'):
        status, stored = await sent(tenant, place, value)
        assert (status, stored) == (200, value.replace("\\u0301", "\u0301"))
    assert await sent(tenant, place, '{"\\u0022":"\\u0022","b":"\\\\u0022"}') == (200, '{"\\"":"\\"","b":"\\\\u0022"}')


@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")], ids=["arrays", "objects"])
async def test_values_nest_254_levels_deep(tenant: Tenant, opens: str, closes: str) -> None:
    place = await session(tenant.runtime)
    for levels, status in ((254, 200), (255, 400), (2_000, 400), (200_000, 400)):
        assert (await sent(tenant, place, opens * levels + "1" + closes * levels))[0] == status, levels


UNMERGEABLE = {
    "a name twice": (b'{"a":1,"a":2}', "invalid-request"),
    "a number that is rounded": (b'{"n":123456789012345678901234567890}', "number-not-representable"),
    "digits that are cut": (b'{"n":0.1000000000000000055511151231257827}', "number-not-representable"),
    "too deep": (b'{"x":' + b"[" * 500 + b"]" * 500 + b"}", "invalid-request"),
    "far too deep": (b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid-request"),
    "no JSON": (b'{"a":', "invalid-request"),
}


async def test_a_merge_never_changes_what_it_does_not_name(tenant: Tenant) -> None:
    """Objects are kept byte for byte; one that has no canonical form can't be merged into."""
    place = await session(tenant.runtime)
    url = f"/v1/sessions/{place}/context/c/k"
    for stored, problem in UNMERGEABLE.values():
        assert (await tenant.runtime.put(url, content=stored, headers=JSON)).is_success
        refused(await tenant.runtime.patch(url, content=b'{"b":1}', headers=JSON), 422, problem)
        merge = {"session": place, "merge": [{"collection": "c", "key": "k", "json": {"b": 1}}]}
        refused(await tenant.runtime.post("/v1/commit", json=merge), 422, problem)
        assert (await tenant.runtime.get(url)).content == stored


async def test_a_merge_that_nests_too_deeply_is_refused(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    url = f"/v1/sessions/{place}/context/c/k"
    done(await tenant.runtime.put(url, content=b'{"a":1}', headers=JSON), 201)
    refused(await tenant.runtime.patch(url, content=b'{"x":' + b"[" * 254 + b"]" * 254 + b"}", headers=JSON), 400)
    refused(await tenant.runtime.patch(url, content=b'{"x":' * 102 + b"1" + b"}" * 102, headers=JSON), 400)
    assert (await tenant.runtime.get(url)).content == b'{"a":1}'


async def test_a_selection_needs_what_it_narrows(tenant: Tenant) -> None:
    place = await session(tenant.runtime)
    for body, pointer in (
        ({"subject_context": [{}]}, "/subject_context"),
        ({"subject": False, "subject_context": []}, "/subject_context"),
        ({"app_context": [{"collection": "c"}]}, "/app_context"),
        ({"app": None, "app_context": []}, "/app_context"),
    ):
        answer = await tenant.runtime.post("/v1/load", json={"session": place, **body})
        assert refused(answer, 422, "invalid-request")["pointer"] == pointer


async def test_an_empty_selection_of_a_subject_or_app_opens_nothing(tenant: Tenant) -> None:
    made = {
        "external_id": "narrow",
        "create": {"subject": "narrow"},
        "subject": {"put": [{"collection": "c", "key": "k", "json": 1}]},
        "app": {"name": "narrow", "put": [{"collection": "c", "key": "k", "json": 1}]},
    }
    done(await tenant.runtime.post("/v1/commit", json=made))
    wish = {"external_id": "narrow", "subject": True, "app": "narrow"}
    found = done(await tenant.runtime.post("/v1/load", json=wish | {"subject_context": [], "app_context": []}))
    assert [found[part].get("context", []) for part in ("subject", "app")] == [[], []]
    found = done(await tenant.runtime.post("/v1/load", json=wish | {"subject_context": None, "app_context": None}))
    assert [len(found[part]["context"]) for part in ("subject", "app")] == [1, 1]
