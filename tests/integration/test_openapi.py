"""The documented interface is the real one: requests made from /openapi.json, good and bad, are answered as it says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.documents import DOCS
from tests.stage.redis import RedisServer
from tests.stage.service import Service

KEY = "k" * 20
EXAMPLES = 80
"""Requests for each operation and kind at most; one that takes no argument gets one."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
BEYOND = {409, 410}
"""What the schema cannot foresee: a key used before, a position of another channel."""


@pytest.fixture(scope="module")
def documented(redis_server: RedisServer) -> Iterator[Service]:
    """A service that asks for a key."""
    with Service(redis_server.url, redis_prefix="documented", api_keys=json.dumps({"all": KEY})) as running:
        yield running


@dataclass(slots=True)
class Trial:
    """Requests of one kind, and what came of them: statuses by operation, and what the document does not say."""

    service: Service
    session: requests.Session
    mode: GenerationMode
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def try_out(self, operation: APIOperation[Any, Any, Any, Any]) -> None:
        """Make requests to one operation; the same ones each time."""

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=self.mode))
        def ask(case: Any) -> None:
            self._ask(case)

        ask()

    def _ask(self, case: Any) -> None:
        if self.mode.is_positive and isinstance(case.body, dict) and case.body.get("key") is not None:
            case.headers.pop("idempotency-key", None)  # two that differ are refused, which no schema can say
        answer = case.call(base_url=self.service.url, session=self.session)
        label, status = case.operation.label, answer.status_code
        self.statuses.setdefault(label, Counter())[status] += 1
        said = [] if self.mode.is_negative or status < 400 or status in BEYOND else ["a good request was refused"]
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as group:
            said += [str(failure) for failure in group.exceptions]
        for sentence in said:
            told = f"{case.as_curl_command()}\n{status} {answer.text[:300]}"
            self.wrong.setdefault(f"{label} {status}: {sentence}", told)


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """Connections that are kept, with the key."""
    with requests.Session() as session:
        session.headers["x-api-key"] = KEY
        yield session


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: str(mode.value))
def test_requests_are_answered_as_documented(
    documented: Service, session: requests.Session, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"{documented.url}/openapi.json").exclude(path="/sse")  # it never ends
    schema.config.generation.update(with_security_parameters=False)  # the session has the key
    trial = Trial(documented, session, mode)
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        try:
            trial.try_out(found.ok())
        except Unsatisfiable:  # it takes nothing that could be wrong
            assert mode.is_negative
    assert trial.wrong == {}, "\n\n".join(f"{what}\n{how}" for what, how in trial.wrong.items())
    assert sum(sum(counts.values()) for counts in trial.statuses.values()) > 300
    if mode.is_positive:
        taken = {label for label, counts in trial.statuses.items() if any(status < 300 for status in counts)}
        assert taken == set(trial.statuses)


def test_without_the_key_all_that_needs_one_is_refused_as_documented(documented: Service) -> None:
    paths = documented.get("/openapi.json").json()["paths"]
    with requests.Session() as session:
        for path, methods in paths.items():
            closed = path.startswith("/api/") or path == "/sse"
            for method, described in methods.items():
                address = documented.url + path.replace("{channel}", "room") + "?channel=room" * (path == "/sse")
                answer = session.request(method, address, json={"data": 1, "messages": []})
                assert (answer.status_code == 401) == closed, path
                assert "401" in described["responses"] or not closed, path


def test_the_document_of_sockets_is_served_as_it_is_committed_but_without_its_examples(documented: Service) -> None:
    committed = json.loads((DOCS / "asyncapi.json").read_text("utf-8"))
    for message in committed["components"]["messages"].values():
        message.pop("examples", None)
    assert documented.get("/asyncapi.json").json() == committed
