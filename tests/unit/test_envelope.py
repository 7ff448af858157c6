"""How a message lies in the store: bytes that later versions must still read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.brokers.envelope import digest, open_envelope, read_envelope, read_id, read_message, read_page
from app.core.messages import Attendance, Cleared, Draft, Kind, Member, Position, Publication

AT = Position("4c1f0a2b3c4d", 120)


def test_the_opened_envelope_has_the_kind_and_only_the_attributes_that_are_there() -> None:
    assert open_envelope(Draft("a", Kind.TEXT, b"")) == b"t{"
    assert open_envelope(Draft("a", Kind.BINARY, b"", client="c9")) == b'b{"c":"c9",'
    full = Draft("a", Kind.JSON, b"", client="c9", user='a"da', key="k1")
    assert open_envelope(full) == b'j{"c":"c9","u":"a\\"da","k":"k1",'


@given(
    kind=st.sampled_from(Kind),
    payload=st.binary(),
    client=st.none() | st.text(),
    user=st.none() | st.text(),
    key=st.none() | st.text(),
)
def test_what_is_written_is_read_back_whole(
    kind: Kind, payload: bytes, client: str | None, user: str | None, key: str | None
) -> None:
    draft = Draft("a", kind, payload, client=client, user=user, key=key)
    stored = open_envelope(draft) + b'"t":1790000000123}\n' + payload
    publication = read_envelope(AT, stored)
    assert (publication.position, publication.kind, publication.payload) == (AT, kind, payload)
    wanted = {"c": client, "u": user, "k": key, "t": 1790000000123}
    assert publication.read_attributes() == {name: value for name, value in wanted.items() if value is not None}


def test_unknown_attributes_are_kept() -> None:
    publication = read_envelope(AT, b't{"z":[1],"t":5}\nhello\nworld')
    assert publication.payload == b"hello\nworld"
    assert publication.read_attributes() == {"z": [1], "t": 5}


@pytest.mark.parametrize("stored", [b"z{}\nnew", b"", b"t", b"t{}", b"\n"])
def test_what_this_version_cannot_read_has_no_kind(stored: bytes) -> None:
    assert read_envelope(AT, stored) == Publication(AT, None, stored)


def test_a_pubsub_message_begins_with_its_position() -> None:
    assert read_message(b'4c1f0a2b3c4d-120 t{"t":1}\nhi') == Publication(AT, Kind.TEXT, b"hi", b'{"t":1}')


def test_an_ephemeral_one_has_no_position() -> None:
    assert read_message(b'- b{"t":1}\n\x00') == Publication(None, Kind.BINARY, b"\x00", b'{"t":1}')


def test_a_clear_is_a_hint() -> None:
    assert read_message(b"4c1f0a2b3c4d-120 c") == Cleared(AT)


def test_presence_says_who_has_joined_and_left() -> None:
    joined, left = b'{"member":"ada","clients":2,"info":"{ \\"a\\":1}"}', b'{"member":"b","clients":0,"info":"x"}'
    body = b'{"joined":[%b],"left":[%b],"count":7}' % (joined, left)
    ada, other = Member("ada", 2, b'{ "a":1}'), Member("b", 0, b"{}")
    assert read_message(b"- p{}\n" + body) == Attendance((ada,), (other,), 7)
    assert read_message(b'- p{"reaped":true,"x":1}\n' + body) == Attendance((ada,), (other,), 7, reaped=True)


def test_presence_survives_bytes_that_are_no_text() -> None:
    message = b'- p{}\n{"joined":[{"member":"\xff","clients":1,"info":"{}"}],"left":[],"count":1}'
    assert read_message(message) == Attendance((Member("\ufffd", 1),), (), 1)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"hello",
        b" t{}\n",
        b"- p{}\n",
        b"- p{}\n[]",
        b"- px\n{}",
        b"abc t{}\n",
        b"abc- t{}\n",
        b"\xff-1 t{}\n",
        b"a-1 ",
    ],
)
def test_a_foreign_message_is_an_error_of_its_own(message: bytes) -> None:
    with pytest.raises(ValueError):
        read_message(message)


def test_a_page_is_read_in_order() -> None:
    page = read_page([b"ab-1", b't{"t":1}\nx', b"cd-2", b'b{"t":1}\ny'])
    assert [str(publication.position) for publication in page] == ["ab-1", "cd-2"]
    assert [publication.payload for publication in page] == [b"x", b"y"]


def test_positions_of_one_epoch_share_its_string() -> None:
    assert read_id(b"4c1f0a2b3c4d-1").epoch is read_id(b"4c1f0a2b3c4d-2").epoch


def test_the_digest_tells_kinds_and_payloads_apart() -> None:
    bodies = [(Kind.TEXT, b"1"), (Kind.JSON, b"1"), (Kind.TEXT, b"2")]
    digests = {digest(Draft("a", kind, payload)) for kind, payload in bodies}
    assert len(digests) == 3
    assert {len(one) for one in digests} == {8}
