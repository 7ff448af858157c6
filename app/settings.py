"""What an operator may choose: one frozen class, read from the environment. Each field's docstring documents it.

`python -m app.settings > docs/configuration.md` writes the reference. Settings stop at `main`, `serve` and `cli`: what
is below gets values. No secret stands in an error, a representation or a log.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.brokers import WRITTEN, AckLevel
from app.core.identity import ApiKey
from app.core.messages import ChannelRule
from app.edge.keys import SECRET_ALGORITHMS, TokenRules, read_public_key, read_secret
from app.notation import (
    KEY,
    read_ack,
    read_algorithm,
    read_cookie,
    read_jwks_url,
    read_jwt_public_key,
    read_jwt_secret,
    read_keys,
    read_list,
    read_network,
    read_origin,
    read_redis_url,
    read_rule,
    read_rules,
    read_text,
)

PREFIX = "TOCSIN_"
OTHERS = {
    "TOCSIN_API_KEY": "the API key that `tocsin publish`, `subscribe` and `bench` send (or `--api-key-file`)",
    "TOCSIN_TOKEN": "the token that they send (or `--token`)",
    "TOCSIN_URL": "the service that they use (or `--url`)",
}
"""Variables of our commands that are no settings of the service."""


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_node() -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "node"


def _documented(default: str = "", allowed: str = "") -> dict[str, Any]:
    """What the class cannot say of a field by its type: the default's and the allowed values' text."""
    return {"default": default, "allowed": allowed}


class Settings(BaseSettings):
    """How one node of the service runs."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, env_prefix=PREFIX
    )
    SECRETS: ClassVar[frozenset[str]] = frozenset(
        {"redis_url", "api_keys", "metrics_token", "jwt_secret", "jwt_public_key"}
    )
    """Fields that may also come from a file (`TOCSIN_..._FILE`), and whose value is never shown."""

    host: str = Field(default="127.0.0.1", min_length=1, json_schema_extra=_documented(allowed="an address or a name"))
    """Address to listen on. One that is not loopback needs `TOCSIN_API_KEYS`, a key for tokens (`TOCSIN_JWT_SECRET` or
    another), or `TOCSIN_ALLOW_ANONYMOUS=true`.
    """

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes any free one."""

    workers: int = Field(
        default_factory=lambda: min(4, _count_cores()),
        ge=1,
        le=64,
        json_schema_extra=_documented("the cores, at most 4"),
    )
    """Processes that serve. A client of any of them is heard by all."""

    redis_url: SecretStr | None = Field(
        default=None,
        json_schema_extra=_documented(
            "none: an embedded one", "`redis://`, `rediss://`, `unix://` or `redis+sentinel://`"
        ),
    )
    """Redis or Valkey, 6.2 or newer; `redis+sentinel://user:password@host:26379,host:26379/name` asks the Sentinels for
    the primary `name` (options `db`, `sentinel_username`, `sentinel_password`). Without it `tocsin serve` starts one of
    its own, with its data in `TOCSIN_DATA_DIR`.
    """

    redis_prefix: str = Field(
        default="tocsin",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        json_schema_extra=_documented(allowed="1 to 64 of `A-Z a-z 0-9 _ . -`"),
    )
    """First part of every key and channel name in Redis; services that share a Redis need different ones."""

    data_dir: Path = Field(default=Path("tocsin-data"), json_schema_extra=_documented(allowed="a folder"))
    """Folder of the embedded Redis; one service at a time can use it."""

    node: str = Field(
        default_factory=_default_node,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        json_schema_extra=_documented("the host name", "1 to 64 of `A-Z a-z 0-9 _ . -`"),
    )
    """Name of this node, whose workers `/metrics` shows together; nodes that share a Redis need different ones."""

    channels: Annotated[tuple[Annotated[ChannelRule, BeforeValidator(read_rule)], ...], BeforeValidator(read_rules)] = (
        Field(
            default=(ChannelRule(),),
            json_schema_extra=_documented(
                '`[{"channel": "*", "history": 1000, "ttl": 3600, "presence": true, '
                '"anonymous": ["publish", "subscribe", "history", "presence"]}]`',
                "JSON, or `@file` with it",
            ),
        )
    )
    """Rules for channels; the first whose pattern matches wins, a channel without one does not exist. `history`
    messages are kept (0: none, every message is ephemeral) until `ttl` seconds after the last publish; `anonymous`
    says what those without credentials may do. What a rule leaves out is as in the default.
    """

    ack: Annotated[AckLevel, BeforeValidator(read_ack)] = Field(
        default=WRITTEN, json_schema_extra=_documented("`written`", "`written`, `replicated:1` to `:9`, or `fsynced`")
    )
    """How safe a message is when its publisher is told that it is published: `written` in the memory of the primary,
    `replicated:N` also in that of N replicas, `fsynced` on the primary's disk (Redis 7.2, or `appendfsync always`).
    """

    ack_timeout: float = Field(default=2, ge=0.05, le=60)
    """Seconds in which `TOCSIN_ACK` must be reached. A message that does not reach it is answered with `unavailable`,
    though it is in the log; the same key tries again.
    """

    key_seconds: int = Field(default=120, ge=1, le=86_400)
    """Seconds for which a message's idempotency key is remembered."""

    max_connections: int = Field(default=50_000, ge=1, le=1_000_000)
    """WebSocket and event stream connections a worker takes; one more is answered with 503."""

    max_message: int = Field(default=65_536, ge=256, le=1_048_576)
    """Bytes of a message's data at most."""

    max_subscriptions: int = Field(default=128, ge=1, le=10_000)
    """Channels that one `tocsin.v1` socket hears at most."""

    max_connections_per_address: int = Field(default=0, ge=0, le=1_000_000)
    """Connections of one address (of IPv6: one network of 64 bits) at most, over all workers and nodes; 0: no limit.
    Workers tell each other once a second, of the thousand addresses that have most: a burst over several may pass.
    Behind a proxy that is not in `TOCSIN_TRUSTED_PROXIES` all clients have the proxy's address.
    """

    max_connections_per_user: int = Field(default=0, ge=0, le=1_000_000)
    """Connections of one user at most, likewise; 0: no limit."""

    connect_rate: float = Field(default=0, ge=0, le=100_000)
    """Upgrades a second of one address that a worker takes, with bursts of as many; 0: no limit."""

    publish_rate: float = Field(default=100, ge=0, le=1_000_000)
    """Messages a second of one client on one worker; 0: no limit. All connections of a user and what it publishes by
    HTTP count together, an anonymous connection by itself, anonymous HTTP by its address; API keys have no rates. Over
    it a `tocsin.v1` command is answered with `rate_limited`, a plain socket is read from more slowly.
    """

    publish_burst: int = Field(default=200, ge=1, le=1_000_000)
    """Messages that may come at once."""

    command_rate: float = Field(default=200, ge=0, le=1_000_000)
    """All other commands a second of one client on one worker, with bursts of twice as many; 0: no limit."""

    ping_seconds: float = Field(default=25, ge=1, le=300)
    """Seconds between two pings. A socket that stays silent for two of them is closed."""

    frame_rate: int = Field(default=1000, ge=0, le=1_000_000)
    """WebSocket frames a second that are read from one client, pings and fragments included, after twice as many at
    once; what it sends beyond waits on its side, and nothing of it is lost. 0: no limit. On the portable path messages
    are counted.
    """

    handshake_seconds: float = Field(default=10, ge=0.5, le=120)
    """Seconds in which the head of a request must have arrived, counted from the connection or from the first byte of a
    later request; its body has as many again. Late ones are answered with 408. Needs `tocsin serve`, or uvicorn's
    `--http app.sockets.handshake:HttpProtocol`.
    """

    stall_seconds: float = Field(default=30, ge=0.1, le=3600)
    """Seconds after which a client that reads nothing is cut off. It resumes when it returns."""

    high_mark: int = Field(default=1_048_576, ge=16_384, le=67_108_864)
    """Bytes that may wait for a client before it counts as slow and is caught up at its own pace. At least twice
    `TOCSIN_MAX_MESSAGE`.
    """

    drain_seconds: float = Field(default=10, ge=0, le=600)
    """Seconds over which clients are sent away when the service stops. The whole stop takes at most 17 s more."""

    api_keys: Annotated[tuple[ApiKey, ...], BeforeValidator(read_keys)] = Field(
        default=(), repr=False, json_schema_extra=_documented("none", "JSON")
    )
    """Keys of backends, by name: `{"shop": "a key"}` may do all; `{"shop": {"key": "sha256:...", "publish":
    ["order:*"], "subscribe": [], "history": [], "presence": [], "admin": false}}` may do what it lists (`admin`: list,
    clear, disconnect, revoke). A key has 16 or more characters, or is given as the SHA-256 of one (`printf %s KEY |
    sha256sum`). Setting this ends anonymous use unless `TOCSIN_ALLOW_ANONYMOUS=true`.
    """

    jwt_secret: SecretStr | None = Field(
        default=None, json_schema_extra=_documented("none", "32 or more bytes; `openssl rand -hex 32`")
    )
    """Secret of tokens (JWT) that your backend signs, or `tocsin token`: HMAC with the text as it stands. At most one
    of this, `TOCSIN_JWT_PUBLIC_KEY` and `TOCSIN_JWKS_URL`; any of them ends anonymous use as `TOCSIN_API_KEYS` does.
    """

    jwt_public_key: str | None = Field(
        default=None, repr=False, json_schema_extra=_documented("none", "PEM, `-----BEGIN PUBLIC KEY-----`")
    )
    """Public key of tokens that somebody else signs: RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519."""

    jwks_url: str | None = Field(
        default=None, json_schema_extra=_documented("none", "`https://`, or `http://` on loopback")
    )
    """Where an issuer publishes its keys (JWK Set), for example its `/.well-known/jwks.json`. Fetched when the first
    token comes, again every 10 minutes, and for a key that is not known at most every 30 seconds. Keys once fetched
    serve until a later fetch succeeds. Set `TOCSIN_JWT_AUDIENCE` too where the issuer has other services.
    """

    jwt_algorithms: Annotated[
        tuple[Annotated[str, BeforeValidator(read_algorithm)], ...], BeforeValidator(read_list)
    ] = Field(
        default=(),
        json_schema_extra=_documented(
            "`HS256` with a secret, else `RS256 ES256 EdDSA`",
            "with a secret `HS256` `HS384` `HS512`; else `RS256` `RS384` `RS512` `PS256` `PS384` `PS512` `ES256` "
            "`ES384` `ES512` `EdDSA`",
        ),
    )
    """Algorithms that tokens may be signed with, whatever they themselves say. HS384 and HS512 need a secret of 48 and
    64 bytes.
    """

    jwt_audience: str | None = Field(default=None, min_length=1, json_schema_extra=_documented("none: not looked at"))
    """What a token's `aud` must be or contain."""

    jwt_issuer: str | None = Field(default=None, min_length=1, json_schema_extra=_documented("none: not looked at"))
    """What a token's `iss` must be."""

    cookie: Annotated[str | None, BeforeValidator(read_cookie)] = Field(
        default=None, json_schema_extra=_documented("none: off", "a cookie's name")
    )
    """Cookie that may carry a token, for pages of the same site. Never believed for a write of REST, nor without an
    `Origin` that may connect (or `Sec-Fetch-Site: same-origin`).
    """

    origins: Annotated[tuple[Annotated[str, BeforeValidator(read_origin)], ...], BeforeValidator(read_list)] = Field(
        default=(), json_schema_extra=_documented("none", "`https://host`, separated by commas or spaces")
    )
    """Origins of web pages, besides the service's own, whose requests are not refused."""

    trusted_proxies: Annotated[
        tuple[Annotated[str, BeforeValidator(read_network)], ...], BeforeValidator(read_list)
    ] = Field(
        default=(), json_schema_extra=_documented("none", "addresses and networks, separated by commas or spaces")
    )
    """Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."""

    allow_anonymous: bool = False
    """Whether those without credentials may use the channels (as the rules' `anonymous` says). On a loopback address
    without any authentication configured they may in any case.
    """

    metrics_token: SecretStr | None = Field(
        default=None, json_schema_extra=_documented("none: open", "16 or more characters")
    )
    """What `/metrics` asks for as `Authorization: Bearer`."""

    docs: bool = True
    """Whether `/docs` and the API descriptions are served."""

    log_format: Literal["auto", "console", "json"] = "auto"
    """Style of the log on stderr; `auto` is `console` on a terminal and `json` otherwise."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged: this level and above."""

    @property
    def auth_configured(self) -> bool:
        """Whether there is any way to prove who one is."""
        return bool(self.api_keys) or self.token_rules is not None

    @property
    def token_rules(self) -> TokenRules | None:
        """What a token must be; None: there are no tokens."""
        if self.jwt_secret is None and self.jwt_public_key is None and self.jwks_url is None:
            return None
        default = ("HS256",) if self.jwt_secret is not None else ("RS256", "ES256", "EdDSA")
        return TokenRules(
            algorithms=self.jwt_algorithms or default,
            secret=None if self.jwt_secret is None else self.jwt_secret.get_secret_value(),
            public_key=self.jwt_public_key,
            jwks_url=self.jwks_url,
            audience=self.jwt_audience,
            issuer=self.jwt_issuer,
        )

    @property
    def redis_address(self) -> str | None:
        """Where Redis is, without user, password and options: for people."""
        if self.redis_url is None:
            return None
        parts = urlsplit(self.redis_url.get_secret_value())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @field_validator("*", mode="before")
    @classmethod
    def _raise_unreadable(cls, value: Any) -> Any:
        if isinstance(value, ValueError):  # what the source could not read; raised here to stand among all problems
            raise value
        return value

    @field_validator("redis_url", mode="before")
    @classmethod
    def _check_redis_url(cls, value: Any) -> Any:
        return read_redis_url(value)

    @field_validator("jwt_secret", "jwt_public_key", "jwks_url", mode="before")
    @classmethod
    def _check_token_key(cls, value: Any, info: ValidationInfo) -> Any:
        readers = {"jwt_secret": read_jwt_secret, "jwt_public_key": read_jwt_public_key, "jwks_url": read_jwks_url}
        return readers[info.field_name or ""](value)

    @field_validator("metrics_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and KEY.match(value.get_secret_value()) is None:
            raise ValueError("a token needs 16 to 512 printable ASCII characters without spaces")
        return value

    @model_validator(mode="after")
    def _check_windows(self) -> Settings:
        if self.ack_timeout >= self.key_seconds:
            raise ValueError(
                f"TOCSIN_ACK_TIMEOUT: got {self.ack_timeout:g}; allowed is less than TOCSIN_KEY_SECONDS "
                f"({self.key_seconds}), or a key has run out before its publish is answered"
            )
        return self

    @model_validator(mode="after")
    def _check_marks(self) -> Settings:
        if self.high_mark < 2 * self.max_message:
            raise ValueError(
                f"TOCSIN_HIGH_MARK: got {self.high_mark}; allowed is at least twice TOCSIN_MAX_MESSAGE "
                f"({2 * self.max_message})"
            )
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> Settings:
        rules = self.token_rules
        if rules is None:
            return self
        fields = {"jwt_secret": rules.secret, "jwt_public_key": rules.public_key, "jwks_url": rules.jwks_url}
        given = [PREFIX + name.upper() for name, value in fields.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are set; allowed is one of them")
        for name in rules.algorithms:
            if (name in SECRET_ALGORITHMS) is not (rules.secret is not None):
                kind = "a secret" if name in SECRET_ALGORITHMS else "a public key"
                raise ValueError(f"TOCSIN_JWT_ALGORITHMS: {name} needs {kind}, and {given[0]} is none")
        try:
            if rules.secret is not None:
                read_secret(rules.secret, rules.algorithms)
            elif rules.public_key is not None:
                read_public_key(rules.public_key, rules.algorithms)
        except ValueError as error:
            raise ValueError(f"{given[0]}: {error}") from None
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - ours takes its place
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, read by our own rules."""
        return init_settings, _Environment(settings_cls)


class _Environment(PydanticBaseSettingsSource):
    """`TOCSIN_*` as it stands; the class does the rest. Unknown names are handed on, for the class forbids them."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - the base class says so
        """One field's text; see the base class."""
        return os.environ.get(PREFIX + field_name.upper()) or None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for variable in sorted(os.environ):
            name = variable.removeprefix(PREFIX).lower()
            if not variable.startswith(PREFIX) or variable in OTHERS:
                continue
            base = name.removesuffix("_file")
            value = os.environ[variable]
            if name in Settings.model_fields:
                if value:  # compose files pass `${NAME:-}` on
                    found[name] = value
            elif base == name or base not in Settings.SECRETS:
                found[name] = value
            elif value:
                found[base] = self._read_secret(variable, base, taken=base in found)
        return found

    @staticmethod
    def _read_secret(variable: str, base: str, *, taken: bool) -> str | ValueError:
        if taken:
            return ValueError(f"{PREFIX}{base.upper()} and {variable} are both set; allowed is one of them")
        try:
            return read_text(Path(os.environ[variable]))
        except ValueError as error:
            return error


def describe_problems(error: ValidationError) -> list[str]:
    """One line a problem: the variable, what came, what is allowed. Secrets are not repeated."""
    return [_describe(dict(problem)) for problem in error.errors(include_url=False)]


def _describe(problem: Mapping[str, Any]) -> str:
    if not problem["loc"]:
        return str(problem["ctx"]["error"])
    name = str(problem["loc"][0])
    variable = PREFIX + name.upper()
    if problem["type"] == "extra_forbidden":
        known = [PREFIX + field.upper() for field in Settings.model_fields]
        known += [f"{PREFIX}{field.upper()}_FILE" for field in Settings.SECRETS]
        near = difflib.get_close_matches(variable, known, n=1, cutoff=0.6)
        return f"{variable} is no setting; " + (f"did you mean {near[0]}?" if near else "see docs/configuration.md")
    if problem["type"] == "value_error":
        which = f" rule {problem['loc'][1] + 1}:" if name == "channels" and len(problem["loc"]) > 1 else ""
        return f"{variable}:{which} {problem['ctx']['error']}"
    came = "a value that is not shown" if name in Settings.SECRETS else repr(problem["input"])[:80]
    return f"{variable}: got {came}; allowed is {describe_allowed(name).replace('`', '')}"


def describe_allowed(name: str) -> str:
    """The values that a field takes, in words."""
    field = Settings.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra["allowed"]:
        return str(extra["allowed"])
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if field.annotation is bool:
        return "`true` or `false`"
    low = next((mark.ge for mark in field.metadata if isinstance(mark, Ge)), None)
    high = next((mark.le for mark in field.metadata if isinstance(mark, Le)), None)
    if low is None or high is None:
        return "text"
    return f"a {'whole ' if field.annotation is int else ''}number from {low} to {high}"


def describe_settings() -> str:
    """The reference of all settings in Markdown: `docs/configuration.md`."""
    lines = [
        "<!-- Written by `python -m app.settings > docs/configuration.md`: change app/settings.py instead. -->",
        "",
        "# Configuration",
        "",
        "Settings come from environment variables. A variable `TOCSIN_...` that is not listed here ends the start with",
        "the nearest name; an empty one counts as not set. Secrets can come from a file instead:",
        ", ".join(f"`{PREFIX}{name.upper()}_FILE`" for name in sorted(Settings.SECRETS)) + ".",
        "",
        "| Name | Default | Allowed | What |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        default = str(extra["default"]) if isinstance(extra, dict) else ""
        if not default:
            value = field.default
            default = f"`{str(value).lower() if isinstance(value, bool) else value}`"
        what = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {describe_allowed(name)} | {what} |")
    lines += ["", "Not settings of the service, but read by the command line:", ""]
    lines += [f"- `{name}`: {what}" for name, what in OTHERS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(describe_settings(), end="")  # noqa: T201 - the document goes to standard output
