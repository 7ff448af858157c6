"""What we use inside redis-py and hiredis, one test for each: a new version that moves it is noticed here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import hiredis
import pytest
import redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as Lost

from app.brokers.link import BurstParser, Refusal, connector
from app.brokers.scripts import Opener, bulk, load, pack
from tests.contract.stage import connected
from tests.stage.redis import RedisServer


async def test_a_connection_made_and_not_pooled_speaks_resp2_in_bursts(redis_server: RedisServer) -> None:
    connection = connector(redis_server.address(), "tocsin", 2.0)()
    await connection.connect()  # type: ignore[no-untyped-call]
    try:
        parser, writer = connection._parser, connection._writer
        assert isinstance(parser, BurstParser)
        assert writer is not None
        parser.begin_bursts()
        writer.write(pack(("ECHO", b"one")) + pack(("NOSUCH",)) + pack(("CLIENT", "GETNAME")) + pack(("INCR", "n", 1)))
        replies: list[object] = []
        while len(replies) < 4:
            replies += await parser.read_burst()
        assert replies[0] == b"one"
        assert isinstance(replies[1], Refusal)
        assert replies[1].code == "ERR"
        assert replies[2] == b"tocsin"
        assert isinstance(replies[3], Refusal)
        writer.transport.abort()
        with pytest.raises((Lost, OSError)):
            await parser.read_burst()
    finally:
        await connection.disconnect(nowait=True)


async def test_options_of_the_url_cannot_change_how_we_read(redis_server: RedisServer) -> None:
    options = "?protocol=3&decode_responses=true&socket_timeout=1&health_check_interval=5&retry_on_timeout=true"
    connection = connector(redis_server.url + options, "tocsin", 2.0)()
    assert connection.protocol == 2
    assert connection.encoder.decode_responses is False
    assert connection.socket_timeout is None
    assert connection.health_check_interval == 0
    assert connection.retry.get_retries() == 0
    assert isinstance(connection._parser, BurstParser)


async def test_database_password_and_unix_socket_come_from_the_url(prefix: str) -> None:
    with RedisServer() as server:
        path = Path(server.folder) / "socket"
        server.stop()
        server.options |= {"unixsocket": str(path)}
        server.start()
        with server.client() as client:
            client.config_set("requirepass", "secret")
        async with connected(f"unix://:secret@{path}?db=3", prefix) as stage:
            await stage.publish("room", b"x")
        with redis.Redis(unix_socket_path=str(path), password="secret") as client:
            assert client.info("keyspace")["db3"]["keys"] == 2
        with pytest.raises(Lost) as caught:
            await connector(f"unix://:wrong@{path}", "tocsin", 2.0)().connect()  # type: ignore[no-untyped-call]
        assert isinstance(caught.value.__cause__, AuthenticationError)


async def test_a_handshake_that_is_not_answered_ends_and_leaves_nothing() -> None:
    peers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _reader, writer: peers.append(writer), "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}/0"
    connection = connector(url, "tocsin", 0.1)()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await connection.connect()  # type: ignore[no-untyped-call]
    await connection.disconnect(nowait=True)
    assert not connection.is_connected
    silent.close()
    for peer in peers:
        peer.close()


def test_our_packing_is_hiredis_packing() -> None:
    script = load("ephemeral")
    opener = Opener(script, 4)
    rest = b"".join(bulk(part) for part in (b"0", b"channel", b"t{", b"\x00\r\n"))
    assert opener.by_digest + rest == pack(("EVALSHA", script.digest, 0, "channel", b"t{", b"\x00\r\n"))
    assert opener.by_body + rest == pack(("EVAL", script.body, 0, "channel", b"t{", b"\x00\r\n"))


def test_error_replies_are_values_also_inside_an_array() -> None:
    marker = object()
    reader = hiredis.Reader(replyError=Refusal, notEnoughData=marker)
    reader.feed(b"*2\r\n:1\r\n-OOM no memory\r\n-NOTPRIMARY a replica\r\n+O")
    number, refusal = reader.gets()
    assert number == 1
    assert refusal.code == "OOM"
    assert reader.gets().code == "NOTPRIMARY"
    assert reader.gets() is marker


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'. script: f1, on @user_script:110.", "OOM"),
        ("ERR Error running script (call to f_1): @user_script:110: @user_script: 110: -OOM command not", "OOM"),
        ("ERR Error running script (call to f_1): @user_script:1: user_script:1: attempt to index", "ERR"),
        ("NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT"),
        ("", ""),
    ],
)
def test_the_code_of_an_error_is_found_as_each_version_writes_it(text: str, code: str) -> None:
    assert Refusal(text).code == code
