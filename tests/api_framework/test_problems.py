"""Every error of the tree has its place in HTTP and in the documentation, and nothing else gets out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from app import errors
from app.api.problems import PROBLEMS, problem_answer

ROOT = Path(__file__).parents[2]
TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ConfideError)]


def _instance(kind: type[errors.ConfideError]) -> errors.ConfideError:
    if kind is errors.MethodNotAllowed:
        return errors.MethodNotAllowed(("GET",))
    if kind is errors.WrongRegion:
        return errors.WrongRegion("eu-central", "https://eu.example")
    return kind()


def test_the_table_covers_the_whole_tree() -> None:
    assert set(PROBLEMS) == set(TREE)
    slugs = [problem.slug for problem in PROBLEMS.values()]
    assert len(set(slugs)) == len(slugs)


def test_every_problem_is_documented_with_its_status() -> None:
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| (\d{3}) \| \S.* \| \S.* \|$", (ROOT / "docs/problems.md").read_text(), re.MULTILINE
    )
    assert {slug: int(status) for slug, status in rows} == {p.slug: p.status for p in PROBLEMS.values()}
    assert len(rows) == len(PROBLEMS)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
async def test_each_error_is_answered_as_the_table_says(world: Any, kind: type[errors.ConfideError]) -> None:
    def fail(_: str) -> Any:
        raise _instance(kind)

    world.services.fail = fail
    reply = await world.call("GET", "/v1/fail/x")
    problem = PROBLEMS[kind]
    assert (reply.status, reply.problem, reply.json["title"]) == (problem.status, problem.slug, problem.title)
    assert reply.json["instance"] == f"urn:uuid:{reply.headers['confide-request-id']}"
    retry = reply.status in {429, 503}
    assert ("retry-after" in reply.headers) == ("retry_after" in reply.json) == retry
    assert ("www-authenticate" in reply.headers) == (reply.status == 401)
    assert ("allow" in reply.headers) == (reply.status == 405)
    assert reply.json.get("base_url") == ("https://eu.example" if reply.status == 421 else None)


def test_a_subclass_that_is_not_in_the_table_is_answered_as_its_parent() -> None:
    class Special(errors.Conflict):
        detail = "A special conflict."

    answer = problem_answer(Special(), "0")
    assert answer.status == 409
    assert orjson.loads(answer.body)["detail"] == "A special conflict."


@pytest.mark.parametrize("kind", [errors.NotFound, errors.Unauthenticated])
def test_what_must_look_the_same_has_one_text(kind: type[errors.ConfideError]) -> None:
    assert problem_answer(kind("it is another tenant's"), "0") == problem_answer(kind(), "0")


async def test_an_unforeseen_error_is_a_plain_500_and_counted(world: Any) -> None:
    def fail(_: str) -> Any:
        raise RuntimeError("secret")

    world.services.fail = fail
    reply = await world.call("GET", "/v1/fail/x")
    assert (reply.status, reply.problem) == (500, "internal-error")
    assert world.metrics.internal_errors.values == {("/v1/fail/{kind}",): 1}
