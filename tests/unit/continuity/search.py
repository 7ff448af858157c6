"""Runs as lists of actions, a random search over them, a shrinker.

`python -m tests.unit.continuity.search [steps] [seed]` searches longer than the tests do;
`python -m tests.unit.continuity.search --traces` looks anew for the traces of rules that were taken away.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.unit.continuity.oracle import Violation
from tests.unit.continuity.parts import Client, Worker
from tests.unit.continuity.rules import ABSENCES, Rules
from tests.unit.continuity.world import World

Action = tuple[str, int, int, int]
"""An action, a worker (modulo 2), a client (modulo 4), a choice that the action reads as it likes."""

TRACES = Path(__file__).parents[1] / "traces"
CHOICES = 12
TASTE = (0.2, 1.0, 1.0, 1.0, 5.0)


def _publish(world: World, worker: Worker, client: Client, choice: int) -> None:
    world.publish(worker, again=choice % 2 == 1, doubtful=choice % 5 == 0)


def _read(world: World, worker: Worker, client: Client, choice: int) -> None:
    for _ in range(1 + choice % 3):
        world.read(worker, worker.queue)


def _lose(world: World, worker: Worker, client: Client, choice: int) -> None:
    if worker.queue:
        worker.queue.pop(choice % len(worker.queue))


def _return(world: World, worker: Worker, client: Client, choice: int) -> None:
    world.audience.leave(client)
    world.subscribe(client, worker, choice)


def _reader_back(world: World, worker: Worker, client: Client, choice: int) -> None:
    if not worker.linked:
        world.relink(worker, worker.reader if choice % 3 == 2 else world.store.leader)


ACTIONS: dict[str, tuple[float, Callable[[World, Worker, Client, int], object]]] = {
    "publish": (22, _publish),
    "read": (16, _read),
    "reply": (24, lambda world, worker, _, __: world.reply(worker)),
    "tick": (8, lambda world, worker, _, choice: world.tick(worker, anew=choice % 2 == 1)),
    "page": (10, lambda world, _, client, __: world.audience.page(client)),
    "sub": (6, lambda world, worker, client, choice: world.subscribe(client, worker, choice)),
    "return": (8, _return),
    "drop": (3, lambda world, _, client, __: world.audience.leave(client)),
    "slow": (4, lambda world, _, client, __: world.audience.lag(client)),
    "check": (4, lambda world, worker, _, __: world.check(worker)),
    "lose": (2, _lose),
    "old": (1, lambda world, worker, _, __: world.read(worker, worker.old)),
    "reader_move": (2, lambda world, worker, _, __: world.relink(worker, world.store.leader)),
    "command_move": (2, lambda world, worker, _, __: setattr(worker, "commands", world.store.leader)),
    "reader_kill": (1, lambda world, worker, _, __: world.unlink(worker)),
    "reader_back": (2, _reader_back),
    "linger": (1, lambda world, worker, _, __: world.close(worker)),
    "replicate": (7, lambda world, _, __, choice: world.store.replicate(1 + choice % 4)),
    "fail": (1, lambda world, worker, _, __: world.fail(worker)),
    "lazy": (1, lambda _, worker, __, ___: setattr(worker, "lazy", not worker.lazy)),
    "execute": (3, lambda world, worker, _, __: world.execute(worker)),
    "hold": (1, lambda _, worker, __, ___: setattr(worker, "holding", not worker.holding)),
    "flush": (3, lambda world, worker, _, __: world.flush(worker)),
    "stall": (1, lambda _, __, client, ___: setattr(client, "stalled", not client.stalled)),
    "receive": (2, lambda world, _, client, __: world.audience.receive(client)),
    "fail_over": (1, lambda world, _, __, ___: world.store.fail_over()),
    "demote": (1, lambda world, _, __, ___: world.store.demote()),
    "lead_again": (0.5, lambda world, _, __, ___: world.store.lead_again()),
    "promote_again": (0.5, lambda world, _, __, ___: world.store.promote_again()),
    "restart": (1, lambda world, _, __, choice: world.store.restart(choice % 4)),
    "flush_all": (0.4, lambda world, _, __, ___: world.store.flush_all()),
    "expire_log": (0.4, lambda world, _, __, ___: world.store.expire_log()),
    "expire_meta": (0.4, lambda world, _, __, choice: world.store.expire_meta(log_too=choice % 2 == 0)),
    "clear": (0.4, lambda world, _, __, ___: world.clear()),
}
"""What may happen, and how often (in proportion)."""

FAULTS = frozenset({"restart", "fail_over", "lead_again", "promote_again", "flush_all", "expire_meta", "reader_kill"})
"""After these nobody is owed the news of an earlier clear: another loss may be what it is told."""


def act(world: World, action: Action) -> None:
    """One step."""
    name, a, b, choice = action
    world.store.step += 1
    if name in FAULTS:
        for client in world.audience.clients:
            client.owed = False
    ACTIONS[name][1](world, world.workers[a % 2], world.audience.clients[b % 4], choice)
    world.settle_accounts()


def run(actions: Sequence[Action], rules: Rules | None = None, wanted: str | None = None) -> Violation | None:
    """Play a trace and heal. Returns the first violation (of the wanted kind)."""
    world = World(rules or Rules(), wanted)
    try:
        for action in actions:
            act(world, action)
        world.heal()
    except Violation as violation:
        return violation
    return None


def shrink(actions: Sequence[Action], fails: Callable[[Sequence[Action]], bool]) -> list[Action]:
    """Leave out what is not needed, from halves down to single actions, then make numbers small."""
    kept = list(actions)
    size = len(kept) // 2
    while size >= 1:
        start = 0
        while start < len(kept):
            shorter = kept[:start] + kept[start + size :]
            if fails(shorter):
                kept = shorter
            else:
                start += size
        size //= 2
    for index in range(len(kept)):
        for place in range(3):
            for value in range(kept[index][1:][place]):
                name, *numbers = kept[index]
                numbers[place] = value
                simpler: Action = (name, numbers[0], numbers[1], numbers[2])
                if fails([*kept[:index], simpler, *kept[index + 1 :]]):
                    kept[index] = simpler
                    break
    return kept


def draw(rng: random.Random, length: int, boost: Mapping[str, float] | None = None) -> list[Action]:
    """A random list of actions. Each list has its own taste, so that rare things also happen often somewhere."""
    usual = {name: weight for name, (weight, _) in ACTIONS.items()} | dict(boost or {})
    weights = [weight * rng.choice(TASTE) for weight in usual.values()]
    names = rng.choices(list(usual), weights, k=length)
    return [(name, rng.randrange(2), rng.randrange(4), rng.randrange(CHOICES)) for name in names]


def search(
    rules: Rules,
    *,
    steps: int,
    seed: int,
    wanted: str | None = None,
    length: int = 150,
    boost: Mapping[str, float] | None = None,
) -> tuple[list[Action], Violation] | None:
    """Look for a violation in so many random steps."""
    rng = random.Random(seed)
    for _ in range(0, steps, length):
        actions = draw(rng, length, boost)
        violation = run(actions, rules, wanted)
        if violation is not None:
            return actions, violation
    return None


def shortest(name: str, kind: str, *, steps: int, tries: int) -> list[Action] | None:
    """The shortest trace found for a rule that was taken away and a kind of violation."""
    absence = ABSENCES[name]
    best: list[Action] | None = None
    for seed in range(tries):
        found = search(absence.rules, steps=steps, seed=seed, wanted=kind, boost=absence.boost)
        if found is not None:
            trace = shrink(found[0], lambda actions: run(actions, absence.rules, kind) is not None)
            if best is None or len(trace) < len(best):
                best = trace
    return best


def write_traces(names: Sequence[str], *, steps: int = 600_000, tries: int = 6) -> None:
    """Search and keep the traces of these rules."""
    for name in names:
        for kind in ABSENCES[name].expected:
            trace = shortest(name, kind, steps=steps, tries=tries)
            print(name, "|", kind, "|", "not found" if trace is None else f"{len(trace)} actions", flush=True)
            if trace is not None:
                lines = ",\n    ".join(json.dumps(action) for action in trace)
                head = f'{{\n  "rule": "{name}",\n  "kind": "{kind}",\n  "actions": [\n    '
                path = TRACES / f"{name}-{kind.replace(' ', '_')}.json"
                path.write_text(f"{head}{lines}\n  ]\n}}\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """The longer search."""
    if arguments[:1] == ["--traces"]:
        write_traces(arguments[1:] or list(ABSENCES))
        return 0
    steps = int(arguments[0]) if arguments else 1_000_000
    seed = int(arguments[1]) if len(arguments) > 1 else 1
    began = time.perf_counter()
    found = search(Rules(), steps=steps, seed=seed)
    print(f"{steps} steps, {time.perf_counter() - began:.1f} s:", found[1] if found else "no violation")
    if found is not None:
        for action in shrink(found[0], lambda actions: run(actions, wanted=found[1].kind) is not None):
            print(" ", json.dumps(action))
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
