"""The audit of `make check-latest`: what counts as found, as explained, and as not checked."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parent.parent / ".ci"


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", CI / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"name": "numpy", "version": "2.4", "vulns": []}
LEFT_OUT = {
    "name": "torch",
    "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.9)",
}
OURSELVES = {"name": "mifuse", "skip_reason": "distribution marked as editable"}
FAULTY = {
    "name": "jinja2",
    "version": "3.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["3.1"], "description": "x"}],
}


@pytest.mark.parametrize(
    ("packages", "known", "code", "words"),
    [
        ([CLEAN], set(), 0, "1 packages checked, 0 vulnerabilities"),
        ([CLEAN, OURSELVES], set(), 0, "1 packages checked, 0 vulnerabilities"),
        (
            [CLEAN, LEFT_OUT],
            set(),
            2,
            "1 packages NOT checked, of which the package index told nothing: torch",
        ),
        ([CLEAN, FAULTY], set(), 1, "jinja2 3.0: PYSEC-1, mended in 3.1"),
        ([LEFT_OUT, FAULTY], set(), 1, "jinja2 3.0: PYSEC-1, mended in 3.1"),
        ([CLEAN, FAULTY], {"PYSEC-1"}, 0, "0 vulnerabilities that are not explained"),
        ([CLEAN, FAULTY], {"CVE-2"}, 0, "0 vulnerabilities that are not explained"),
        ([CLEAN, FAULTY], {"CVE-3"}, 1, "PYSEC-1"),
        ([LEFT_OUT], set(), 2, "0 packages checked"),
        ([OURSELVES], set(), 2, "0 packages checked"),
        ([], set(), 2, "0 packages checked"),
    ],
)
def test_audit(audit, packages, known, code, words):
    told, found = audit.judged(packages, known)
    assert found == code and words in "\n".join(told)


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "words"),
    [
        (json.dumps({"dependencies": [CLEAN]}), "", 0, "1 packages checked"),
        (
            "",
            "ERROR: Failed to connect to the index",
            2,
            "NOT checked, pip-audit gave no report: ERROR: Failed",
        ),
        ("", "", 2, "NOT checked, pip-audit gave no report: exit code 1"),
    ],
)
def test_an_index_that_is_not_reached_is_told_from_a_vulnerability(
    audit, monkeypatch, capsys, stdout, stderr, code, words
):
    ended = subprocess.CompletedProcess([], 1, stdout, stderr)
    monkeypatch.setattr(audit.subprocess, "run", lambda *args, **options: ended)
    assert audit.main() == code
    assert words in capsys.readouterr().out


def test_every_explained_id_has_a_reason():
    for line in (CI / "known-vulnerabilities.txt").read_text().splitlines():
        assert not line.strip() or line.startswith("#") or len(line.split()) > 3
