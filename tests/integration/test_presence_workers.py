"""Presence over a whole service, where it is large. What faults do to it: `tests/faults`, the rows of presence."""

from __future__ import annotations

from app.brokers import Attendee
from app.brokers.presence import RedisPresence
from tests.contract.stage import connected
from tests.stage.native import Frame, converse
from tests.stage.redis import RedisServer
from tests.stage.service import Service

ROOM = "room"


async def test_a_hundred_thousand_members_are_told_in_pages(redis_server: RedisServer) -> None:
    with Service(redis_server.url, workers=1, redis_prefix="presence-many") as service:
        async with connected(redis_server.url, "presence-many") as stage:
            store = RedisPresence(stage.broker.script, "presence-many")
            for start in range(0, 100_000, 500):
                batch = [Attendee(f"c{number}", f"m{number}") for number in range(start, start + 500)]
                await store.attend(ROOM, "filled by hand", batch, [])
        async with converse(service) as client:
            seen: list[str] = []
            cursor: str | None = None
            while True:
                more: Frame = {} if cursor is None else {"cursor": cursor}
                page = await client.ask("presence", channel=ROOM, limit=1000, **more)
                assert page["count"] == 100_000
                seen += [one["member"] for one in page["members"]]
                cursor = page["cursor"]
                if cursor is None:
                    break
                assert len(page["members"]) == 1000
            assert len(seen) == len(set(seen)) == 100_000
        answer = service.get(f"/api/v1/channels/{ROOM}/members", params={"limit": 10})
        assert answer.status_code == 200
        assert (len(answer.json()["members"]), answer.json()["count"]) == (10, 100_000)
