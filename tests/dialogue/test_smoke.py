"""The main job in one turn."""

from tests.cell import Tenant


async def test_a_turn_is_committed_and_loaded(tenant: Tenant) -> None:
    body = {
        "external_id": "call-1",
        "create": {"subject": "customer-19"},
        "put": [{"collection": "state", "key": "slots", "json": {"city": "Bern", "a": [1, 2.5]}, "tags": ["x"]}],
        "turns": [{"json": {"role": "user", "text": "Hello"}}],
    }
    done = await tenant.runtime.post("/v1/commit", json=body, headers={"idempotency-key": "t1"})
    assert done.status_code == 200, done.text
    print(done.json())
    again = await tenant.runtime.post("/v1/commit", json=body, headers={"idempotency-key": "t1"})
    assert again.json() == done.json(), again.text
    loaded = await tenant.runtime.post(
        "/v1/load", json={"external_id": "call-1", "context": [{}], "turns": {"last": 5}, "subject": True}
    )
    assert loaded.status_code == 200, loaded.text
    print(loaded.json())
    events = await tenant.auditor.get("/v1/audit/events")
    for event in events.json()["events"]:
        print(event["action"], event["outcome"], event.get("objects"), event.get("turns"), event["seq"])
    assert 0
