"""The files around the service: container, compose file, nginx and systemd examples, each by its own checker.

No container engine is needed: the image's lines run literally in a folder (tests/stage/image.py).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML
from websockets.sync.client import connect

from tests.stage.image import Image, build_image, is_ignored, parse_dockerfile
from tests.stage.redis import RedisServer, free_port, redis_binary

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
STAGES = parse_dockerfile(DOCKERFILE.read_text("utf-8"))
COMPOSE: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")
SERVICE, REDIS = COMPOSE["services"]["tocsin"], COMPOSE["services"]["redis"]


def find_tool(name: str, *, required: bool = False) -> str:
    """A checker of the development environment (`required`: always there in CI) or of the machine."""
    found = shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    )
    if found is None:
        if required and os.environ.get("CI"):
            pytest.fail(f"{name} is missing: requirements-dev.lock brings it")
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it to its end; output and errors together."""
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=50, check=False
    )


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    """Wait for a condition; after the deadline fail with the explanation."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


def test_compose_file_matches_the_compose_specification() -> None:
    # check-jsonschema carries the schema of github.com/compose-spec/compose-spec (Apache-2.0).
    done = run(
        find_tool("check-jsonschema", required=True), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"
    )
    assert done.returncode == 0, done.stdout


def test_dockerfile_passes_hadolint() -> None:
    done = run(find_tool("hadolint", required=True), "--no-color", "--failure-threshold", "style", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_service_runs_four_workers_and_is_published_on_loopback_alone() -> None:
    assert SERVICE["environment"]["TOCSIN_WORKERS"] == "4"
    assert SERVICE["environment"]["TOCSIN_ALLOW_ANONYMOUS"] == "true"
    assert SERVICE["ports"] == ["127.0.0.1:8000:8000"]
    assert SERVICE["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert SERVICE["ulimits"]["nofile"] == {"soft": 65535, "hard": 65535}


def test_grace_is_longer_than_the_drain() -> None:
    from app.settings import Settings

    assert SERVICE["stop_grace_period"] == "30s"
    assert "TimeoutStopSec=30" in (ROOT / "deploy/tocsin.service").read_text("utf-8")
    assert Settings.model_fields["drain_seconds"].default + 17 < 30


def test_compose_redis_is_pinned_and_not_published() -> None:
    assert re.fullmatch(r"redis:\d+\.\d+\.\d+-alpine", REDIS["image"])
    assert "ports" not in REDIS
    assert REDIS["volumes"] == ["redis-data:/data"]
    assert "redis-data" in COMPOSE["volumes"]


def test_redis_takes_the_command_of_the_compose_file(tmp_path: Path) -> None:
    redis_binary()
    port = str(free_port())
    command = [*REDIS["command"], "--port", port, "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    check = [REDIS["healthcheck"]["test"][1], "-p", port, *REDIS["healthcheck"]["test"][2:]]
    assert run(*check).returncode != 0, "the health check passes where nothing listens"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: run(*check).returncode == 0, 10, lambda: "the health check never passed")
            wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
            for name, value in wanted.items():
                assert run("redis-cli", "-p", port, "config", "get", name).stdout.split()[1] == value
            buffers = run("redis-cli", "-p", port, "config", "get", "client-output-buffer-limit").stdout
            assert buffers.strip().endswith("pubsub 268435456 67108864 60")
        finally:
            server.terminate()


def test_names_of_services_and_ports_agree() -> None:
    from app.settings import Settings

    port = Settings.model_fields["port"].default
    address = urlsplit(SERVICE["environment"]["TOCSIN_REDIS_URL"])
    assert (address.hostname, address.port) == ("redis", 6379)
    assert {address.hostname, *SERVICE["depends_on"]} <= set(COMPOSE["services"])
    assert [line.rest for line in STAGES[-1] if line.name == "EXPOSE"] == [str(port)]
    assert SERVICE["ports"][0].endswith(f":{port}")
    assert f"'TOCSIN_PORT', '{port}'" in next(line.rest for line in STAGES[-1] if line.name == "HEALTHCHECK")
    assert f"server 127.0.0.1:{port};" in (ROOT / "deploy/nginx.conf").read_text("utf-8")


def test_every_setting_that_is_named_exists() -> None:
    from app.settings import Settings

    known = {f"TOCSIN_{name.upper()}{suffix}" for name in Settings.model_fields for suffix in ("", "_FILE")}
    for file in (DOCKERFILE, ROOT / "docker-compose.yml", *(ROOT / "deploy").iterdir()):
        assert set(re.findall(r"TOCSIN_[A-Z_]+", file.read_text("utf-8"))) <= known, file.name


def test_every_copied_source_is_in_the_build_context() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    names = {stage[0].rest.rpartition(" ")[2] for stage in STAGES[:-1]}
    for line in (line for stage in STAGES for line in stage if line.name == "COPY"):
        if "from" in line.flags:
            assert line.flags["from"] in names
            continue
        for source in line.words[:-1]:
            assert (ROOT / source).exists(), f"COPY {source}: there is no such file"
            assert not is_ignored(source, patterns), f"COPY {source}: .dockerignore leaves it out"
    assert is_ignored("tests/conftest.py", patterns)
    assert is_ignored("app/core/__pycache__", patterns)


def test_image_runs_as_a_numeric_user_who_owns_what_is_copied() -> None:
    user = next(line.rest for line in STAGES[-1] if line.name == "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert all(line.flags["chown"] == user for line in STAGES[-1] if line.name == "COPY")
    assert all(line.words for line in STAGES[-1] if line.name in ("CMD", "HEALTHCHECK"))


def test_nginx_takes_the_example(tmp_path: Path) -> None:
    nginx, openssl = find_tool("nginx"), find_tool("openssl")
    names = ("-keyout", tmp_path / "privkey.pem", "-out", tmp_path / "fullchain.pem")
    run(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=example", *names)
    site = (ROOT / "deploy/nginx.conf").read_text("utf-8").replace("/etc/ssl/tocsin", str(tmp_path))
    (tmp_path / "site.conf").write_text(site)
    main = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; include {tmp_path}/site.conf; }}"
    (tmp_path / "nginx.conf").write_text(main)
    done = run(nginx, "-t", "-e", "stderr", "-p", tmp_path, "-c", tmp_path / "nginx.conf")
    assert done.returncode == 0, done.stdout
    assert "[warn]" not in done.stdout, done.stdout


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (ROOT / "deploy/tocsin.service").read_text("utf-8")
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert start.endswith("/.venv/bin/tocsin serve")
    (tmp_path / "tocsin.service").write_text(unit.replace(start, f"ExecStart={sys.executable} serve"))
    done = run(find_tool("systemd-analyze"), "verify", tmp_path / "tocsin.service")
    assert (done.returncode, done.stdout) == (0, "")  # what it does not know it only says


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built once by the Dockerfile's own lines."""
    yield from build_image(DOCKERFILE, ROOT)


