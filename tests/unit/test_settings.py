"""Settings: what an operator writes is understood, or refused in one line that helps and gives nothing away."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from pydantic import ValidationError

from app.brokers import WRITTEN, AckLevel
from app.brokers.address import read_sentinel_url
from app.core.identity import Identity
from app.core.messages import ChannelRule, Verb
from app.settings import Settings, describe_problems, describe_settings

KEY = "k3y-of-the-shop-0123456789"
SECRET = "s3cret-0123456789abcdef0123456789"
KEYS: dict[str, PrivateKeyTypes] = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "small": rsa.generate_private_key(65537, 1024),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "k256": ec.generate_private_key(ec.SECP256K1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "dsa": dsa.generate_private_key(1024),
}


def public_pem(name: str) -> str:
    return (
        KEYS[name]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def private_pem(name: str) -> str:
    return (
        KEYS[name]
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TOCSIN_"):
            monkeypatch.delenv(name)


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"TOCSIN_{name}", value)
    return Settings()


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        read(monkeypatch, **variables)
    return describe_problems(caught.value)


def test_without_any_variable_the_defaults_of_the_design_hold() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8000, None)
    assert settings.channels == (ChannelRule("*", 1000, 3600, True, frozenset(Verb)),)
    assert 1 <= settings.workers <= 4
    assert not settings.auth_configured


def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, PROT="1") == ["TOCSIN_PROT is no setting; did you mean TOCSIN_PORT?"]
    monkeypatch.delenv("TOCSIN_PROT")
    assert problems(monkeypatch, API_KEY_FILE="/x") == [
        "TOCSIN_API_KEY_FILE is no setting; did you mean TOCSIN_API_KEYS_FILE?"
    ]


def test_a_setting_that_is_no_secret_cannot_come_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, PORT_FILE="/x") == ["TOCSIN_PORT_FILE is no setting; did you mean TOCSIN_PORT?"]


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, PORT="", REDIS_URL="", API_KEYS_FILE="").port == 8000


def test_what_the_command_line_reads_is_no_unknown_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, API_KEY=KEY, URL="http://127.0.0.1:1").api_keys == ()


def test_every_problem_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = problems(monkeypatch, PORT="70000", DOCS="maybe", LOG_LEVEL="loud", PING_SECONDS="soon", NODE="a/b")
    assert lines == [
        "TOCSIN_PORT: got '70000'; allowed is a whole number from 0 to 65535",
        "TOCSIN_NODE: got 'a/b'; allowed is 1 to 64 of A-Z a-z 0-9 _ . -",
        "TOCSIN_PING_SECONDS: got 'soon'; allowed is a number from 1 to 300",
        "TOCSIN_DOCS: got 'maybe'; allowed is true or false",
        "TOCSIN_LOG_LEVEL: got 'loud'; allowed is debug, info, warning, error",
    ]


def test_an_answer_comes_before_its_key_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = problems(monkeypatch, ACK_TIMEOUT="30", KEY_SECONDS="30")
    assert line.startswith("TOCSIN_ACK_TIMEOUT: got 30; allowed is less than TOCSIN_KEY_SECONDS (30)")


def test_the_high_mark_has_room_for_two_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = problems(monkeypatch, HIGH_MARK="65536")
    assert line == "TOCSIN_HIGH_MARK: got 65536; allowed is at least twice TOCSIN_MAX_MESSAGE (131072)"


def test_channel_rules_come_as_json_or_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = '[{"channel": "typing:*", "history": 0, "anonymous": ["subscribe"]}, {"channel": "user:*"}]'
    expected = (ChannelRule("typing:*", history=0, anonymous=frozenset({Verb.SUBSCRIBE})), ChannelRule("user:*"))
    assert read(monkeypatch, CHANNELS=text).channels == expected
    path = tmp_path / "channels.json"
    path.write_text(text + "\n")
    assert read(monkeypatch, CHANNELS=f"@{path}").channels == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[{", "this is not JSON"),
        ("[]", "allowed is a JSON list of rules"),
        ('{"channel": "*"}', "allowed is a JSON list of rules"),
        ("@/nowhere.json", "cannot read /nowhere.json: No such file or directory"),
        ('[{"history": 1}]', "rule 1: `channel` field required"),
        ('[{"channel": "*"}, {"channel": "x", "tll": 5}]', "rule 2: `tll` is not known here"),
        ('[{"channel": "x", "history": -1}]', "rule 1: `history` input should be greater than or equal to 0"),
        ('[{"channel": "x", "ttl": "5"}]', "rule 1: `ttl` input should be a valid integer"),
        ('[{"channel": "a b"}]', "rule 1: `a b` is no channel pattern"),
        ('[{"channel": "x", "anonymous": ["fly"]}]', "rule 1: `anonymous.0` input should be 'publish'"),
    ],
)
def test_a_bad_channel_rule_is_named(monkeypatch: pytest.MonkeyPatch, text: str, line: str) -> None:
    [found] = problems(monkeypatch, CHANNELS=text)
    assert found.startswith(f"TOCSIN_CHANNELS: {line}")


def test_a_bare_key_may_do_all_and_only_its_digest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, API_KEYS=f'{{"shop": "{KEY}"}}')
    [key] = settings.api_keys
    assert key.name == "shop"
    assert key.digest == hashlib.sha256(KEY.encode()).digest()
    assert key.admin
    assert all(Identity.of_key(key).may(verb, "any", ChannelRule()) for verb in Verb)
    assert settings.auth_configured
    assert KEY not in repr(settings)


def test_a_key_with_a_scope_may_do_what_it_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(KEY.encode())
    text = f'{{"shop": {{"key": "sha256:{digest.hexdigest()}", "publish": ["order:*"]}}}}'
    [key] = read(monkeypatch, API_KEYS=text).api_keys
    identity = Identity.of_key(key)
    assert key.digest == digest.digest()
    assert identity.may(Verb.PUBLISH, "order:7", ChannelRule())
    assert not identity.may(Verb.PUBLISH, "user:7", ChannelRule())
    assert not identity.may(Verb.HISTORY, "order:7", ChannelRule())
    assert not identity.admin


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "s3cret-short"}',
        '{"a": "s3cret with spaces in it"}',
        '{"a": "sha256:s3cret"}',
        '{"s3cret/0123456789abcdef": "backend-0123456789"}',
        '{"a": {"key": "s3cret-0123456789", "publish": "order:*"}}',
        '{"a": {"key": "s3cret-0123456789", "may": []}}',
        '{"a": {"key": ["s3cret-0123456789"]}}',
        '{"a": "s3cret-0123456789", "b": "s3cret-0123456789"}',
        '["s3cret-0123456789"]',
        '"s3cret-0123456789',
    ],
)
def test_a_bad_key_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(monkeypatch, API_KEYS=text)
    [line] = describe_problems(caught.value)
    assert line.startswith("TOCSIN_API_KEYS: ")
    assert "s3cret" not in line
    assert "s3cret" not in str(caught.value)  # what a traceback would show


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    token = read(monkeypatch, METRICS_TOKEN_FILE=str(path)).metrics_token
    assert token is not None
    assert token.get_secret_value() == "0123456789abcdef"


def test_a_secret_file_that_cannot_be_read_or_competes_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, METRICS_TOKEN_FILE="/nowhere") == [
        "TOCSIN_METRICS_TOKEN: cannot read /nowhere: No such file or directory"
    ]
    assert problems(monkeypatch, METRICS_TOKEN="0123456789abcdef") == [
        "TOCSIN_METRICS_TOKEN: TOCSIN_METRICS_TOKEN and TOCSIN_METRICS_TOKEN_FILE are both set; allowed is one of them"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "rediss://u:p@h:6380/3",
        "unix:///run/redis.sock",
        "redis://[::1]:6379/0",
        "redis+sentinel://h/main",
        "redis+sentinel://u:p@h:26379,[::1]:26380/main?db=3&sentinel_username=s&sentinel_password=t",
    ],
)
def test_redis_addresses_of_these_kinds_are_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = read(monkeypatch, REDIS_URL=url)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+cluster://u:s3cret@h", "the scheme `redis+cluster` is not known"),
        ("http://u:s3cret@h", "the scheme `http` is not known"),
        ("u:s3cret@h:6379", "the scheme `u` is not known"),
        ("redis://u:s3cret@h:x", "the host is missing or the port is not 1 to 65535"),
        ("redis:///s3cret", "the host is missing"),
        ("redis://h/s3cret", "the path is the number of the database"),
        ("unix://s3cret", "an absolute path is missing"),
        ("redis+sentinel://u:s3cret@h:1,h:x/main", "a Sentinel's host is missing or its port is not 1 to 65535"),
        ("redis+sentinel://u:s3cret@/main", "a Sentinel's host is missing"),
        ("redis+sentinel://u:s3cret@h:1", "the path is the name that the Sentinels give the primary"),
        ("redis+sentinel://u:s3cret@h:1/a/b", "the path is the name"),
        ("redis+sentinel://h/main?pass=s3cret", "the options are db, sentinel_password, sentinel_username"),
        ("redis+sentinel://h/main?db=s3cret", "`db` is the number of the database"),
    ],
)
def test_other_redis_addresses_are_refused_without_repeating_them(
    monkeypatch: pytest.MonkeyPatch, url: str, reason: str
) -> None:
    [line] = problems(monkeypatch, REDIS_URL=url)
    assert line.startswith(f"TOCSIN_REDIS_URL: {reason}")
    assert line.endswith(
        "allowed are redis://host:6379/0, rediss://host:6379/0 (TLS), unix:///path/to/redis.sock and "
        "redis+sentinel://host:26379,host:26379/name"
    )
    assert "s3cret" not in line


def test_redis_is_shown_to_people_without_user_password_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, REDIS_URL="redis://u:p@h:1/2?x=1").redis_address == "redis://h:1/2"
    assert "u:p" not in repr(Settings())


def test_sentinels_and_the_name_of_the_primary_are_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, REDIS_URL="redis+sentinel://u:p@h:1,i/main?sentinel_password=s3cret")
    assert settings.redis_address == "redis+sentinel://h:1,i/main"
    assert "s3cret" not in repr(read_sentinel_url("redis+sentinel://u:s3cret@h/main?sentinel_password=s3cret"))


def test_acknowledgement_levels_are_read_and_written_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().ack == WRITTEN
    for text, level in (("written", WRITTEN), ("replicated:2", AckLevel(2)), ("fsynced", AckLevel(fsynced=True))):
        assert read(monkeypatch, ACK=text).ack == level
        assert str(level) == text
    for text in ("replicated", "replicated:0", "replicated:10", "Written", "fsynced:1"):
        [line] = problems(monkeypatch, ACK=text)
        assert line == (
            f"TOCSIN_ACK: `{text}` is no level; allowed are written, replicated:1 to replicated:9, and fsynced"
        )


def test_origins_are_kept_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, ORIGINS="https://App.Example:443, http://localhost:3000 http://[::1]:80")
    assert settings.origins == ("https://app.example", "http://localhost:3000", "http://[::1]")
    for bad in ("null", "*", "https://a/x", "https://a/", "a.example", "ftp://a"):
        [line] = problems(monkeypatch, ORIGINS=bad)
        assert line.startswith(f"TOCSIN_ORIGINS: `{bad}` is no origin")


def test_trusted_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, TRUSTED_PROXIES="10.0.0.0/8, ::1").trusted_proxies == ("10.0.0.0/8", "::1")
    assert problems(monkeypatch, TRUSTED_PROXIES="proxy.example") == [
        "TOCSIN_TRUSTED_PROXIES: `proxy.example` is neither an IP address nor a network such as 10.0.0.0/8"
    ]


def test_a_secret_for_tokens_allows_hs256_and_counts_as_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, JWT_SECRET=SECRET, JWT_AUDIENCE="tocsin", JWT_ISSUER="https://id.example")
    assert settings.auth_configured
    rules = settings.token_rules
    assert rules is not None
    assert (rules.algorithms, rules.secret) == (("HS256",), SECRET)
    assert (rules.audience, rules.issuer) == ("tocsin", "https://id.example")
    assert "s3cret" not in repr(settings) + repr(rules)


@pytest.mark.parametrize("name", ["rsa", "p256", "ed25519"])
def test_a_public_key_for_tokens_comes_from_a_file_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "key.pem"
    path.write_text(public_pem(name))
    rules = read(monkeypatch, JWT_PUBLIC_KEY_FILE=str(path)).token_rules
    assert rules is not None
    assert rules.algorithms == ("RS256", "ES256", "EdDSA")
    assert (rules.public_key or "").startswith("-----BEGIN PUBLIC KEY-----")


@pytest.mark.parametrize("url", ["https://id.example/jwks.json", "http://127.0.0.1:8080/jwks", "http://localhost/"])
def test_key_sets_come_from_these_addresses(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = read(monkeypatch, JWKS_URL=url)
    assert settings.auth_configured
    assert settings.token_rules is not None
    assert settings.token_rules.jwks_url == url


@pytest.mark.parametrize(
    "url",
    [
        *("http://id.example/", "ftp://id.example/", "file:///etc/passwd", "https://", "id.example/jwks"),
        *("https://u:s3cret@h/", "https://h:x/", "http://localhost.evil.example/", "https://h/a b", "https://[h/"),
    ],
)
def test_key_sets_come_from_no_other_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    [line] = problems(monkeypatch, JWKS_URL=url)
    assert line == "TOCSIN_JWKS_URL: allowed is https://host/path without a password (http:// on loopback only)"


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({"JWT_SECRET": "s3cret"}, "TOCSIN_JWT_SECRET: a secret needs 32 bytes or more"),
        ({"JWT_SECRET": public_pem("rsa")}, "TOCSIN_JWT_SECRET: this is a key of another kind"),
        ({"JWT_SECRET": private_pem("p256")}, "TOCSIN_JWT_SECRET: this is a key of another kind"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS512"}, "TOCSIN_JWT_SECRET: a secret needs 64 bytes or more"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS256,RS256"}, "TOCSIN_JWT_ALGORITHMS: RS256 needs a public key"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "none"}, "TOCSIN_JWT_ALGORITHMS: `none` is no algorithm"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "hs256"}, "TOCSIN_JWT_ALGORITHMS: `hs256` is no algorithm"),
        ({"JWT_SECRET": SECRET, "JWKS_URL": "https://h/"}, "TOCSIN_JWT_SECRET and TOCSIN_JWKS_URL are set"),
        ({"JWT_PUBLIC_KEY": SECRET}, "TOCSIN_JWT_PUBLIC_KEY: this is no public key in PEM"),
        ({"JWT_PUBLIC_KEY": private_pem("rsa")}, "TOCSIN_JWT_PUBLIC_KEY: this is a private key"),
        ({"JWT_PUBLIC_KEY": private_pem("ed25519")}, "TOCSIN_JWT_PUBLIC_KEY: this is a private key"),
        ({"JWT_PUBLIC_KEY": public_pem("small")}, "TOCSIN_JWT_PUBLIC_KEY: this key cannot be used"),
        ({"JWT_PUBLIC_KEY": public_pem("k256")}, "TOCSIN_JWT_PUBLIC_KEY: this key cannot be used"),
        ({"JWT_PUBLIC_KEY": public_pem("dsa")}, "TOCSIN_JWT_PUBLIC_KEY: this key cannot be used"),
        ({"JWT_PUBLIC_KEY": public_pem("p384")}, "TOCSIN_JWT_PUBLIC_KEY: this key is for ES384, of which"),
        (
            {"JWT_PUBLIC_KEY": public_pem("rsa"), "JWT_ALGORITHMS": "HS256"},
            "TOCSIN_JWT_ALGORITHMS: HS256 needs a secret, and TOCSIN_JWT_PUBLIC_KEY is none",
        ),
        ({"COOKIE": "a b"}, "TOCSIN_COOKIE: a cookie's name has"),
        ({"COOKIE": "a=b;"}, "TOCSIN_COOKIE: a cookie's name has"),
    ],
)
def test_keys_for_tokens_that_cannot_work_end_the_start(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], start: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        read(monkeypatch, **variables)
    [line] = describe_problems(caught.value)
    assert line.startswith(start)
    assert "\n" not in line
    for text in (line, str(caught.value)):
        assert "s3cret" not in text
        assert "PRIVATE" not in text
        assert "MII" not in text


def test_a_cookie_is_off_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().cookie is None
    assert read(monkeypatch, COOKIE="__Host-tocsin").cookie == "__Host-tocsin"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_reference_is_up_to_date() -> None:
    """`python -m app.settings > docs/configuration.md` writes it."""
    committed = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert committed.read_text() == describe_settings()
