"""The tests of continuity are tested: with any rule taken away they find what it prevents (invariant 13).

The traces were found and shrunk by `python -m tests.unit.continuity.search --traces`, but for the two crafted ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.continuity.rules import ABSENCES
from tests.unit.continuity.search import TRACES, Action, run, search, shrink

FILES = sorted(TRACES.glob("*.json"))


def load(path: Path) -> tuple[str, str, list[Action]]:
    """Rule, kind of violation, actions."""
    trace = json.loads(path.read_text(encoding="utf-8"))
    return trace["rule"], trace["kind"], [(name, a, b, choice) for name, a, b, choice in trace["actions"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_without_the_rule_the_trace_breaks_the_promise(path: Path) -> None:
    rule, kind, actions = load(path)
    violation = run(actions, ABSENCES[rule].rules, kind)
    assert violation is not None
    assert violation.kind == kind


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_with_all_rules_the_same_trace_keeps_it(path: Path) -> None:
    violation = run(load(path)[2])
    assert violation is None, violation


def test_every_rule_has_a_trace_for_everything_it_prevents() -> None:
    kept = {load(path)[:2] for path in FILES}
    assert kept == {(name, kind) for name, absence in ABSENCES.items() for kind in absence.expected}


def at(*names: str) -> list[Action]:
    """Actions of the first worker, the first client and the plainest choice; `name:2` is another choice."""
    parsed = [(name.partition(":")[0], name.partition(":")[2]) for name in names]
    return [(name, 0, 0, int(choice or 0)) for name, choice in parsed]


JOINED = at("publish:2", "sub", "reply", "reply")


def test_a_position_after_the_replay_loses_it_with_the_connection() -> None:
    """Crafted: two messages missed, the connection is lost between `subscribed` and the replay."""
    missed = at("drop", "publish:2", "publish:2", "sub", "reply", "drop", "sub", "reply")
    violation = run(JOINED + missed, ABSENCES["position_after"].rules)
    assert violation is not None
    assert violation.kind == "silent hole"
    assert run(JOINED + missed) is None


def test_a_reset_without_a_settled_epoch_repeats_ids_when_the_old_primary_leads_again() -> None:
    """Crafted: promoted behind the worker and not yet published to; the worker is reset; then back to the old one."""
    promoted = at(*["replicate"] * 2, "publish:2", "read", "fail_over", "command_move", "check", "reply", "reply")
    told = at("page", "reply", "tick")
    back = at("lead_again", "command_move", "check", "reply", "reply", "tick", "page", "reply", "reply")
    violation = run(JOINED + promoted + told + back, ABSENCES["reads_do_not_settle"].rules)
    assert violation is not None
    assert violation.kind == "duplicate"
    assert run(JOINED + promoted + told + back) is None


def test_the_search_finds_a_missing_rule_and_the_shrinker_keeps_what_matters() -> None:
    absence = ABSENCES["check_judges"]
    found = search(absence.rules, steps=60_000, seed=1, wanted="false reset", boost=absence.boost)
    assert found is not None
    shrunk = shrink(found[0], lambda actions: run(actions, absence.rules, "false reset") is not None)
    assert len(shrunk) <= 20
    assert run(shrunk, absence.rules, "false reset") is not None
    assert run(shrunk) is None
