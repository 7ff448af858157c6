"""The command line: `tocsin serve`, `publish`, `subscribe`, `bench`, `token`, `doctor`.

Each command does its work elsewhere; here are options, words and exit codes. An error is one line on stderr. What
belongs to the service is imported where it is used: who publishes one message need not wait for all of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import stat
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app import __version__
from app.exits import Exit
from app.terminal.feed import Feed, read_lines
from app.terminal.listener import Listener, complain, make_view
from app.terminal.load import Load, Plan
from app.terminal.remote import Failed, Remote
from app.terminal.report import report
from tocsin.errors import TocsinError
from tocsin.publisher import Publisher

if TYPE_CHECKING:
    from app.settings import Settings

CODES = (
    "Exit codes: 0 done; 1 refused, or a problem was found; 2 wrong usage or setting; 3 the port is taken; "
    "4 the service cannot be reached or cannot take it now: try again; 5 no Redis could be started."
)

_MARKS = {"fine": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "problem": "[red]✗[/red]"}

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
    from app.serve import serve as run

    raise typer.Exit(run(_read_settings(options)))


_Url = Annotated[str, typer.Option(help="The service.", envvar="TOCSIN_URL", show_envvar=True)]
_KeyFile = Annotated[Path | None, typer.Option(help="File with the API key; else TOCSIN_API_KEY is sent, if set.")]
_Token = Annotated[
    str | None,
    typer.Option(help="The token; better by its variable: arguments can be seen by others.", envvar="TOCSIN_TOKEN"),
]
SPARE_FILES = 64
"""What a load test has open besides its connections."""
_INTERRUPTED = 130
"""The exit status of a shell's command after Ctrl-C."""
_URL = "http://127.0.0.1:8000"


