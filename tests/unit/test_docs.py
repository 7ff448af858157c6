"""What the documents say is so: links lead somewhere; settings, metrics, tests, reasons and codes exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.core.errors import Close, Code
from app.engine.metrics import NAMES
from app.settings import OTHERS, PREFIX, Settings

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PARTS = ["Context", "Options", "Decision", "Consequences"]
_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def read(path: Path) -> str:
    return path.read_text("utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def section(path: Path, title: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", read(path), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{name_of(path)} has no section {title}"
    return found[1]


def first_cells(text: str) -> list[str]:
    """The first cell of each row of the tables in a text, without their heads."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [row.split("|")[1].strip() for row in rows[2:]]


def anchors(path: Path) -> set[str]:
    """The anchors that a forge makes of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", _BLOCK.sub("", read(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_a_file_and_a_heading(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", _BLOCK.sub("", read(path)))
    for link in (markdown or html for markdown, html in links):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{link}: there is no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_settings_that_are_named_exist(path: Path) -> None:
    known = {PREFIX + field.upper() for field in Settings.model_fields} | set(OTHERS)
    known |= {f"{PREFIX}{field.upper()}_FILE" for field in Settings.SECRETS}
    assert set(re.findall(r"\bTOCSIN_[A-Z_]*[A-Z]", read(path))) <= known


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    told = {f"tocsin_{named.name}{'_total' if named.counter else ''}" for named in NAMES}
    told |= {"tocsin_worker_up", "tocsin_loop_lag_seconds"}
    documented = first_cells(section(ROOT / "docs" / "operations.md", "Metrics"))
    assert sorted(cell.strip("`") for cell in documented) == sorted(told)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_metrics_that_are_named_exist(path: Path) -> None:
    told = {f"tocsin_{named.name}{'_total' if named.counter else ''}" for named in NAMES}
    told |= {"tocsin_worker_up"} | {f"tocsin_loop_lag_seconds{part}" for part in ("", "_bucket", "_count", "_sum")}
    assert set(re.findall(r"\btocsin_[a-z_]*[a-z]", read(path))) <= told


def test_every_reason_not_to_be_ready_is_one_that_the_code_gives() -> None:
    """`…` stands for what differs; the rest of each sentence stands in the code as it is."""
    code = "\n".join(read(path) for path in sorted((ROOT / "app").rglob("*.py")))
    joined = re.sub(r"\"\s*\n\s*f?\"", "", code)  # a sentence over two lines
    cells = first_cells(section(ROOT / "docs" / "operations.md", "Readiness"))
    assert len(cells) >= 10
    for cell in cells:
        for part in cell.strip("`").split("…"):
            assert part.strip() in joined, f"nothing says: {cell}"


def test_tests_that_show_reliability_exist() -> None:
    written = {
        test for path in (ROOT / "tests").rglob("test_*.py") for test in re.findall(r"def (test_\w+)", read(path))
    }
    for path in DOCUMENTS:
        named = set(re.findall(r"`(test_\w+)`", read(path)))
        assert named <= written, f"{name_of(path)}: {sorted(named - written)}"


def test_every_decision_stands_in_the_index_and_has_its_parts() -> None:
    pages = sorted(DECISIONS.glob("[0-9]*.md"))
    linked = re.findall(r"\]\(([^)]+)\)", read(DECISIONS / "README.md"))
    assert linked == [page.name for page in pages]
    for page in pages:
        assert read(page).startswith(f"# {page.name[:4]} ")
        assert re.findall(r"^## (.+)$", read(page), re.MULTILINE) == PARTS, page.name


def test_codes_in_the_protocol_are_those_of_the_table() -> None:
    protocol = ROOT / "docs" / "protocol.md"
    closes = {int(cell) for cell in first_cells(section(protocol, "Closed by the service"))}
    assert closes <= {value for name, value in vars(Close).items() if name.isupper()}
    named = set(re.findall(r"`([a-z_]+)`", " ".join(first_cells(section(protocol, "Errors")))))
    assert named == {code.value for code in Code}
