"""The REST publishers on a real service: from threads, from asyncio, through a cut, after a fork."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import tocsin
from tests.clients.python.stage import QUICK, somewhere
from tests.stage.proxy import proxied
from tests.stage.redis import free_port
from tests.stage.service import NO_TLS, Service


def logged(service: Service, channel: str) -> list[object]:
    path = f"{service.url}/api/v1/channels/{channel}/messages?limit=1000"
    return [message.get("data") for message in httpx.get(path, verify=NO_TLS).json()["messages"]]


def test_a_message_and_its_repetition(service: Service) -> None:
    channel, key = somewhere(), secrets.token_hex(8)
    with tocsin.Publisher(service.url) as publisher:
        first = publisher.publish(channel, {"order": 7}, key)
        assert not first.duplicate
        again = publisher.publish(channel, {"order": 7}, key)
        assert (again.id, again.duplicate) == (first.id, True)
        with pytest.raises(tocsin.Conflict):
            publisher.publish(channel, {"order": 8}, key)
        assert publisher.publish(channel, "typing", ephemeral=True).id is None
    assert logged(service, channel) == [{"order": 7}]


def test_many_with_an_outcome_each(service: Service) -> None:
    channel = somewhere()
    with tocsin.Publisher(service.url) as publisher:
        outcomes = publisher.publish_many([(channel, number) for number in range(500)] + [(channel, "x" * 70_000)])
    assert all(isinstance(outcome, tocsin.Ack) for outcome in outcomes[:500])
    assert isinstance(outcomes[500], tocsin.TooLarge)
    assert logged(service, channel) == list(range(500))


def test_threads_share_a_publisher(service: Service) -> None:
    channel = somewhere()
    with tocsin.Publisher(service.url) as publisher, ThreadPoolExecutor(8) as pool:
        acks = list(pool.map(lambda number: publisher.publish(channel, number), range(40)))
    assert len({ack.id for ack in acks}) == 40


def test_nobody_there_is_said_after_the_time_given() -> None:
    publisher = tocsin.Publisher(f"http://127.0.0.1:{free_port()}", timeout=0.3, backoff=QUICK)
    with publisher, pytest.raises(tocsin.PublishTimeout) as given_up:
        publisher.publish("room", 1)
    assert not given_up.value.sent


async def test_an_answer_that_was_lost_is_asked_for_again(service: Service) -> None:
    channel = somewhere()
    async with (
        proxied(service.port) as proxy,
        tocsin.AsyncPublisher(f"http://127.0.0.1:{proxy.port}", backoff=QUICK) as publisher,
    ):
        for number in range(5):
            proxy.swallow = b'"duplicate"'
            ack = await publisher.publish(channel, number)
            assert ack.duplicate
    assert await asyncio.to_thread(logged, service, channel) == list(range(5))


def test_a_child_process_has_connections_of_its_own(service: Service) -> None:
    """As under a server that forks its workers."""
    channel = somewhere()
    with tocsin.Publisher(service.url) as publisher:
        publisher.publish(channel, "parent")
        parents = publisher._clients.pop(os.getpid())
        publisher._clients[-1] = parents  # what a fork changes: the process id is another
        publisher.publish(channel, "child")
        assert publisher._clients[os.getpid()] is not parents
        assert not parents.is_closed
        parents.close()
    assert logged(service, channel) == ["parent", "child"]


def test_threads_that_come_at_once_share_connections(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[httpx.Client] = []
    together = threading.Barrier(8)
    make = httpx.Client

    def slowly(**options: Any) -> httpx.Client:
        together.wait(5)
        made.append(make(**options))
        return made[-1]

    monkeypatch.setattr(httpx, "Client", slowly)
    with tocsin.Publisher(service.url) as publisher, ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda number: publisher.publish(somewhere(), number), range(8)))) == 8
    assert len(made) == 8
    assert all(client.is_closed for client in made)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_publisher_outlives_its_event_loop(service: Service) -> None:
    """The sockets of the loop that has ended are left to the collector, which says so."""
    publisher = tocsin.AsyncPublisher(service.url)
    for number in range(2):
        assert asyncio.run(publisher.publish(somewhere(), number)).id
    asyncio.run(publisher.close())
    del publisher
    gc.collect()


def test_without_httpx_the_rest_of_the_package_works() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None; import tocsin; print(tocsin.connect('ws://a/ws')); tocsin.Publisher"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tocsin.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=20, check=False
    )
    assert "pip install 'tocsin[rest]'" in done.stderr
    assert "Connecting" in done.stdout


def test_what_is_no_http_url_is_refused() -> None:
    with pytest.raises(ValueError, match="not an HTTP URL"):
        tocsin.Publisher("ws://127.0.0.1:8000")
