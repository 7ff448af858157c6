"""The log of a channel: positions, keys, reading, clearing, and what deletions by hand do to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from app.core.continuity import Reason, Verdict
from app.core.errors import Conflict, Gone, TocsinError
from app.core.messages import Cleared, Draft, Kind, Position, Published
from tests.contract.stage import Stage, connected, until
from tests.stage.redis import RedisServer


async def test_positions_are_consecutive_and_live_order_is_log_order(stage: Stage) -> None:
    await stage.subscribe("room")
    sent = [b"%d" % number for number in range(2000)]
    positions = await stage.fill("room", sent)
    assert [position.offset for position in positions] == list(range(1, 2001))
    assert len({position.epoch for position in positions}) == 1
    await until(lambda: len(stage.ear.items) == 2000)
    assert stage.ear.payloads("room") == sent
    assert [item.position for _, item in stage.ear.items] == positions
    reading = await stage.broker.read("room", positions[1499], 1000)
    assert [one.payload for one in reading.publications] == sent[1500:]
    assert reading.publications[0] == stage.ear.items[1500][1]


async def test_two_workers_see_one_order(stage: Stage, redis_server: RedisServer, prefix: str) -> None:
    async with connected(redis_server.url, prefix) as other:
        await stage.subscribe("room")
        await other.subscribe("room")
        for number in range(50):
            for _ in range(10):
                stage.send("room", b"a%d" % number)
                other.send("room", b"b%d" % number)
            await asyncio.sleep(0)
        await until(lambda: len(stage.ear.items) == len(other.ear.items) == 1000)
        assert stage.ear.items == other.ear.items
        for letter in (b"a", b"b"):
            mine = [payload for payload in stage.ear.payloads("room") if payload.startswith(letter)]
            assert mine == [b"%b%d" % (letter, number) for number in range(50) for _ in range(10)]


async def test_an_envelope_carries_who_published_and_redis_time(stage: Stage) -> None:
    before = await stage.publish("room", b"first")
    receipts: list[Published | TocsinError] = []
    draft = Draft("room", Kind.BINARY, b"\x00\n\xff", client="c9", user="ada", key="k" * 16)
    stage.broker.publish(draft, receipts.append)
    await until(lambda: receipts)
    reading = await stage.broker.read("room", before, 10)
    attributes = reading.publications[0].read_attributes()
    assert reading.publications[0].kind is Kind.BINARY
    assert reading.publications[0].payload == b"\x00\n\xff"
    assert {name: attributes[name] for name in "cuk"} == {"c": "c9", "u": "ada", "k": "k" * 16}
    assert attributes["t"] > 1_600_000_000_000


async def test_a_key_gives_the_first_result_and_another_body_is_a_conflict(stage: Stage) -> None:
    first, again, other = await asyncio.gather(
        stage.send("room", b"once", key="a" * 16),
        stage.send("room", b"once", key="a" * 16),
        stage.send("room", b"else", key="a" * 16),
    )
    assert isinstance(first, Published)
    assert again == Published(first.position, duplicate=True)
    assert isinstance(other, Conflict)
    assert (await stage.broker.read("room", None, 0)).top == 1


async def test_keys_belong_to_their_scope_and_channel(stage: Stage) -> None:
    receipts: list[Published | TocsinError] = []
    for channel, scope in (("room", ""), ("room", "ada"), ("room", "key/back"), ("hall", "")):
        stage.broker.publish(Draft(channel, Kind.TEXT, b"x", scope=scope, key="a" * 16), receipts.append)
    await until(lambda: len(receipts) == 4)
    assert not any(isinstance(one, TocsinError) or one.duplicate for one in receipts)


async def test_ephemeral_ones_are_heard_in_order_and_not_kept(stage: Stage) -> None:
    await stage.subscribe("room")
    await stage.subscribe("volatile:cursor")
    outcomes = await asyncio.gather(
        stage.send("room", b"1"),
        stage.send("room", b"2", ephemeral=True),
        stage.send("room", b"3"),
        stage.send("volatile:cursor", b"4"),
    )
    assert [isinstance(one, Published) and one.position is not None for one in outcomes] == [True, False, True, False]
    await until(lambda: len(stage.ear.items) == 4)
    assert stage.ear.payloads("room") == [b"1", b"2", b"3"]
    assert stage.ear.items[1][1].position is None
    assert (await stage.broker.read("room", None, 0)).top == 2


async def test_a_new_channel_gets_an_epoch_by_reading(stage: Stage) -> None:
    reading = await stage.broker.read("room", None, 10)
    assert (reading.verdict, reading.top, reading.tail) == (Verdict.NEW, 0, reading.epoch)
    assert (await stage.broker.read("room", reading.at_top, 10)).verdict is Verdict.OK
    position = await stage.publish("room", b"x")
    assert position == Position(reading.epoch, 1)


async def test_a_page_ends_at_about_a_mebibyte_but_has_one_message(stage: Stage) -> None:
    start = (await stage.broker.read("room", None, 0)).at_top
    await stage.fill("room", [b"x" * 300_000] * 5 + [b"y" * 2_000_000])
    first = await stage.broker.read("room", start, 100)
    assert len(first.publications) == 3
    assert first.top == 6
    rest = await stage.broker.read("room", Position(start.epoch, 5), 100)
    assert [len(one.payload) for one in rest.publications] == [2_000_000]


async def test_a_position_above_the_top_or_of_an_unknown_epoch_is_not_history(stage: Stage) -> None:
    position = await stage.publish("room", b"x")
    for stranger in (
        Position(position.epoch, 2),
        Position("f" * 12, 1),
        Position(position.epoch, 9_999_999_999_999_999),
    ):
        reading = await stage.broker.read("room", stranger, 10)
        assert reading.verdict is Verdict.DIVERGED
        assert reading.reason(stranger) is Reason.DIVERGED


async def test_a_log_that_no_longer_reaches_back_says_expired(stage: Stage) -> None:
    positions = await stage.fill("short:room", [b"%d" % number for number in range(500)])
    assert (await stage.broker.read("short:room", positions[0], 10)).verdict is Verdict.EXPIRED
    assert (await stage.broker.read("short:room", positions[-2], 10)).verdict is Verdict.OK


async def test_a_deleted_log_is_told_except_at_the_top(stage: Stage, store: redis.Redis, prefix: str) -> None:
    positions = await stage.fill("room", [b"a", b"b"])
    store.delete(f"{prefix}:{{room}}:log")
    assert (await stage.broker.read("room", positions[0], 10)).verdict is Verdict.EXPIRED
    assert (await stage.broker.read("room", positions[1], 10)).verdict is Verdict.OK
    assert (await stage.publish("room", b"c")) == Position(positions[1].epoch, 3)
    assert (await stage.broker.read("room", positions[1], 10)).publications[0].payload == b"c"


async def test_a_deleted_meta_begins_a_new_history_over_the_orphaned_log(
    stage: Stage, store: redis.Redis, prefix: str
) -> None:
    old = (await stage.fill("room", [b"a", b"b"]))[-1]
    store.delete(f"{prefix}:{{room}}:meta")
    new = await stage.publish("room", b"c")
    assert new.offset == 1
    assert new.epoch != old.epoch
    assert store.xlen(f"{prefix}:{{room}}:log") == 1
    assert (await stage.broker.read("room", old, 10)).verdict is Verdict.DIVERGED


async def test_a_read_also_clears_away_an_orphaned_log(stage: Stage, store: redis.Redis, prefix: str) -> None:
    await stage.fill("room", [b"a", b"b"])
    store.delete(f"{prefix}:{{room}}:meta")
    start = (await stage.broker.read("room", None, 10)).at_top
    await stage.publish("room", b"c")
    reading = await stage.broker.read("room", start, 10)
    assert [one.payload for one in reading.publications] == [b"c"]


async def test_a_hole_made_by_hand_is_never_read_over(stage: Stage, store: redis.Redis, prefix: str) -> None:
    positions = await stage.fill("room", [b"%d" % number for number in range(1, 7)])
    store.xdel(f"{prefix}:{{room}}:log", "4-0")
    reading = await stage.broker.read("room", positions[0], 10)
    assert [one.payload for one in reading.publications] == [b"2", b"3"]
    assert (await stage.broker.read("room", positions[2], 10)).verdict is Verdict.EXPIRED
    extract = await stage.broker.extract("room", None, None, 10, 10_000)
    assert [one.payload for one in extract.publications] == [b"5", b"6"]
    assert extract.before == positions[3]


async def test_flushall_never_gives_one_id_two_payloads(own_server: RedisServer, prefix: str) -> None:
    async with connected(own_server.url, prefix) as stage:
        before = await stage.fill("room", [b"a", b"b"])
        with own_server.client() as client:
            client.flushall()
        after = await stage.fill("room", [b"c", b"d"])
        assert not {str(one) for one in before} & {str(one) for one in after}
        assert (await stage.broker.read("room", before[0], 10)).verdict is Verdict.DIVERGED


async def test_a_clear_begins_an_epoch_and_offsets_go_on(stage: Stage, store: redis.Redis, prefix: str) -> None:
    await stage.subscribe("room")
    old = (await stage.fill("room", [b"a", b"b"]))[-1]
    key = await stage.publish("room", b"c", key="k" * 16)
    position = await stage.broker.clear("room")
    assert position.offset == 3
    assert position.epoch != old.epoch
    await until(lambda: (("room", Cleared(position))) in stage.ear.items)
    reading = await stage.broker.read("room", old, 10)
    assert (reading.verdict, reading.cleared, reading.lineage) == (
        Verdict.DIVERGED,
        position.epoch,
        ((position.epoch, 4),),
    )
    assert reading.reason(old) is Reason.CLEARED
    assert await stage.send("room", b"c", key="k" * 16) == Published(key, duplicate=True)
    assert await stage.publish("room", b"d") == Position(position.epoch, 4)
    assert (await stage.broker.read("room", position, 10)).publications[0].payload == b"d"
    again = await stage.broker.clear("room")
    assert again.epoch != position.epoch


async def test_the_lives_of_keys_are_renewed(stage: Stage, store: redis.Redis, prefix: str) -> None:
    name = f"{prefix}:{{room}}"
    await stage.publish("room", b"a", key="k" * 16)
    hour, day, minute = 3_600_000, 86_400_000, 60_000
    assert ttl(store, f"{name}:log") == pytest.approx(hour, abs=5000)
    assert ttl(store, f"{name}:meta") == pytest.approx(day, abs=5000)
    assert ttl(store, f"{name}:key::{'k' * 16}") == pytest.approx(minute, abs=5000)
    store.pexpire(f"{name}:log", 1000_000)
    store.pexpire(f"{name}:meta", 1000_000)
    await stage.broker.read("room", None, 0)
    assert ttl(store, f"{name}:meta") == pytest.approx(day, abs=5000)
    assert ttl(store, f"{name}:log") < 1000_001
    await stage.publish("room", b"b")
    assert ttl(store, f"{name}:log") == pytest.approx(hour, abs=5000)


def ttl(store: redis.Redis, key: str) -> int:
    answer: Any = store.pttl(key)
    assert isinstance(answer, int)
    return answer


async def test_a_key_costs_little(stage: Stage, store: redis.Redis, prefix: str) -> None:
    await stage.publish("room", b"a", key="k" * 36)
    used: Any = store.memory_usage(f"{prefix}:{{room}}:key::{'k' * 36}")
    assert used <= 250


async def test_tops_of_many_channels_agree_with_single_reads(stage: Stage) -> None:
    positions = await asyncio.gather(*(stage.publish(f"room:{number}", b"x") for number in range(600)))
    await asyncio.gather(*(stage.publish(f"room:{number}", b"y") for number in range(0, 600, 2)))
    asked: list[tuple[str, Position | None]] = [
        (f"room:{number}", position) for number, position in enumerate(positions)
    ]
    asked += [("fresh", None), ("room:1", Position("f" * 12, 1)), ("room:2", Position(positions[2].epoch, 0))]
    readings = await stage.broker.read_tops(asked)
    assert len(readings) == 603
    for (channel, position), reading in zip(asked, readings, strict=True):
        assert reading == await stage.broker.read(channel, position, 0)
    assert await stage.broker.read_tops([]) == []


async def test_the_newest_messages_and_the_pages_before_them(stage: Stage) -> None:
    positions = await stage.fill("room", [b"%d" % number for number in range(1, 11)])
    newest = await stage.broker.extract("room", None, None, 4, 10_000)
    assert [one.payload for one in newest.publications] == [b"7", b"8", b"9", b"10"]
    assert (newest.position, newest.before, newest.complete) == (positions[9], positions[5], True)
    older = await stage.broker.extract("room", None, positions[6], 4, 10_000)
    assert [one.payload for one in older.publications] == [b"3", b"4", b"5", b"6"]
    assert older.position == positions[5]
    oldest = await stage.broker.extract("room", None, positions[2], 4, 10_000)
    assert [one.payload for one in oldest.publications] == [b"1", b"2"]
    assert oldest.before == Position(positions[0].epoch, 0)
    nothing = await stage.broker.extract("room", None, positions[0], 4, 10_000)
    assert (nothing.publications, nothing.position) == ((), Position(positions[0].epoch, 0))
    reading = await stage.broker.read("room", newest.before, 10)
    assert reading.publications == newest.publications


async def test_a_range_after_a_position(stage: Stage) -> None:
    positions = await stage.fill("room", [b"%d" % number for number in range(1, 11)])
    page = await stage.broker.extract("room", positions[1], None, 3, 10_000)
    assert [one.payload for one in page.publications] == [b"3", b"4", b"5"]
    assert (page.position, page.before, page.complete) == (positions[4], positions[1], False)
    bounded = await stage.broker.extract("room", positions[4], positions[7], 30, 10_000)
    assert [one.payload for one in bounded.publications] == [b"6", b"7"]
    assert bounded.complete
    end = await stage.broker.extract("room", positions[9], None, 3, 10_000)
    assert (end.publications, end.position, end.complete) == ((), positions[9], True)
    small = await stage.broker.extract("room", positions[0], None, 30, 80)
    assert 1 <= len(small.publications) < 9
    assert not small.complete


async def test_an_empty_channel_has_an_empty_range(stage: Stage) -> None:
    extract = await stage.broker.extract("room", None, None, 10, 10_000)
    reading = await stage.broker.read("room", None, 0)
    assert (extract.publications, extract.position, extract.complete) == ((), reading.at_top, True)


async def test_a_bound_that_is_not_history_is_gone_and_says_where_to_go_on(stage: Stage) -> None:
    positions = await stage.fill("short:room", [b"x"] * 300)
    stranger = Position("f" * 12, 3)
    for since, before in ((stranger, None), (None, stranger), (positions[0], None)):
        with pytest.raises(Gone) as caught:
            await stage.broker.extract("short:room", since, before, 10, 10_000)
        assert caught.value.position == str(positions[-1])


async def test_a_message_of_an_unknown_kind_is_never_passed_over_in_silence(
    stage: Stage, store: redis.Redis, prefix: str
) -> None:
    first = await stage.publish("room", b"1")
    room = f"{prefix}:{{room}}"
    epoch = first.epoch
    store.xadd(f"{room}:log", {"e": epoch, "m": b'z{"t":1}\nfrom the future'}, id="2-0")
    store.hset(f"{room}:meta", mapping={"top": 2})
    third = await stage.publish("room", b"3")
    begun = await stage.broker.extract("room", Position(first.epoch, 0), None, 10, 1000)
    assert ([one.payload for one in begun.publications], begun.complete) == ([b"1"], False)
    with pytest.raises(Gone) as gone:
        await stage.broker.extract("room", first, None, 10, 1000)
    assert gone.value.position == f"{first.epoch}-2"
    newest = await stage.broker.extract("room", None, None, 10, 1000)
    assert [one.payload for one in newest.publications] == [b"3"]
    assert (newest.before.offset, newest.position) == (2, third)
