"""Faults of delivery: clients come and go, what is told or answered is lost on its way, a worker dies at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

from tests.faults.clients import Reader, RestWriter, SocketWriter
from tests.faults.record import Heard, Record
from tests.faults.scene import SHORT, Fault, Scene


async def drops(scene: Scene) -> None:
    """Clients drop and return while messages flow; the log reaches back."""
    record = scene.channel()
    readers = await scene.read(record, scene.scale(8, 200), scene.scale(2, 10))
    writers = scene.write(record, 3, 1, pause=scene.scale(15, 4) / 1000)
    wanted = scene.share(600, 30_000)
    times = scene.share(4, 20)
    for round_number in range(times):
        for reader in readers:
            reader.drop() if scene.chance.random() < 0.5 else reader.leave()
        await scene.tried(record, wanted * (round_number + 1) // times)
        for reader in readers:
            reader.come_back()
    await scene.tried(record, wanted)
    for writer in writers:
        writer.stopping = True
    recovered = Counter(began.recovered for began in record.resumes())
    scene.expect(set(recovered) == {True}, f"answers to resumes inside the log: {dict(recovered)}")


async def beyond(scene: Scene) -> None:
    """The gap is larger than the log: everybody is told, nothing is replayed, and what follows is heard."""
    record = scene.channel("short:")
    readers = await scene.read(record, scene.scale(5, 50), 1)
    hand = scene.hand(record)
    for _ in range(scene.scale(1, 5)):
        await hand.run(0.0, 5)
        for reader in readers:
            reader.leave()
        hand.padding = "." * 2000  # more than a worker remembers beside the log, or it could still replay them all
        await hand.run(0.0, SHORT + 250)
        hand.padding = ""
        before = len(record.resumes())
        for reader in readers:
            reader.come_back()
        await asyncio.gather(*(reader.opened.wait() for reader in readers))
        late = record.resumes()[before:]
        natives = [reader for reader in readers if reader.native]
        told = [began for began in late if began.recovered is False and began.reason == "expired"]
        scene.expect(len(told) == len(natives), f"{len(told)} of {len(natives)} were told `expired`")
        scene.expect(all(began.replayed == 0 for began in told), "something was replayed to who was told")
        await scene.whole(record, 5)


async def nothing_missed(scene: Scene) -> None:
    """Resume with nothing missed, and straight after subscribing to an empty channel."""
    for filled in (0, 3):
        for _ in range(scene.share(3, 50)):
            record = scene.channel()
            readers = await scene.read(record, 2)
            if filled:
                await scene.hand(record).run(0.0, filled)
                await scene.whole(record, 5)
            for reader in readers:
                reader.leave()
            await asyncio.sleep(0.05)
            for reader in readers:
                reader.come_back()
            await asyncio.gather(*(reader.opened.wait() for reader in readers))
            scene.expect(
                [(began.recovered, began.replayed) for began in record.resumes()] == [(True, 0)] * 2,
                f"resumes with nothing missed: {record.resumes()}",
            )


async def boundary(scene: Scene) -> None:
    """Many subscribe with `since` while messages flow: nothing is lost or doubled where replay meets live."""
    record = scene.channel()
    readers = await scene.read(record, scene.scale(10, 50))
    scene.write(record, scene.scale(4, 10), pause=0.01)
    wanted = scene.share(150, 2000)
    while len(record.resumes()) < wanted:
        for reader in scene.chance.sample(readers, len(readers) // 2):
            reader.drop()
        await asyncio.sleep(scene.chance.uniform(0.05, 0.2))
    await scene.quiet()


async def fresh(scene: Scene) -> None:
    """Channels that nobody has used are opened, and published to at once through whichever worker: open means live."""
    base = f"ws://127.0.0.1:{scene.ground.service.port}/ws"
    gate, wanted = asyncio.Semaphore(20), scene.share(60, 1000)
    heard = 0

    async def open_and_hear(number: int) -> None:
        nonlocal heard
        record = scene.channel()
        async with gate:
            reader = Reader(record, f"native {number}", base, scene.chance, native=True)
            writer = SocketWriter(record, f"w{number}", base, scene.chance)
            try:
                await asyncio.wait_for(reader.opened.wait(), 20)
                await writer.publish("mark at once")
                await scene.until(lambda: reader.mark == "mark at once", 10, "a fresh channel is heard")
                heard += reader.mark == "mark at once"
            finally:
                await writer.give_up()
                await reader.stop()

    await asyncio.gather(*(open_and_hear(number) for number in range(wanted)))
    scene.note("lost", wanted - heard, 0)


def append_untold(scene: Scene, record: Record, payload: str) -> None:
    """What is left of a publish whose PUBLISH never arrives."""
    record.tried(payload)
    room = f"tocsin:{{{record.channel}}}"
    with scene.ground.redis.client() as client:
        top, epoch = client.hmget(f"{room}:meta", "top", "epoch")
        offset = int(top) + 1
        client.xadd(f"{room}:log", {"e": epoch, "m": f'j{{"t":1}}\n"{payload}"'}, id=f"{offset}-0")
        client.hset(f"{room}:meta", mapping={"top": offset, "tail": epoch})


async def untold(scene: Scene) -> None:
    """Redis appends, and the PUBLISH never arrives: found with the next message, or by the check of an idle channel."""
    idle, busy = scene.channel(), scene.channel()
    for record in (idle, busy):
        await scene.read(record, 4, 2)
        await scene.hand(record).run(0.0, 2)
        await scene.whole(record, 5, what="before")
    append_untold(scene, idle, "mark untold and idle")
    waiting = [reader for reader in scene.readers if reader.record is idle]
    for number in range(scene.share(5, 50)):
        append_untold(scene, busy, f"untold {number}")
        took = await scene.whole(busy, 5, what="busy: whole")
        scene.expect(took <= 1.0, f"busy: whole after {took:.2f} s")
    took = await scene.until(
        lambda: all(reader.mark == "mark untold and idle" for reader in waiting), 20, "an idle channel finds it"
    )
    scene.note("idle: found after, s", took, 20)


async def one_order(scene: Scene) -> None:
    """Eight publishers, one order for everybody."""
    record = scene.channel()
    readers = await scene.read(record, scene.scale(16, 45), scene.scale(4, 5))
    scene.write(record, 6, 2, pause=0.0)
    await scene.tried(record, scene.share(800, 20_000))
    await scene.quiet()
    await scene.whole(record, 10)
    lists = {tuple(event.payload for event in reader.events if isinstance(event, Heard)) for reader in readers}
    scene.expect(len(lists) == 1, f"{len(lists)} different lists")
    order = next(iter(lists))
    for writer in scene.writers:
        numbers = [int(text.rpartition("-")[2]) for text in order if text.startswith(f"{writer.name}-")]
        scene.expect(numbers == sorted(numbers), f"{writer.name} is out of its own order")


async def one_key(scene: Scene) -> None:
    """The same key five times at once, over WebSocket and REST and different workers: one entry, one id."""
    record = scene.channel()
    await scene.read(record, 3)
    base = scene.ground.service.url
    hands = [SocketWriter(record, "k", f"{base.replace('http', 'ws')}/ws", scene.chance) for _ in range(3)]
    rest = [RestWriter(record, "k", base, scene.chance) for _ in range(2)]
    scene.writers += [*hands, *rest]
    for number in range(scene.share(60, 1000)):
        payload, key = f"once {number}", f"{number:06d}{scene.chance.getrandbits(64):016x}"
        record.tried(payload)
        answers = await asyncio.gather(*(hand.attempt(payload, key) for hand in (*hands, *rest)))
        ids = {answer.id for answer in answers if answer is not None}
        scene.expect(None not in answers and len(ids) == 1, f"answers to one key: {answers}")
        scene.expect(sum(not answer.duplicate for answer in answers if answer) == 1, f"not one first: {answers}")
        record.acknowledged += [answer for answer in answers if answer is not None]


async def cut_reply(scene: Scene) -> None:
    """The answer to a publish is cut off on its way, and the publish repeated with its key."""
    record = scene.channel()
    await scene.read(record, 4)
    front = scene.ground.front
    scene.write(record, 3, pause=0.005, port=front.port)
    wanted, before = scene.share(15, 500), front.swallowed
    for _ in range(wanted):
        front.swallow = b'"published"'
        await scene.until(lambda: front.swallow is None, 20, "an answer is swallowed")
    await scene.quiet()
    again = sum(record.attempts.values()) - len(record.attempts)
    scene.note("answers cut", front.swallowed - before)
    scene.expect(again >= wanted, f"{again} retries after {wanted} cuts")


async def killed_between(scene: Scene) -> None:
    """A worker is killed as soon as it has acknowledged, before or while it tells its own subscribers."""
    record = scene.channel()
    readers = await scene.read(record, scene.scale(12, 30))
    service = scene.ground.service
    for number in range(scene.share(2, 100)):
        await scene.ground.ready()
        await asyncio.gather(*(reader.opened.wait() for reader in readers))
        writer = SocketWriter(record, f"k{number}", f"ws://127.0.0.1:{service.port}/ws", scene.chance)
        scene.writers.append(writer)
        await writer.publish(f"before {number}")
        assert writer.port is not None
        victim = service.pid_serving(writer.port)
        assert victim is not None
        record.tried(f"last words {number}")
        answer = await writer.attempt(f"last words {number}", f"last-words-{number:06d}")
        os.kill(victim, signal.SIGKILL)
        assert answer is not None
        record.acknowledged.append(answer)
        await writer.give_up()
    await scene.ground.ready()
    scene.note("workers killed", number + 1)


FAULTS = (
    Fault(
        "drops",
        "Clients drop and return inside the log, while messages flow",
        "lost 0, duplicate 0, every resume recovers",
        drops,
    ),
    Fault("beyond", "The gap is larger than the log", "all told `expired`, nothing replayed, live goes on", beyond),
    Fault("fresh", "A channel opened and published to at once, by another worker", "lost 0: open means live", fresh),
    Fault(
        "nothing-missed",
        "Resume with nothing missed, and after subscribing to an empty channel",
        "`recovered`, 0 replayed",
        nothing_missed,
    ),
    Fault("boundary", "Publishing while many subscribe with `since`", "lost 0, duplicate 0 at the seam", boundary),
    Fault(
        "untold",
        "Redis appends, the PUBLISH never arrives; busy, then idle",
        "whole in 1 s; found in 20 s",
        untold,
    ),
    Fault("one-order", "8 publishers at once", "one order, equal lists", one_order),
    Fault(
        "one-key", "The same key 5 times at once, by WebSocket and REST", "one entry, one id in all answers", one_key
    ),
    Fault(
        "cut-reply", "The answer to a publish is cut off, and it is retried", "one entry for each publish", cut_reply
    ),
    Fault(
        "killed-between",
        "A worker is killed between acknowledgement and fan-out",
        "acknowledged but unread after resume: 0",
        killed_between,
    ),
)
