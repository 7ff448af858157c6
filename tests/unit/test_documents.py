"""The committed documents are what the models say, and the golden frames are what the documents say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.documents import DOCS, make, named, text_of

CHECKER = Path(__file__).parents[1] / "asyncapi"


@pytest.fixture(scope="module")
def made() -> dict[str, dict[str, Any]]:
    return make()


@pytest.mark.parametrize("name", ["openapi.json", "asyncapi.json"])
def test_the_committed_document_is_made_from_the_models(made: dict[str, dict[str, Any]], name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == text_of(made[name]), "run python -m tests.documents"


def test_rest_says_how_one_shows_who_one_is(made: dict[str, dict[str, Any]]) -> None:
    document = made["openapi.json"]
    assert set(document["components"]["securitySchemes"]) == {"apiKey", "bearer"}
    for path, operations in document["paths"].items():
        guarded = path.startswith("/api/") or path == "/sse"
        assert all(("security" in operation) == guarded for operation in operations.values()), path


def test_every_golden_frame_is_as_its_schema_says(made: dict[str, dict[str, Any]]) -> None:
    document = made["asyncapi.json"]
    seen = set()
    for name, row in named():
        schema = {**document, "$ref": f"#/components/schemas/{name}"}
        jsonschema.Draft202012Validator(schema).validate(json.loads(row["frame"]))
        seen.add(name)
    assert seen == set(document["components"]["messages"])


def test_a_frame_with_a_field_of_another_kind_is_not(made: dict[str, dict[str, Any]]) -> None:
    wrong = {"Gap": {"position": 5}, "Subscribe": {"history": 1001}, "Message": {"at": "now"}}
    for name, row in named():
        if name in wrong:
            schema = {**made["asyncapi.json"], "$ref": f"#/components/schemas/{name}"}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.Draft202012Validator(schema).validate(json.loads(row["frame"]) | wrong[name])


def test_asyncapi_takes_the_document_for_one() -> None:
    if shutil.which("node") is None or not (CHECKER / "node_modules").exists():
        if os.environ.get("CI"):
            pytest.fail("npm ci --prefix tests/asyncapi has not been run")
        pytest.skip("npm ci --prefix tests/asyncapi brings the parser")
    command = ["node", str(CHECKER / "check.mjs"), str(DOCS / "asyncapi.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "")
