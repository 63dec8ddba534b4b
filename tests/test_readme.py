"""The README and the pages in docs keep to the code: their commands, and the make targets."""

import re
import shlex
from pathlib import Path

from mifuse_cli.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def command_lines() -> list[list[str]]:
    """Every `mifuse` command line in bash blocks of the pages."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    text = "\n".join(re.findall(r"```bash\n(.*?)```", pages, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("mifuse ")]


def test_every_command_has_an_example_with_options_that_exist():
    known = {c.name: c for c in app.registered_commands}
    shown = {line[1] for line in command_lines()}
    assert shown == set(known)
    for line in command_lines():
        callback = known[line[1]].callback
        assert callback is not None
        options = {"--" + name.replace("_", "-") for name in callback.__signature__.parameters}
        assert {word for word in line if word.startswith("--")} <= options, line


def test_make_has_exactly_the_promised_targets():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert phony[1].split() == [
        "demo",
        "check",
        "check-latest",
        "test",
        "lint",
        "bench",
        "reliability",
        "docs",
        "clean",
    ]
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert targets == set(phony[1].split())
