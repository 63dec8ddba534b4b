"""What stops query-lalm before a clip is decoded, what it never writes over, and which error it ends with."""

import re
from pathlib import Path

import h5py
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from querying import GOOD, Query
from scripted import completion

from mifuse_cli import lalm
from mifuse_cli.artifacts import Lalm
from mifuse_cli.errors import RemoteError, UsageError
from mifuse_cli.lalm import journal_path
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.service.run_state import RunState
from mifuse_cli.lalm.service.service_options import check_address, host_of

ADDRESSES = {
    "http://localhost:8000/v1": "localhost:8000",
    "HTTPS://api.openai.com/v1": "api.openai.com",
    "http://[::1]:80/v1": "[::1]:80",
    "http://joe:s3cr%2Fet@host:81/v1": "host:81",
    "http://joe:s3@cret@host/v1": "host",
    "http://b\u00fccher.example/v1?version=1": "b\u00fccher.example",
}
BROKEN = [
    "", "host", "host:80/v1", "ftp://host/v1", "http://", "http:///v1", "https:host/v1", "http://host:port/v1",
    "http://joe:s3cr/et@host/v1", "http://joe:12/et@host", "http://s3cr/et@host", "http://joe:s3cr?et@host",
    "http://joe:s3cr#et@host", "http://joe:s3cr]et@host", "http://[host/v1", "http://ho st/v1", "http://host/v1\n",
]  # fmt: skip


class TestAddress:
    @pytest.mark.parametrize("address", ADDRESSES)
    def test_good(self, address):
        check_address(address)
        assert host_of(address) == ADDRESSES[address]

    @pytest.mark.parametrize("address", BROKEN)
    def test_broken(self, address, tmp_path, corpora):
        with pytest.raises(UsageError, match="no address of a service"):
            check_address(address)
        if address:
            refused(Query(corpora.target, tmp_path / "l.h5")(address), 2, "--base-url", "https://api.openai")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("address", "told"),
        [
            (
                "127.0.0.1:8322/v1",
                "'127.0.0.1:8322/v1' lacks http:// (http://127.0.0.1:8322/v1) and is no address",
            ),
            ("localhost:8322/v1", "'localhost:8322/v1' lacks http://"),
            ("api.example.com/v1", "'api.example.com/v1' lacks https://"),
            ("ftp://host/v1", ": 'ftp://host/v1' is no address"),
            ("sk-proj-9f_a", "OPENAI_BASE_URL: is no address"),
            ("joe:s3cret@host/v1", "OPENAI_BASE_URL: is no address"),
            ("joe:s3cret", "OPENAI_BASE_URL: is no address"),
            ("host/v1?key=s3cret", "OPENAI_BASE_URL: is no address"),
        ],
    )
    def test_what_lacks_is_told_unless_it_may_be_secret(self, address, told):
        with pytest.raises(UsageError, match=re.escape(told)):
            check_address(address)

    @given(st.text("/?#@:[ \nabc19%", min_size=1), st.text("xyz/:", min_size=1))
    def test_a_password_is_kept_secret_and_never_taken_for_the_host(self, password, user):
        try:
            check_address(f"http://{user}:QQ{password}@host.example/v1")
        except UsageError as error:
            assert "QQ" not in str(error) and error.__context__ is None
        else:
            assert host_of(f"http://{user}:QQ{password}@host.example/v1") == "host.example"


@pytest.fixture
def query(corpora, tmp_path):
    return Query(corpora.target, tmp_path / "l.h5")


@pytest.fixture
def good(play):
    """A service that answers well."""
    return play((200, completion(GOOD)))


class TestKey:
    def test_is_missed_before_clips_are_decoded(self, query, good, tmp_path):
        refused(query(good.url, key=None), 3, "there is no API key", "OPENAI_API_KEY", "--api-key-file")
        refused(query(good.url, "--api-key-file", tmp_path / "none"), 3, "none: cannot be read")
        if Path("/dev/zero").exists():
            refused(
                query(good.url, "--api-key-file", "/dev/zero"),
                3,
                "/dev/zero: cannot be read",
                "holds more than",
            )
        assert list(tmp_path.iterdir()) == []

    def test_is_not_needed_where_nothing_is_asked(self, query, good):
        query.found(good.url)
        query.out.unlink()
        assert query.found(good.url, key=None)["asked"] == 0
        refused(query(good.url, key=None, n_samples=3), 3, "there is no API key")
        assert query.found(good.url, "--reparse", key=None, n_samples=3)["asked"] == 0


