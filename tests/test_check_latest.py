"""The audit of `make check-latest`: what counts as found, as explained, and as not looked up."""

import importlib.util
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parent.parent / ".ci"


@pytest.fixture(scope="module")
def judged():
    spec = importlib.util.spec_from_file_location("audit", CI / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.judged


CLEAN = {"name": "numpy", "version": "2.4", "vulns": []}
LEFT_OUT = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
FAULTY = {
    "name": "jinja2",
    "version": "3.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["3.1"], "description": "x"}],
}


@pytest.mark.parametrize(
    ("packages", "known", "good", "words"),
    [
        ([CLEAN], set(), True, "1 packages audited, 0 vulnerabilities"),
        ([CLEAN, LEFT_OUT], set(), True, "not audited: torch"),
        ([CLEAN, FAULTY], set(), False, "jinja2 3.0: PYSEC-1, mended in 3.1"),
        ([CLEAN, FAULTY], {"PYSEC-1"}, True, "0 vulnerabilities that are not explained"),
        ([CLEAN, FAULTY], {"CVE-2"}, True, "0 vulnerabilities that are not explained"),
        ([CLEAN, FAULTY], {"CVE-3"}, False, "PYSEC-1"),
        ([LEFT_OUT], set(), False, "not one package could be looked up"),
        ([], set(), False, "not one package could be looked up"),
    ],
)
def test_audit(judged, packages, known, good, words):
    told, found = judged(packages, known)
    assert found is good and words in "\n".join(told)


def test_every_explained_id_has_a_reason():
    for line in (CI / "known-vulnerabilities.txt").read_text().splitlines():
        assert not line.strip() or line.startswith("#") or len(line.split()) > 3
