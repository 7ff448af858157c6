"""The command line: `tocsin serve`, `publish`, `token`, `doctor`.

Each command does its work elsewhere; here are options, words and exit codes. An error is one line on stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import sys
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote, urlsplit

import typer
from pydantic import ValidationError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rich.console import Console

from app import __version__, logs
from app.brokers.address import SENTINEL_SCHEME
from app.brokers.examine import Finding, Level
from app.brokers.redis import RedisBroker
from app.core.errors import TocsinError
from app.core.messages import Attendance, Cleared, Publication, Verb
from app.embedded import NoRedis, find_engine
from app.mint import CannotMint, explain, mint, signer_by_key, signer_by_secret
from app.notation import check_pattern
from app.serve import BACKLOG, FILES, CannotServe, Exit, check_host
from app.serve import serve as run_service
from app.settings import Settings, describe_problems

CODES = (
    "Exit codes: 0 done; 1 refused, or a problem was found; 2 wrong usage or setting; 3 the port is taken; "
    "4 the service cannot be reached or cannot take it now: try again; 5 no Redis could be started."
)

_MARKS = {Level.FINE: "[green]✓[/green]", Level.WARNING: "[yellow]![/yellow]", Level.PROBLEM: "[red]✗[/red]"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=CODES,
)


def main() -> None:
    """Entry point of `tocsin`."""
    app(prog_name="tocsin")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tocsin {__version__}")
        raise typer.Exit


@app.callback()
def _tocsin(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Self-hosted real-time broadcast: all hear the same messages in one order, or are told that they missed some."""


@app.command(epilog=CODES)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]", show_default=False)] = None,
    port: Annotated[str | None, typer.Option(help="TCP port; 0 takes any free one. [8000]", metavar="PORT")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Processes that serve. [the cores, at most 4]", metavar="N")
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            help="Redis to use: redis://, rediss://, unix://, redis+sentinel://. [one of its own]", metavar="URL"
        ),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder of the Redis of its own. [tocsin-data]", metavar="FOLDER")
    ] = None,
) -> None:
    """Run the service. Everything else is set by TOCSIN_... variables: docs/configuration.md.

    Stops on Ctrl-C or SIGTERM, after its clients have been sent away.
    """
    given = {"host": host, "port": port, "workers": workers, "redis_url": redis_url, "data_dir": data_dir}
    options = {f"TOCSIN_{name.upper()}": value for name, value in given.items() if value is not None}
    os.environ.update(options)  # the workers read the environment
    raise typer.Exit(run_service(_read_settings(options)))


@app.command(epilog=CODES)
def publish(
    channel: Annotated[str, typer.Argument(help="Channel, for example room:42.")],
    text: Annotated[str, typer.Argument(help="The message; - reads it from standard input.")],
    *,
    url: Annotated[
        str, typer.Option(help="The service.", envvar="TOCSIN_URL", show_envvar=True)
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key publishes once, however often it is tried.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The message is JSON, not text.")] = False,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the API key; else TOCSIN_API_KEY is sent, if set.")
    ] = None,
) -> None:
    """Publish one message and print its id."""
    data: Any = sys.stdin.read() if text == "-" else text
    if as_json:
        try:
            data = json.loads(data)
        except ValueError as error:
            _fail(Exit.USAGE, f"the message is not JSON: {error}")
    body: dict[str, Any] = {"data": data} if key is None else {"data": data, "key": key}
    answer = _post(url, f"/api/v1/channels/{quote(channel, safe='')}/messages", body, _read_api_key(api_key_file))
    typer.echo(f"{answer.get('id') or 'ephemeral'}{' duplicate' if answer.get('duplicate') else ''}")


def _read_api_key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("TOCSIN_API_KEY") or None
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _fail(Exit.USAGE, f"cannot read the API key from {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}")