@pytest.mark.timeout(180)
def test_image_holds_the_service_and_no_tools(image: Image) -> None:
    packages = next(image.place("venv/lib").iterdir()) / "site-packages"
    tracked = run("git", "-c", "safe.directory=*", "ls-files", "app").stdout.split()
    assert [file for file in tracked if not (packages / file).exists()] == []
    assert [name for name in ("pip", "hatchling", "pytest") if (packages / name).exists()] == []


@pytest.mark.timeout(180)
def test_image_serves_is_healthy_only_with_redis_and_stops_in_time(image: Image) -> None:
    # As `docker compose up` would start it, but on loopback and on a port of its own.
    port = free_port()
    address = {"TOCSIN_PORT": str(port)}
    assert image.check_health(**address) != 0
    with RedisServer() as redis:
        mine = {"TOCSIN_REDIS_URL": redis.url, "TOCSIN_HOST": "127.0.0.1"}
        with image.start(**SERVICE["environment"] | address | mine) as process:
            try:
                wait_until(
                    lambda: process.poll() is not None or image.check_health(**address) == 0, 60, image.log.read_text
                )
                assert process.poll() is None, image.log.read_text()
                url = f"ws://127.0.0.1:{port}/ws?channel=image"
                with connect(url, proxy=None) as one, connect(url, proxy=None) as other:
                    one.send("heard")
                    assert [one.recv(10), other.recv(10)] == ["heard", "heard"]
                redis.kill()
                wait_until(lambda: image.check_health(**address) != 0, 20, image.log.read_text)
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0, image.log.read_text()
            finally:
                process.kill()
