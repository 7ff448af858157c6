"""Who is in a room, under which incarnation: joins, leaves, pages, and what becomes of the dead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
import redis

from app.brokers import Attendee, Fate
from app.brokers.presence import RedisPresence
from app.core.errors import BadRequest, Unavailable
from app.core.messages import Attendance, Kind, Member
from tests.contract.stage import Stage, connected, until
from tests.stage.redis import RedisServer

NODE = "node"


@pytest.fixture
def presence(stage: Stage, prefix: str) -> RedisPresence:
    return RedisPresence(stage.broker.script, prefix)


def attendees(*names: str, info: bytes = b"{}") -> list[Attendee]:
    """`client=member`, or one word for both."""
    return [Attendee(name.partition("=")[0], name.rpartition("=")[2], info) for name in names]


async def beat(stage: Stage, prefix: str, incarnation: str, seconds: float = 4.0) -> Any:
    """A heartbeat as a worker sends it; the lease holds for so long."""
    keys = [
        f"{prefix}:{{workers}}:{key}" for key in ("all", "dead", "reign", f"rooms:{incarnation}", "refused-revision")
    ]
    lease = f"{prefix}:{{workers}}:lease:"
    return await stage.broker.script("beat", keys, [lease, incarnation, NODE, int(seconds * 1000), -1, 9, b"{}"])


def reign_for_long(store: redis.Redis, prefix: str) -> None:
    """As if this server had led for an hour."""
    noted = store.get(f"{prefix}:{{workers}}:reign")
    assert isinstance(noted, bytes)
    replid, since = noted.split()
    store.set(f"{prefix}:{{workers}}:reign", b"%b %d" % (replid, int(since) - 3_600_000))


def names(members: Sequence[Member]) -> list[str]:
    return [one.member for one in members]


async def test_a_member_joins_with_its_first_client_and_leaves_with_its_last(
    stage: Stage, presence: RedisPresence
) -> None:
    await stage.subscribe("room")
    await presence.attend("room", "a", attendees("c1=ada", info=b'{"n":1}'), [])
    await presence.attend("room", "a", attendees("c2=ada", info=b'{"n":2}'), [])
    page = await presence.members("room", 10, None)
    assert page.members == (Member("ada", 2, b'{"n":2}'),)
    assert (page.count, page.cursor) == (1, None)
    await presence.attend("room", "a", [], ["c1"])
    await presence.attend("room", "a", [], ["c2"])
    await presence.attend("room", "a", [], ["c2", "c9"])
    assert (await presence.members("room", 10, None)).count == 0
    await stage.publish("room", b"after")
    await until(lambda: stage.ear.items)
    assert stage.ear.attendances == [
        ("room", Attendance((Member("ada", 1, b'{"n":1}'),), (), 1)),
        ("room", Attendance((), (Member("ada", 0),), 0)),
    ]
    assert stage.broker.counters().errors == 0


async def test_one_call_tells_once_and_only_what_has_changed(stage: Stage, presence: RedisPresence) -> None:
    await stage.subscribe("room")
    await presence.attend("room", "a", attendees("c1=ada", "c2=ada", "c3=bob"), [])
    # ada moves to another client, bob leaves, eve comes; cid was never there.
    await presence.attend("room", "a", attendees("c4=ada", "c5=eve"), ["c1", "c2", "c3", "c6"])
    await presence.attend("room", "a", attendees("c4=ada", "c5=eve"), [])
    await stage.publish("room", b"after")
    await until(lambda: stage.ear.items)
    first, second = (item for _, item in stage.ear.attendances)
    assert first == Attendance((Member("ada", 2), Member("bob", 1)), (), 2)
    assert second == Attendance((Member("eve", 1),), (Member("bob", 0),), 2)


async def test_a_client_may_come_as_someone_else_or_with_another_info(stage: Stage, presence: RedisPresence) -> None:
    await presence.attend("room", "a", attendees("c1=ada"), [])
    await presence.attend("room", "a", attendees("c1=bob"), [])
    await presence.attend("room", "a", attendees("c1=bob", info=b'{"busy":true}'), [])
    assert (await presence.members("room", 10, None)).members == (Member("bob", 1, b'{"busy":true}'),)


async def test_nobody_is_made_to_leave_by_another_incarnation(stage: Stage, presence: RedisPresence) -> None:
    await presence.attend("room", "a", attendees("c1"), [])
    await presence.attend("room", "b", attendees("c1"), [])
    await presence.attend("room", "a", [], ["c1"])
    assert await presence.reap("room", "a") == 0
    assert (await presence.members("room", 10, None)).members == (Member("c1", 1),)
    await presence.attend("room", "b", [], ["c1"])
    assert (await presence.members("room", 10, None)).members == ()


@pytest.mark.parametrize(
    "name", ["ada", 'a"b\\', "with space 12 3 ", "new\nline", "\0\x01\x7f", "Zoë 🔔", "1 ", "{}", "a:b.c/d"]
)
async def test_a_name_may_have_any_characters(stage: Stage, presence: RedisPresence, name: str) -> None:
    await stage.subscribe("room")
    info = orjson.dumps({"name": name, "text": "9 9 \n\0"})
    one = Attendee(f"client {name}", name, info)
    await presence.attend("room", "a b 1", [one], [])
    await presence.attend("room", "a b 1", attendees("zz"), [])
    first = await presence.members("room", 1, None)
    assert first.cursor is not None
    rest = await presence.members("room", 1, first.cursor)
    assert {*first.members, *rest.members} == {Member(name, 1, info), Member("zz", 1)}
    assert await presence.absent("a b 1", [("room", one)]) == ([], [("room", "zz")])
    await presence.attend("room", "a b 1", [], [one.client])
    await until(lambda: len(stage.ear.attendances) == 3)
    assert stage.ear.attendances[0][1].joined == (Member(name, 1, info),)
    assert stage.ear.attendances[2][1].left == (Member(name, 0),)


async def test_what_others_wrote_into_our_keys_hurts_nobody(
    stage: Stage, presence: RedisPresence, store: redis.Redis, prefix: str
) -> None:
    await stage.subscribe("room")
    await presence.attend("room", "a", attendees("c1=ada"), [])
    store.hset(f"{prefix}:{{room}}:users", "strange \xff", b"\xff not of ours")
    store.hset(f"{prefix}:{{room}}:users", "ada", b"1 not JSON \xff")
    store.hset(f"{prefix}:{{room}}:members", "c7", b"\xff not of ours")
    page = await presence.members("room", 10, None)
    assert {one.member: one.info for one in page.members} == {"ada": b"{}", "strange \xff": b"{}"}
    assert await presence.reap("room", "a") == 1
    await presence.attend("room", "a", attendees("c7=eve"), [])
    await until(lambda: len(stage.ear.attendances) == 3)
    assert stage.ear.attendances[1][1].left == (Member("ada", 0),)
    assert stage.broker.counters().errors == 0


async def test_who_is_missing_in_one_hash_is_put_back_by_being_told_again(
    stage: Stage, presence: RedisPresence, store: redis.Redis, prefix: str
) -> None:
    await stage.subscribe("room")
    everyone = attendees("c1=ada", "c2=ada", "c3=bob", "c4=eve")
    await presence.attend("room", "a", everyone, [])
    store.hdel(f"{prefix}:{{room}}:users", "ada", "eve")
    await presence.attend("room", "a", everyone[:3], [])
    await presence.attend("room", "b", everyone[3:], [])
    page = await presence.members("room", 10, None)
    assert set(page.members) == {Member("ada", 2), Member("bob", 1), Member("eve", 1)}
    await until(lambda: len(stage.ear.attendances) == 3)
    assert [names(item.joined) for _, item in stage.ear.attendances[1:]] == [["ada"], ["eve"]]


async def test_of_a_large_room_a_message_has_only_the_number(stage: Stage, presence: RedisPresence) -> None:
    await stage.subscribe("room")
    everyone = attendees(*(f"m{number}" for number in range(502)), info=b'{"n":1}')
    await presence.attend("room", "a", everyone[:500], [])
    await presence.attend("room", "a", everyone[500:], [])
    await presence.attend("room", "a", [], ["m0"])
    await presence.attend("room", "a", [], ["m1"])
    await presence.attend("room", "a", everyone[:2], [])
    assert await presence.reap("room", "a") == 502
    await until(lambda: stage.ear.attendances and stage.ear.attendances[-1][1].reaped)
    first, *middle, back, _ = (item for _, item in stage.ear.attendances)
    assert (len(first.joined), first.count) == (500, 500)
    assert middle == [Attendance((), (), 502), Attendance((), (), 501), Attendance((), (Member("m1", 0),), 500)]
    assert back == Attendance((), (), 502)


async def test_where_one_hash_is_lost_the_room_begins_anew(
    stage: Stage, presence: RedisPresence, store: redis.Redis, prefix: str
) -> None:
    ada, bob = attendees("c1=ada", "c2=bob")
    await presence.attend("room", "a", [ada, bob], [])
    store.delete(f"{prefix}:{{room}}:users")
    lost = await presence.absent("a", [("room", ada), ("room", bob)])
    assert lost == ([0, 1], [])
    await presence.attend("room", "a", [ada, bob], [])
    assert await presence.absent("a", [("room", ada), ("room", bob)]) == ([], [])
    assert (await presence.members("room", 10, None)).count == 2


async def test_pages_are_full_and_bring_everyone_once(stage: Stage, presence: RedisPresence) -> None:
    everyone = {f"member {number}" for number in range(2345)}
    due = [attendees(f"c{name}={name}")[0] for name in sorted(everyone)]
    for start in range(0, len(due), 500):
        await presence.attend("room", "a", due[start : start + 500], [])
    for limit in (7, 100, 1000):
        seen: list[str] = []
        cursor = None
        while True:
            page = await presence.members("room", limit, cursor)
            assert page.count == len(everyone)
            seen += names(page.members)
            cursor = page.cursor
            if cursor is None:
                break
            assert len(page.members) == limit
        assert len(seen) == len(everyone)
        assert set(seen) == everyone


@pytest.mark.parametrize("count", [1, 20, 120])
async def test_a_small_room_comes_by_name_also_in_pages(stage: Stage, presence: RedisPresence, count: int) -> None:
    everyone = sorted(f"é{number:03}" for number in range(count))
    await presence.attend("room", "a", attendees(*everyone), [])
    seen: list[str] = []
    cursor = None
    while True:
        page = await presence.members("room", 3, cursor)
        seen += names(page.members)
        if page.cursor is None:
            break
        cursor = page.cursor
    assert sorted(seen) == everyone
    assert seen == everyone or count > 100


@pytest.mark.parametrize(
    "cursor", ["", "x", "-1", "1e3", ".", "18446744073709551616", "٣", "0x1.a", "1\ud800", "1.\ud800"]
)
async def test_a_made_up_cursor_is_a_bad_request(stage: Stage, presence: RedisPresence, cursor: str) -> None:
    with pytest.raises(BadRequest):
        await presence.members("room", 10, cursor)


@pytest.mark.parametrize("cursor", ["18446744073709551615", "0007.", "12345.\0", "3." + "x" * 5000])
async def test_a_cursor_that_might_be_ours_is_never_an_error(
    stage: Stage, presence: RedisPresence, cursor: str
) -> None:
    await presence.attend("room", "a", attendees("a", "b"), [])
    page = await presence.members("room", 10, cursor)
    assert page.count == 2


async def test_many_rooms_are_read_at_once_and_of_large_ones_only_the_number(
    stage: Stage, presence: RedisPresence
) -> None:
    for number in range(30):
        await presence.attend(f"room{number}", "a", attendees(*(f"m{one}" for one in range(number * 5))), [])
    rolls = await presence.rolls([f"room{number}" for number in range(30)] * 30, 100)
    assert [roll.count for roll in rolls] == [number * 5 for number in range(30)] * 30
    assert [len(roll.members or ()) for roll in rolls[:21]] == [number * 5 for number in range(21)]
    assert all(roll.members is None for roll in rolls[21:30])


async def test_a_look_brings_back_who_was_not_asked_for_in_small_rooms(stage: Stage, presence: RedisPresence) -> None:
    ada, bob, *crowd = attendees("c1=ada", "c2=bob", *(f"m{number}" for number in range(200)))
    for room in ("room", "hall"):
        await presence.attend(room, "a", [ada, bob], [])
    await presence.attend("room", "b", attendees("c3"), [])
    await presence.attend("large", "a", crowd, [])
    asked = [("room", ada), ("hall", bob), ("hall", ada), ("large", crowd[0])]
    assert await presence.absent("a", asked) == ([], [("room", "c2")])
    look = await presence.absent("a", [("room", crowd[0])] * 600)
    assert look == (list(range(600)), [("room", "c1"), ("room", "c2")])


async def test_a_room_does_not_live_for_ever(
    stage: Stage, presence: RedisPresence, store: redis.Redis, prefix: str
) -> None:
    one = attendees("c1")[0]
    await presence.attend("room", "a", [one], [])
    for key in (f"{prefix}:{{room}}:members", f"{prefix}:{{room}}:users"):
        assert 86_000 < store.ttl(key) <= 86_400
        store.expire(key, 1000)
    await presence.absent("a", [("room", one)])
    for key in (f"{prefix}:{{room}}:members", f"{prefix}:{{room}}:users"):
        assert 86_000 < store.ttl(key) <= 86_400


async def test_who_holds_a_lease_is_not_buried(
    stage: Stage, presence: RedisPresence, store: redis.Redis, prefix: str
) -> None:
    await beat(stage, prefix, "a")
    assert await presence.bury("a", "me") is Fate.ALIVE
    assert await presence.bury("b", "me") is Fate.WAIT  # the reign has only begun
    reign_for_long(store, prefix)
    assert await presence.bury("a", "me") is Fate.ALIVE
    assert await presence.bury("b", "me") is Fate.DEAD
    assert await presence.bury("b", "another") is Fate.TAKEN
    store.delete(f"{prefix}:{{workers}}:reaper:b")
    assert await presence.bury("b", "another") is Fate.DEAD
    assert await beat(stage, prefix, "b") == b"DEAD"
    assert await presence.bury("b", "another") is Fate.DEAD


async def test_in_a_new_reign_nobody_is_buried_at_first(prefix: str, own_server: RedisServer) -> None:
    async with connected(own_server.url, prefix) as stage:
        presence = RedisPresence(stage.broker.script, prefix)
        with own_server.client() as store:
            await beat(stage, prefix, "a")
            reign_for_long(store, prefix)
            saved = store.dump(f"{prefix}:{{workers}}:reign")
            assert await presence.bury("b", "me") is Fate.DEAD
        own_server.kill()
        own_server.start()
        await stage.reconnected()
        with own_server.client() as store:
            store.restore(f"{prefix}:{{workers}}:reign", 0, saved)
            await beat(stage, prefix, "a")
            assert await presence.bury("c", "me") is Fate.WAIT
            reign_for_long(store, prefix)
            assert await presence.bury("c", "me") is Fate.DEAD


async def test_a_beat_says_whose_lease_is_over_and_forgets_nobody(
    stage: Stage, presence: RedisPresence, store: redis.Redis, prefix: str
) -> None:
    slot, _, others, lapsed, new, revision, reign = await beat(stage, prefix, "a", 60)
    assert (slot, others, lapsed, new, revision) == (0, [], [], 1, b"0")
    noted: Any = store.get(f"{prefix}:{{workers}}:reign")
    assert noted.split()[0] == reign
    slot, _, others, lapsed, new, _, _ = await beat(stage, prefix, "b", 60)
    assert (slot, others, lapsed, new) == (1, [0], [], 1)
    store.delete(f"{prefix}:{{workers}}:lease:a")
    store.zadd(f"{prefix}:{{workers}}:all", {"a": 1.0})  # its last beat was in 1970
    store.set(f"{prefix}:{{workers}}:refused-revision", 7)  # somebody was revoked
    _, _, others, lapsed, new, revision, _ = await beat(stage, prefix, "b", 60)
    assert (others, lapsed, new, revision) == ([], [b"a"], 0, b"7")


async def test_the_dead_are_removed_with_one_message_a_step_that_says_so(
    stage: Stage, presence: RedisPresence, store: redis.Redis, prefix: str
) -> None:
    await stage.subscribe("room")
    for incarnation in ("a", "b"):
        await beat(stage, prefix, incarnation, 60)
        await presence.register(incarnation, ["room", "hall"], here=True)
        await presence.attend("room", incarnation, attendees(f"{incarnation}1=ada", f"{incarnation}2"), [])
        await presence.attend("hall", incarnation, attendees(f"{incarnation}1=ada"), [])
    reign_for_long(store, prefix)
    store.delete(f"{prefix}:{{workers}}:lease:a")
    assert await presence.bury("a", "b") is Fate.DEAD
    rooms = await presence.estate("a", [])
    assert sorted(rooms) == ["hall", "room"]
    assert [await presence.reap(room, "a") for room in sorted(rooms)] == [1, 2]
    assert [await presence.reap(room, "a") for room in rooms] == [0, 0]
    assert sorted(await presence.estate("a", ["hall"])) == ["room"]
    assert await presence.estate("a", ["room"]) == []
    assert store.zrange(f"{prefix}:{{workers}}:all", 0, -1) == [b"b"]
    await until(lambda: len(stage.ear.attendances) == 3)
    assert stage.ear.attendances[2][1] == Attendance((), (Member("a2", 0),), 2, reaped=True)
    page = await presence.members("room", 10, None)
    assert set(page.members) == {Member("ada", 1), Member("b2", 1)}


async def test_a_room_is_unregistered_and_found_no_more(stage: Stage, presence: RedisPresence) -> None:
    rooms = [f"room{number}" for number in range(1200)]
    await presence.register("a", rooms, here=True)
    await presence.register("a", rooms[1:], here=False)
    assert await presence.estate("a", []) == ["room0"]


async def test_a_replica_answers_nothing(prefix: str, own_server: RedisServer) -> None:
    async with connected(own_server.url, prefix) as stage:
        presence = RedisPresence(stage.broker.script, prefix)
        await presence.attend("room", "a", attendees("c1"), [])
        with RedisServer() as other, own_server.client() as store:
            store.replicaof("127.0.0.1", other.port)
            for question in (
                presence.members("room", 1, None),
                presence.rolls(["room"], 1),
                presence.absent("a", [("room", attendees("c1")[0])]),
                presence.bury("a", "b"),
                presence.reap("room", "a"),
            ):
                with pytest.raises(Unavailable):
                    await question


async def test_presence_takes_no_place_among_messages(stage: Stage, presence: RedisPresence) -> None:
    await stage.subscribe("room")
    await stage.publish("room", b"1")
    await presence.attend("room", "a", attendees("c1"), [])
    position = await stage.publish("room", b"2")
    await until(lambda: len(stage.ear.items) == 2)
    assert position.offset == 2
    assert [item.kind for _, item in stage.ear.items if hasattr(item, "kind")] == [Kind.TEXT, Kind.TEXT]


class Meter:
    """What calls of scripts cost a server: CPU a call on the average, since others use the machine too."""

    def __init__(self, store: redis.Redis) -> None:
        self._store = store
        self._before = self._read()

    def _read(self) -> tuple[float, int]:
        cpu, calls = self._store.info("cpu"), self._store.info("commandstats")
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"], calls.get("cmdstat_evalsha", {"calls": 0})["calls"]

    def lap(self) -> float:
        """Milliseconds a call since the last lap."""
        (cpu, calls), self._before = self._before, self._read()
        return (self._before[0] - cpu) * 1000 / (self._before[1] - calls)


async def test_no_step_in_a_room_of_a_hundred_thousand_blocks_the_store(prefix: str, own_server: RedisServer) -> None:
    async with connected(own_server.url, prefix) as stage:
        presence = RedisPresence(stage.broker.script, prefix)
        with own_server.client() as store:
            meter = Meter(store)
            for start in range(0, 100_000, 500):
                batch = [Attendee(f"client-{start + one:022}", f"m{start + one}") for one in range(500)]
                await presence.attend("room", "a" if start % 1000 else "b", batch, [])
            costs = {"attend": meter.lap()}
            seen: set[str] = set()
            cursor: str | None = None
            while True:
                page = await presence.members("room", 1000, cursor)
                assert page.count == 100_000
                seen.update(names(page.members))
                if (cursor := page.cursor) is None:
                    break
            assert len(seen) == 100_000
            costs["members"] = meter.lap()
            assert (await presence.rolls(["room"], 500))[0].members is None
            costs["rolls"] = meter.lap()
            assert await presence.reap("room", "b") == 50_000
            costs["reap"] = meter.lap()
        print({name: f"{cost:.1f} ms" for name, cost in costs.items()})
        assert (await presence.members("room", 1, None)).count == 50_000
        assert max(costs.values()) < 20