class TestPlace:
    @pytest.mark.parametrize(
        ("out", "words"), [("file/l.h5", "file: cannot be created"), ("there", "is a directory")]
    )
    def test_that_cannot_be_written(self, query, good, tmp_path, out, words):
        (tmp_path / "file").touch()
        (tmp_path / "there").mkdir()
        query.out = tmp_path / out
        refused(query(good.url), 3, words, "Choose another --out")
        assert good.requests == []

    def test_another_kind_is_never_replaced(self, query, good, copy):
        query.out = copy.source
        before = query.out.read_bytes()
        for flags in ([], ["--update"]):
            refused(
                query(good.url, *flags), 4, "is of kind 'source', expected 'lalm'", "Choose another --out"
            )
        refused(query(good.url, "--force"), 3, "is of kind 'source', and not an artifact of kind 'lalm'")
        assert good.requests == [] and query.out.read_bytes() == before

    def test_an_artifact_that_does_not_say_what_was_asked(self, query, good):
        query.found(good.url)
        with h5py.File(query.out, "a") as file:
            file.attrs["parameters"] = "{}"
        refused(query(good.url), 4, "does not say what was asked", "--force")
        assert query.found(good.url, "--update")["asked"] == 0 and Lalm.load(query.out)


def test_update_reads_answers_anew_with_a_newer_parser(query, good, monkeypatch):
    query.found(good.url)
    assert query.found(good.url, "--update")["up_to_date"]
    monkeypatch.setattr(lalm, "PARSER_VERSION", 99)
    told = query.found(good.url, "--update", key=None)
    assert (told["up_to_date"], told["asked"]) == (False, 0)
    assert Lalm.load(query.out).header.parameters["parser_version"] == 99
    assert query.found(good.url, "--update", key=None)["up_to_date"]


class TestEnd:
    @pytest.fixture
    def ending(self, query, good, monkeypatch):
        """Ask for more in a run that ends as told, with a word on the way."""
        query.found(good.url)

        def ending(*flags, word=lambda: None, **options):
            def run(survey, service, **_):
                asked.append(service)
                word()
                return RunState(**options)

            asked = []
            monkeypatch.setattr(lalm, "run", run)
            return query(good.url, *flags), asked

        return ending

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_an_error_counts_for_more_than_an_interruption(self, ending, interrupted):
        result, _ = ending("--reask", 1, error=RemoteError("no more"), interrupted=interrupted)
        refused(result, 5, "no more")

    @pytest.mark.parametrize(
        ("how", "code", "word"),
        [({"error": RemoteError("no more")}, 5, "no more"), ({"interrupted": True}, 130, "interrupted")],
    )
    def test_is_not_hidden_by_an_artifact_that_cannot_be_saved(self, ending, query, how, code, word):
        def spoil():
            query.out.unlink()
            query.out.mkdir()

        result, _ = ending("--reask", 1, word=spoil, **how)
        refused(result, code, word)
        assert "could not be saved: " in result.stderr and "is a directory" in result.stderr

    def test_open_batches_are_collected_though_nothing_is_missing(self, ending, query, good):
        assert ending("--transport", "batch")[1] == []
        with Journal(journal_path(query.out)) as journal:
            journal.plan_batch("tag", host_of(good.url))
        assert ending()[1] == []
        result, asked = ending("--transport", "batch")
        assert (
            len(asked) == 1
            and asked[0].transport == "batch"
            and "note: collecting open batches from 127" in result.stderr
        )


def test_calls_of_unknown_outcome_are_named_with_their_time(query, good, monkeypatch):
    query.found(good.url)
    monkeypatch.setattr("mifuse_cli.lalm.journal.journal.time.time", lambda: 1_790_000_000.5)
    with Journal(journal_path(query.out)) as journal:
        for name in ("a, sample 1", "b, sample 2"):
            journal.begin("key", 1, asked=name).result()
        journal.begin("key", 1, asked="c, sample 3", batch="tag").result()
    told = query.found(good.url)
    assert told["unresolved"] == ["a, sample 1", "b, sample 2"]
    (note,) = [note for note in told["notes"] if "outcome" in note]
    assert note.startswith("2 requests may have been billed without an answer kept")
    assert note.endswith("the first was sent at 2026-09-21 14:13:20 UTC: a, sample 1; b, sample 2")
