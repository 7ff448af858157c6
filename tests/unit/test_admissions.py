"""The ends of tokens, connections by address and user, and meters: what a worker knows by itself."""

from __future__ import annotations

from typing import Any, cast

import pytest

from app.core.errors import RateLimited
from app.core.identity import Identity
from app.core.limits import Rate, Rates
from app.edge.loopback import is_loopback_name, network_of
from app.engine import admissions
from app.engine.admissions import LEEWAY_SECONDS, Admissions


class Peer:
    """A connection that knows whether it was closed."""

    def __init__(self, user: str | None = None, ends: float | None = None, address: str | None = None) -> None:
        self.identity = Identity(user, "", {}, expires_at=ends)
        self.address = address
        self.closes_at = 0
        self.code: int | None = None
        self.socket = cast("Any", self)

    def close(self, code: int, reason: str) -> None:
        self.code = code


class Stage(Admissions):
    def __init__(self, per_address: int = 0, per_user: int = 0, connects: float = 0, publishes: float = 0) -> None:
        self.now = 1000.0
        super().__init__(
            cast("Any", None),
            "test",
            clock=lambda: self.now,
            per_address=per_address,
            per_user=per_user,
            connects=Rate(connects, max(1, connects)),
            rates=Rates(publish=Rate(publishes, 2)),
        )

    def pass_to(self, second: float) -> None:
        while self.now < second:
            self.now += 1
            self.turn()


def test_a_socket_ends_within_a_second_of_its_tokens_end_and_the_leeway() -> None:
    stage = Stage()
    peers = {ends: Peer("ada", ends) for ends in (1000.0, 1005.0, 1005.5, 990.0)}
    for peer in peers.values():
        stage.enter(peer)
    closed: dict[float, float] = {}
    while stage.now < 1030:
        stage.now += 1
        stage.turn()
        closed |= {ends: stage.now for ends, peer in peers.items() if peer.code and ends not in closed}
    assert {peer.code for peer in peers.values()} == {4401}
    for ends, at in closed.items():
        assert -1 <= at - (ends + LEEWAY_SECONDS) <= 1
    assert stage.expired == 4


def test_a_renewed_token_moves_the_end_and_who_has_left_is_forgotten() -> None:
    stage = Stage()
    renewed, left = Peer("ada", 1005), Peer("eve", 1005)
    for peer in (renewed, left):
        stage.enter(peer)
    renewed.identity = Identity("ada", "", {}, expires_at=1050)
    stage.renew(renewed)
    stage.leave(left)
    stage.pass_to(1040)
    assert (renewed.code, left.code) == (None, None)
    stage.pass_to(1061)
    assert renewed.code == 4401
    assert not stage._ending


@pytest.mark.parametrize("jump", [86_400, -86_400])
def test_a_clock_that_jumps_and_comes_back_keeps_nobody(jump: int) -> None:
    stage = Stage()
    before = Peer("ada", 200_000)
    stage.enter(before)
    stage.now += jump
    stage.turn()
    meanwhile = Peer("eve", stage.now + 5)
    stage.enter(meanwhile)
    stage.now -= jump
    stage.turn()
    after = Peer("bob", 1005)
    stage.enter(after)
    stage.pass_to(1020)
    assert after.code == 4401
    assert before.code is None


def test_connections_count_while_they_open_and_are_given_back() -> None:
    stage = Stage(per_address=2, per_user=1)
    ada = Identity("ada", "", {})
    stage.check(ada, "203.0.113.1")
    stage.begin(ada, "203.0.113.1")
    with pytest.raises(RateLimited):
        stage.check(ada, "203.0.113.2")
    peer = Peer("ada", address="203.0.113.1")
    stage.enter(peer)
    stage.end(ada, "203.0.113.1")
    stage.begin(Identity(), "203.0.113.1")
    with pytest.raises(RateLimited):
        stage.check(Identity(), "203.0.113.1")
    stage.end(Identity(), "203.0.113.1")
    stage.leave(peer)
    stage.check(ada, "203.0.113.1")
    assert not stage._addresses
    assert not stage._users


def test_upgrades_of_one_address_have_a_rate_and_others_do_not_feel_it() -> None:
    stage = Stage(connects=2)
    for _ in range(2):
        stage.knock("203.0.113.1", 5.0)
    with pytest.raises(RateLimited) as refused:
        stage.knock("203.0.113.1", 5.0)
    assert refused.value.retry_after == pytest.approx(0.5)
    stage.knock("203.0.113.2", 5.0)
    stage.knock("203.0.113.1", 5.6)


def test_a_user_with_a_connection_keeps_its_meter_however_many_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions, "_RECENT", 10)
    stage = Stage(publishes=1)
    held = stage.meter(Identity("ada", "", {}))
    for number in range(100):
        stage.meter(Identity(f"user{number}", "", {}))
        stage.meter(Identity(), f"203.0.113.{number}")
    assert stage.meter(Identity("ada", "", {})) is held
    assert len(stage._meters) <= 21
    assert stage.meter(Identity()) is not stage.meter(Identity())
    assert stage.meter(Identity(scope="key/shop")) is None


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not: an address", "not: an address"),
        ("", ""),
    ],
)
def test_an_ipv6_network_is_one_place(address: str, place: str) -> None:
    assert network_of(address) == place


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("app.localhost:3000", True),
        ("127.0.0.1:8000", True),
        ("127.9.9.9", True),
        ("[::1]:8000", True),
        ("", False),
        ("[", False),
        ("x@localhost", False),
        ("localhost?x", False),
        ("localhost/evil.example", False),
        ("evil.example\\@localhost", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1", False),
        ("[2001:db8::1]", False),
    ],
)
def test_names_of_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback_name(host) is loopback
