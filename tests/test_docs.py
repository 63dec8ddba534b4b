"""Documents keep to the code and to each other: the generated page, links, headings, names of systems."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mifuse_cli.artifacts import KINDS, Header
from mifuse_cli.artifacts.__main__ import ATTRIBUTES, AXES, document
from mifuse_cli.cli import app
from mifuse_cli.steps.compare.systems import SYSTEMS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.md")])
RENEW = "python -m mifuse_cli.artifacts > docs/artifacts.md"


def prose(page: Path) -> str:
    """The page without its code blocks and inline code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors that the page's headings have on GitHub."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = (
        re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    )
    return {title.replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Relative links of the page to files or headings that do not exist."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_the_page_of_artifacts_is_what_the_code_generates():
    written = (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")
    assert written == document(), f"docs/artifacts.md is out of date; renew it with: {RENEW}"
    assert RENEW in written


def test_every_axis_and_attribute_is_explained():
    used = {axis for schema in KINDS.values() for spec in schema.columns().values() for axis in spec["axes"]}
    assert used == AXES.keys()
    assert {"kind", "sha256", *Header(("a", "b")).attributes()} == ATTRIBUTES.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, of two\n[one](#a-heading-of-two) [two](#nowhere) [three](missing.md) `[four](no.md)`\n"
        "[five](page.md#a-heading-of-two) [six](https://example.org/x)\n"
    )
    assert broken_links(page) == ["#nowhere", "missing.md"]


def test_the_systems_in_the_tables_are_those_of_compare():
    text = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| system \|.*\n\|[- |]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = {row.split("|")[1].strip() for table in tables for row in table.splitlines()}
    # Those that were added after the benchmark was run are named instead, and those that there are no more.
    added, gone = (
        set(re.findall(r"`([^`]+)`", text.partition(words)[2].partition(".\n")[0]))
        for words in ("Methods added since are not in it:", "and systems no more:")
    )
    assert gone <= rows and not gone & SYSTEMS.keys()
    assert rows - gone | added == SYSTEMS.keys() and not rows & added


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
    reason="needs what builds the site: pip install 'mifuse[docs]'",
)
def test_the_site_is_built_without_a_warning_and_has_every_command(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (tmp_path / "docs" / "commands").glob("*.html")}
    assert pages == {"index", *(command.name for command in app.registered_commands)}
