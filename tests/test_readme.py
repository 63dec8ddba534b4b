"""The README keeps to the code: its schema table, its commands, its make targets."""

import re
import shlex
from pathlib import Path

from mifuse_cli.artifacts import KINDS
from mifuse_cli.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def schema_table() -> str:
    """The table of artifacts, from the schemas."""
    lines = ["| kind | dataset | axes | type | holds |", "|---|---|---|---|---|"]
    for kind, schema in KINDS.items():
        for name, spec in schema.columns().items():
            row = (f"`{kind}`", f"`{name}`", " ".join(spec["axes"]), spec["dtype"], spec["holds"])
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def command_lines() -> list[list[str]]:
    """Every `mifuse` command line in the README's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("mifuse ")]


def test_schema_table_is_the_code_s():
    assert schema_table() in README


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
    assert phony[1].split() == ["demo", "check", "test", "lint", "bench", "clean"]
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert targets == {"demo", "check", "test", "lint", "bench", "clean"}