@app.command(epilog=CODES)
def publish(
    channel: Annotated[str, typer.Argument(help="Channel, for example room:42.")],
    text: Annotated[
        str | None,
        typer.Argument(help="The message; - reads it from standard input; without it each line there is one."),
    ] = None,
    *,
    url: _Url = _URL,
    key: Annotated[
        str | None,
        typer.Option(help="The same key publishes once, however often it is tried; of lines: with their number."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The message, or each line, is JSON, not text.")] = False,
    token: _Token = None,
    api_key_file: _KeyFile = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds for which a request is tried again. [10; of lines 60]", min=0.1, show_default=False),
    ] = None,
) -> None:
    """Publish one message and print its id, or every line of standard input.

    Requests that were cut off are repeated, and publish once.
    """
    remote = _read_remote(url, token, api_key_file)
    seconds = timeout or (60.0 if text is None else 10.0)
    try:
        with Publisher(remote.http, api_key=remote.api_key, token=remote.token, timeout=seconds) as publisher:
            if text is None:
                raise typer.Exit(_publish_lines(Feed(publisher, channel, key=key, as_json=as_json, say=complain)))
            data = sys.stdin.read() if text == "-" else text
            ack = publisher.publish(channel, _read_json(data) if as_json else data, key)
    except Failed as error:
        _fail(error.code, str(error))
    except TocsinError as error:
        _fail(*remote.judge(error))
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    typer.echo(f"{ack.id or 'ephemeral'}{' duplicate' if ack.duplicate else ''}")


def _read_remote(url: str, token: str | None, api_key_file: Path | None) -> Remote:
    try:
        return Remote.read(url, token=token, api_key_file=api_key_file)
    except Failed as error:
        _fail(error.code, str(error))


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failed(Exit.USAGE, f"the message is not JSON: {error}") from error


def _publish_lines(feed: Feed) -> Exit:
    """All of standard input, with a bar on a terminal; the tally is told however it ends."""
    source = sys.stdin.fileno()
    status = os.fstat(source)
    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console,
        disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    try:
        with bar:
            task = bar.add_task("", total=status.st_size if stat.S_ISREG(status.st_mode) else None)
            for lines in read_lines(source):
                feed.publish(lines)
                bar.update(task, completed=feed.tally.size, description=str(feed.tally))
    finally:
        print(feed.tally, file=sys.stderr)
    return Exit.REFUSED if feed.tally.refused else Exit.DONE


@app.command(epilog=CODES)
def subscribe(
    channel: Annotated[str, typer.Argument(help="Channel, for example room:42.")],
    *,
    since: Annotated[str | None, typer.Option(help="Begin after this id.", metavar="ID")] = None,
    history: Annotated[int, typer.Option(help="Begin with so many of the newest messages.", min=0, max=1000)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: messages and gaps.")] = False,
    url: _Url = _URL,
    token: _Token = None,
    api_key_file: _KeyFile = None,
    timeout: Annotated[float, typer.Option(help="Seconds for the first connection.", min=0.1)] = 10.0,
) -> None:
    """Show what is published in a channel, through restarts and lost connections, until Ctrl-C.

    One line a message; on a terminal with when and who. What is about the connection goes to stderr, at the end the
    last position too, for --since.
    """
    remote = _read_remote(url, token, api_key_file)
    view = make_view(channel, as_json=as_json)
    listener = Listener(remote, channel, view, since=since, history=history, patience=timeout)
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(listener.run())
    except Failed as error:
        _fail(error.code, str(error))
    finally:
        _leave_stdout()
    if listener.position is not None:
        complain(f"go on with --since {listener.position}")


def _leave_stdout() -> None:
    """What could not be written to a pipe that nobody reads must not be tried again by the interpreter's end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command(epilog=CODES)
def bench(
    url: Annotated[str, typer.Argument(help="The service.", envvar="TOCSIN_URL", show_envvar=True)] = _URL,
    *,
    connections: Annotated[int, typer.Option(help="That listen, one channel each.", min=1)] = 100,
    publishers: Annotated[int, typer.Option(help="Connections that publish.", min=1)] = 1,
    rate: Annotated[float, typer.Option(help="Messages a second, of all publishers together.", min=0.1)] = 10.0,
    channels: Annotated[int, typer.Option(help="Channels, used in turn.", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="For which is published.", min=0.1)] = 10.0,
    size: Annotated[int, typer.Option(help="Bytes of a message, about.", min=60)] = 128,
    cut: Annotated[
        float | None, typer.Option(help="Cut each connection about every so many seconds; it resumes.", min=0.5)
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Names the channels. [bench:RANDOM]", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as one JSON object.")] = False,
    token: _Token = None,
    api_key_file: _KeyFile = None,
) -> None:
    """Load a service and say how it took it: what was delivered, how fast, and what is missing.

    It publishes into real channels, by default its own, whose logs stay as long as the service keeps them. It ends by
    itself; Ctrl-C shows what was seen until then. Exit code 0 means that everybody got everything, once and in order.
    """
    remote = _read_remote(url, token, api_key_file)
    name = prefix or f"bench:{secrets.token_hex(4)}"
    plan = Plan(
        connections, publishers, rate, tuple(f"{name}:{n}" for n in range(channels)), seconds, size, cut
    )  # fmt: skip
    from app import logs
    from app.serve import raise_file_limit

    logs.configure("auto", "error")  # not a word of what a service would want
    files = raise_file_limit()
    needed = connections + publishers + SPARE_FILES
    if files < needed:
        _fail(Exit.USAGE, f"{needed} open files are needed and {files} are allowed here: ulimit -n {needed}, or less")
    complain(f"publishing {rate:g} messages a second into {name}:* of {remote.http} for {seconds:g} s: real channels")
    load = Load(remote, plan)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run_shown(load))
    except KeyboardInterrupt:
        load.outcome.interrupted = True
    except Failed as error:
        _fail(error.code, str(error))
    if as_json:
        print(json.dumps({"url": remote.http, **asdict(plan), **load.outcome.summary()}))
    else:
        Console(highlight=False).print(report(plan, load.outcome))
    if load.outcome.interrupted:
        raise typer.Exit(_INTERRUPTED)
    raise typer.Exit(Exit.DONE if load.outcome.whole else Exit.REFUSED)


async def _run_shown(load: Load) -> None:
    """Run it, with a bar on a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    running = asyncio.ensure_future(load.run())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=load.plan.seconds)
        try:
            while not running.done():
                await asyncio.wait([running], timeout=0.1)
                outcome = load.outcome
                words = f"{load.open:,} connected, {outcome.published:,} published, {outcome.delivered:,} delivered"
                done = min(load.plan.seconds, time.monotonic() - outcome.began) if outcome.began else 0.0
                progress.update(task, completed=done, description=words)
        finally:
            running.cancel()
            await running


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
    from app import logs
    from app.core.messages import Verb
    from app.mint import CannotMint, explain, mint, signer_by_key, signer_by_secret

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


def _check(pattern: str, verb: str) -> str:
    from app.notation import check_pattern

    try:
        return check_pattern(pattern)
    except ValueError as error:
        _fail(Exit.USAGE, f"--{verb}: {error}")


@app.command(epilog=CODES)
def doctor() -> None:
    """Look at the settings, the machine and Redis, and say what to do."""
    from app import logs
    from app.terminal.doctor import examine

    settings = _read_settings({})
    logs.configure("auto", "error")
    findings = examine(settings)
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        console.print(f"{_MARKS[finding.level]} ", end="")
        console.print(finding.sentence, markup=False)
        if finding.advice:
            console.print(f"  {finding.advice}", style="dim", markup=False)
    raise typer.Exit(Exit.REFUSED if any(finding.level == "problem" for finding in findings) else Exit.DONE)


def _read_settings(options: dict[str, str]) -> Settings:
    """The settings, or the end of the command with a line a problem; what came by an option is called so."""
    from pydantic import ValidationError

    from app.settings import Settings, describe_problems

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