def _post(url: str, path: str, body: dict[str, Any], api_key: str | None) -> dict[str, Any]:
    """Send one request and return the answer's JSON; whatever is no success ends the command."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        _fail(Exit.USAGE, "--url: this is no address; allowed is http://host:port or https://host")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        _fail(Exit.USAGE, f"--url: {url} is no address; allowed is http://host:port or https://host")
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["X-API-Key"] = api_key
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname, port, timeout=10)
    try:
        connection.request("POST", parts.path.rstrip("/") + path, json.dumps(body), headers)
        response = connection.getresponse()
        return _read_answer(response.status, response.read(1_048_576))
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        _fail(Exit.UNREACHABLE, f"{url} cannot be reached: {reason}")
    except ValueError:
        _fail(Exit.USAGE, "the API key has characters that no header may carry")
    finally:
        connection.close()


def _read_answer(status: int, raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
        if status in (200, 201):
            return dict(answer)
        sentence = f"{answer['error']['message']} ({answer['error']['code']})"
    except (ValueError, KeyError, TypeError):
        _fail(Exit.UNREACHABLE, f"the answer (HTTP {status}) is not from a Tocsin service")
    return _fail(Exit.UNREACHABLE if status == 429 or status >= 500 else Exit.REFUSED, sentence)


_Patterns = Annotated[
    list[str] | None, typer.Option(help="Channel or pattern; more than once for more.", metavar="PATTERN")
]


@app.command(epilog=CODES)
def token(
    who: Annotated[
        str | None, typer.Argument(metavar="USER", help="The user; with --explain a token, else it is read from stdin.")
    ] = None,
    *,
    publish: _Patterns = None,
    subscribe: _Patterns = None,
    history: _Patterns = None,
    presence: _Patterns = None,
    ttl: Annotated[int, typer.Option(help="Seconds that it lives.", min=1, max=315_360_000)] = 3600,
    jti: Annotated[str, typer.Option(help="Its id, by which it can be revoked; auto: a random one.")] = "auto",
    audience: Annotated[str | None, typer.Option(help="`aud`. [TOCSIN_JWT_AUDIENCE]", show_default=False)] = None,
    issuer: Annotated[str | None, typer.Option(help="`iss`. [TOCSIN_JWT_ISSUER]", show_default=False)] = None,
    key: Annotated[
        Path | None, typer.Option(help="File with a private key (PEM) that signs instead of TOCSIN_JWT_SECRET.")
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="For example ES256; else the first that fits the key.")] = None,
    kid: Annotated[str | None, typer.Option(help="Name of the key in a key set; with --key.")] = None,
    explained: Annotated[bool, typer.Option("--explain", help="Say in words what a token is.")] = False,
) -> None:
    """Print a token for USER, signed with TOCSIN_JWT_SECRET: tocsin token ada --subscribe 'room:*'. Or --explain one.

    The secret comes from the environment or TOCSIN_JWT_SECRET_FILE, never from an argument.
    """
    settings = _read_settings({})
    rules = settings.token_rules
    if explained:
        logs.configure("auto", "error")
        shown = sys.stdin.buffer.read(65_536).decode("ascii", "replace") if who in (None, "-") else str(who)
        lines, accepted = asyncio.run(explain(shown.strip(), rules, time.time()))
        for line in lines:
            typer.echo(line)
        raise typer.Exit(Exit.DONE if accepted else Exit.REFUSED)
    if who is None:
        _fail(Exit.USAGE, "for whom? tocsin token USER --subscribe 'room:*'")
    if kid is not None and key is None:
        _fail(Exit.USAGE, "--kid names a key of a key set: give --key FILE too")
    asked = {Verb.PUBLISH: publish, Verb.SUBSCRIBE: subscribe, Verb.HISTORY: history, Verb.PRESENCE: presence}
    try:
        signer = signer_by_secret(rules, algorithm) if key is None else signer_by_key(key, algorithm, kid)
        minted = mint(
            signer,
            who,
            {verb: [_check(pattern, verb) for pattern in patterns or ()] for verb, patterns in asked.items()},
            now=int(time.time()),
            ttl=ttl,
            token=None if jti == "auto" else jti,
            audience=audience or settings.jwt_audience,
            issuer=issuer or settings.jwt_issuer,
        )
    except CannotMint as error:
        _fail(Exit.USAGE, str(error))
    typer.echo(minted)


def _check(pattern: str, verb: Verb) -> str:
    try:
        return check_pattern(pattern)
    except ValueError as error:
        _fail(Exit.USAGE, f"--{verb}: {error}")


@app.command(epilog=CODES)
def doctor() -> None:
    """Look at the settings, the machine and Redis, and say what to do."""
    settings = _read_settings({})
    logs.configure("auto", "error")
    findings = [*_examine_settings(settings), *_examine_machine(), *_examine_redis(settings)]
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        console.print(f"{_MARKS[finding.level]} ", end="")
        console.print(finding.sentence, markup=False)
        if finding.advice:
            console.print(f"  {finding.advice}", style="dim", markup=False)
    raise typer.Exit(Exit.REFUSED if any(finding.level == Level.PROBLEM for finding in findings) else Exit.DONE)


def _examine_settings(settings: Settings) -> list[Finding]:
    try:
        check_host(settings)
    except CannotServe as error:
        return [Finding(Level.PROBLEM, str(error))]
    ways = [settings.token_rules and "a token", settings.api_keys and "an API key"]
    who = " or ".join(way for way in ways if way) or "nothing"
    if settings.allow_anonymous:
        who = "nothing (anonymous use is allowed)"
    return [Finding(Level.FINE, f"the settings are valid; clients of {settings.host}:{settings.port} need {who}")]


def _examine_machine() -> list[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    findings = [
        Finding(Level.FINE, f"{'unlimited' if files == sys.maxsize else files} open files are allowed")
        if files >= FILES
        else Finding(
            Level.WARNING,
            f"{files} open files are allowed: a worker can hold that many connections at most",
            f"raise the hard limit to {FILES} or more: LimitNOFILE= in systemd, ulimits in compose, limits.conf",
        )
    ]
    try:
        waiting = int(Path("/proc/sys/net/core/somaxconn").read_text("ascii"))
    except (OSError, ValueError):  # not Linux
        return findings
    if waiting < BACKLOG:
        advice = f"sysctl -w net.core.somaxconn={BACKLOG}"
        sentence = f"the kernel lets {waiting} new connections wait: more at once are turned away"
        findings.append(Finding(Level.WARNING, sentence, advice))
    return findings


def _examine_redis(settings: Settings) -> list[Finding]:
    if settings.redis_url is None:
        try:
            engine = find_engine()
        except NoRedis as error:
            return [Finding(Level.PROBLEM, str(error))]
        return [Finding(Level.FINE, f"an embedded Redis would run: {engine} ({engine.path})")]
    url = settings.redis_url.get_secret_value()
    try:
        if url.startswith(f"{SENTINEL_SCHEME}://"):
            return asyncio.run(_ask(_broker(url, settings)))
        with Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()  # the broker does not say why it cannot connect: its words reach clients
    except (RedisError, ValueError) as error:
        return [Finding(Level.PROBLEM, f"Redis at {settings.redis_address} cannot be used: {error}")]
    return asyncio.run(_ask(_broker(url, settings)))


def _broker(url: str, settings: Settings) -> RedisBroker:
    return RedisBroker(
        url, settings.redis_prefix, settings.channels, ack=settings.ack, ack_timeout=settings.ack_timeout
    )


async def _ask(broker: RedisBroker) -> list[Finding]:
    broker.start(_Deaf(), f"doctor-{secrets.token_hex(8)}")
    deadline = time.monotonic() + 5
    try:
        while True:
            try:
                return await broker.examine()
            except TocsinError as error:  # not connected yet
                if time.monotonic() > deadline:
                    return [Finding(Level.PROBLEM, next(iter(broker.problems()), error.message))]
                await asyncio.sleep(0.05)
    finally:
        await broker.close()


class _Deaf:
    """A listener that needs no messages: the doctor subscribes to nothing."""

    def confirmed(self, channel: str) -> None: ...

    def received(self, channel: str, item: Publication | Cleared | Attendance) -> None: ...

    def drained(self) -> None: ...

    def settled(self) -> None: ...

    def told(self, message: bytes) -> None: ...

    def lost(self) -> None: ...


def _read_settings(options: dict[str, str]) -> Settings:
    """The settings, or the end of the command with a line a problem; what came by an option is called so."""
    try:
        return Settings()
    except ValidationError as error:
        for line in describe_problems(error):
            variable = line.partition(":")[0]
            option = "--" + variable.removeprefix("TOCSIN_").lower().replace("_", "-")
            print(f"tocsin: {line.replace(variable, option, 1) if variable in options else line}", file=sys.stderr)
        raise typer.Exit(Exit.USAGE) from None


def _fail(code: Exit, sentence: str) -> NoReturn:
    print(f"tocsin: {sentence}", file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
