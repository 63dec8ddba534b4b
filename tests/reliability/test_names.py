"""Names that would do harm if a shell, an option parser or a list took them for more than names."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_recipes import URL, Stub

NAMES = {
    "space": "a b",
    "quote": "it's",
    "double": 'say "x"',
    "newline": "a\nb",
    "command": "$(touch ran)",
    "backtick": "`touch ran`",
    "end": "; touch ran #",
    "both": "'; touch ran; '",
    "variable": "$HOME",
    "star": "*",
    "brace": "{a,b}",
    "backslash": "a\\nb",
    "percent": "%s%n",
    "script": "zorn-\u6012\u308a-\u0633",
    "dash": "--force",
    "short": "-rf",
    "tilde": "~",
}
QUICK = ("space", "command", "both")
REFUSED = (2, 3)


class Watched(Stub):
    """A mifuse that also notes its arguments one by one."""

    TEXT = Stub.TEXT.replace('echo "mifuse $*"', 'printf "%s\\0" "$@" >> "$CALLS.exact"; echo "mifuse $*"')

    def transfer(self, **options: str) -> subprocess.CompletedProcess[str]:
        given = {"source": "corpora/a", "target": "corpora/b", "lalm-url": URL, "lalm-model": "m", **options}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        return self.run(command=["bash", str(self.root / "recipes/run_transfer.sh"), *words])

    @property
    def arguments(self) -> list[str]:
        exact = Path(f"{self.calls_file}.exact")
        return exact.read_text().split("\0") if exact.exists() else []


@pytest.fixture
def watched(tmp_path, monkeypatch):
    return Watched(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in NAMES]
)
@pytest.mark.parametrize("option", ["lalm-model", "source-name", "expdir", "source", "conf"])
def test_a_name_in_a_recipe_is_a_name(watched, option, name):
    """It is handed on as it is, or refused; no part of it is run, and nothing is made elsewhere."""
    value = NAMES[name]
    if option in ("source", "conf"):
        (watched.root / ("corpora/a" if option == "source" else "recipes/conf/free")).rename(
            watched.root / value
        )
    done = watched.transfer(**{option: value})
    assert not list(watched.root.rglob("ran")), done.stderr
    known = {"recipes", "bin", "corpora", "calls", "calls.exact", "exp", value}
    assert {path.name for path in watched.root.iterdir()} <= known
    if done.returncode:
        assert done.returncode in REFUSED and done.stderr.strip()
    elif option != "conf":
        assert any(value in argument for argument in watched.arguments)
