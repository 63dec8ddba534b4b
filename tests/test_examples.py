"""The README's workflow and the examples of --help run as written, on smaller corpora than the demo's."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import mifuse

from mifuse_cli.cli import app
from mifuse_cli.demo.corpora import make_corpora
from mifuse_cli.demo.standin import StandIn

README = Path(__file__).resolve().parent.parent / "README.md"
ELSEWHERE = {"prepare", "compare", "compare-worlds", "merge"}
"""Their examples need corpora, hours or parts, and are run by tests of their own."""


def workflow() -> list[list[str]]:
    """The commands of the README, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("mifuse ")]


def examples() -> list[list[str]]:
    """Those of --help, in the order in which they need each other."""
    found = {}
    for command in app.registered_commands:
        assert command.epilog and command.epilog.startswith("Example: mifuse "), command.name
        if command.name not in ELSEWHERE:
            found[command.name] = shlex.split(command.epilog.removeprefix("Example: mifuse "))
    order = ["train-source", "query-lalm", "sample-source", "fuse", "train", "evaluate"]
    return [found.pop(name) for name in order] + list(found.values())


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("espeakng_loader") is None,
    reason="needs the package espeakng-loader to synthesise speech: pip install 'mifuse[demo]'",
)
@pytest.mark.parametrize("commands", [workflow, examples], ids=lambda one: one.__name__)
def test_as_written(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_corpora(Path("exp/demo"), takes=(1, 1))
    with StandIn() as standin:
        for arguments in commands():
            here = [word.replace("http://127.0.0.1:8322/v1", standin.base_url) for word in arguments]
            done = mifuse(*here, OPENAI_API_KEY="none-needed")
            assert done.exit_code == 0, (arguments, done.stderr)
