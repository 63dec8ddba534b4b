import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import HANG_SECONDS, KEY, mifuse, refused, start, until
from safetensors import safe_open

import mifuse_cli
from mifuse_cli.artifacts import KINDS, Lalm, Training
from mifuse_cli.errors import InputError
from mifuse_cli.files import atomic_directory

MIFUSE = [sys.executable, "-m", "mifuse_cli"]
COMMANDS = (
    "prepare",
    "train-source",
    "query-lalm",
    "sample-source",
    "merge",
    "fuse",
    "train",
    "evaluate",
    "predict",
    "export",
    "compare",
    "compare-worlds",
    "show",
    "cache",
    "validate",
    "doctor",
)


@pytest.fixture
def fuse_args(pipeline, tmp_path):
    inputs = ["--lalm", pipeline.lalm, "--source", pipeline.source]
    return ["fuse", *inputs, "--weighting", "mi", "--out", tmp_path / "fused.h5"]


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_shows_an_example(self, name):
        for flag in ("-h", "--help"):
            result = mifuse(name, flag)
            assert result.exit_code == 0 and f"Example: mifuse {name} " in " ".join(result.stdout.split())
            assert "--json" in result.stdout and "--config" in result.stdout

    def test_commands_are_listed(self):
        result = mifuse("-h")
        assert result.exit_code == 0
        assert all(name in result.stdout for name in COMMANDS)
        assert "Exit codes: 0 ok" in " ".join(result.stdout.split())
        assert mifuse().exit_code == 2

    def test_version(self):
        process = start("--version")
        assert process.communicate()[0] == f"mifuse {mifuse_cli.__version__}\n"
        assert process.returncode == 0

    def test_help_is_quick(self):
        code = "import sys, mifuse_cli.cli; print([m for m in ('torch', 'transformers', 'openai') if m in sys.modules])"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout == "[]\n"


class TestPrecedence:
    @pytest.fixture
    def tau(self, fuse_args, tmp_path):
        def tau(*arguments, **env):
            result = mifuse(*fuse_args, "--force", *arguments, **env)
            assert result.exit_code == 0, result.stderr
            made = KINDS["fused"].load(tmp_path / "fused.h5")
            assert made.header.config["tau"] == made.header.parameters["tau"]
            return made.header.config["tau"]

        return tau

    def test_flag_environment_file_default(self, tau, tmp_path):
        (tmp_path / "c.yaml").write_text("tau: 0.2\nmi-estimator: plugin\n")
        file = ["--config", tmp_path / "c.yaml"]
        assert tau() == 0.1
        assert tau(*file) == 0.2
        assert tau(*file, MIFUSE_TAU="0.3") == 0.3
        assert tau(*file, MIFUSE_TAU="0.3", MIFUSE_FUSE_TAU="0.4") == 0.4
        assert tau(*file, "--tau", "0.5", MIFUSE_TAU="0.3", MIFUSE_FUSE_TAU="0.4") == 0.5
        assert tau(MIFUSE_TRAIN_TAU="0.6") == 0.1

    def test_file_may_hold_required_options(self, pipeline, tmp_path):
        values = {"lalm": pipeline.lalm, "source": pipeline.source, "out": tmp_path / "f.h5", "force": True}
        text = "".join(f"{name}: {value}\n" for name, value in values.items())
        (tmp_path / "c.yaml").write_text(text.replace("True", "true"))
        assert mifuse("fuse", "-c", tmp_path / "c.yaml").exit_code == 0
        assert (tmp_path / "f.h5").exists()

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("tua: 0.2\nweihgting: mi\n", ["'tua' (did you mean 'tau'?)", "'weihgting'"]),
            ("- tau\n", ["mapping"]),
            ("tau: [", ["YAML"]),
        ],
    )
    def test_bad_file(self, fuse_args, tmp_path, text, words):
        (tmp_path / "c.yaml").write_text(text)
        result = mifuse(*fuse_args, "--config", tmp_path / "c.yaml")
        assert result.exit_code == 2 and "Traceback" not in result.stderr and not result.stdout
        assert result.stderr.startswith("error: ") and all(word in result.stderr for word in words)
        assert not (tmp_path / "fused.h5").exists()


class TestOrigin:
    """Errors about values that stand elsewhere than on the command line tell where."""

    def test_of_the_environment(self, fuse_args):
        result = mifuse(*fuse_args, MIFUSE_TAU="much")
        assert result.exit_code == 2 and "MIFUSE_TAU in the environment" in " ".join(result.stderr.split())
        result = mifuse(*fuse_args, MIFUSE_FUSE_TAU="-1")
        assert "; --tau is from MIFUSE_FUSE_TAU in the environment" in refused(result, 2, "--tau -1")

    def test_of_a_file(self, fuse_args, tmp_path):
        for value in ("much", "-1"):
            (tmp_path / "c.yaml").write_text(f"tau: {value}\n")
            result = mifuse(*fuse_args, "--config", tmp_path / "c.yaml")
            assert result.exit_code == 2 and "from the file of --config" in " ".join(result.stderr.split())

    def test_options_of_all_commands(self, fuse_args, tmp_path):
        found = mifuse(*fuse_args, MIFUSE_JSON="1", MIFUSE_QUIET="yes")
        assert json.loads(found.stdout)["clips"] == 24 and not found.stderr
        (tmp_path / "c.yaml").write_text("tau: -1\n")
        refused(
            mifuse(*fuse_args, MIFUSE_FUSE_CONFIG=str(tmp_path / "c.yaml")), 2, "--tau -1", "file of --config"
        )

    def test_names_of_no_option(self, fuse_args):
        said = mifuse(*fuse_args, MIFUSE_FUSE_WIEGHTING="mi").stderr
        assert (
            "MIFUSE_FUSE_WIEGHTING in the environment is no option" in said
            and "'MIFUSE_FUSE_WEIGHTING'" in said
        )

    def test_not_of_flags(self, fuse_args):
        assert refused(mifuse(*fuse_args, "--tau", "-1", MIFUSE_SEED="3"), 2).endswith("0")


class TestOutput:
    def test_notes_and_errors_are_json_where_progress_is(self, fuse_args, tmp_path):
        made = mifuse(*fuse_args, "--weighting", "cross-fit", "--log-json")
        assert any(
            "24 clips are few" in json.loads(line).get("note", "") for line in made.stderr.splitlines()
        )
        again = mifuse(*fuse_args, "--log-json")
        assert again.exit_code == 3
        (last,) = again.stderr.splitlines()
        assert "exists already" in json.loads(last)["error"]
        wrong = mifuse(*fuse_args, "--log-json", "--tau", "much")
        assert wrong.exit_code == 2 and "--tau" in json.loads(wrong.stderr)["error"]
        (tmp_path / "c.yaml").write_text("nonsense: 1\n")
        for given in (("--log-json", "-c", tmp_path / "c.yaml"), ("-c", tmp_path / "c.yaml", "--log-json")):
            wrong = mifuse(*fuse_args, *given)
            assert wrong.exit_code == 2 and "'nonsense'" in json.loads(wrong.stderr)["error"]
        wrong = mifuse(*fuse_args, "-c", tmp_path / "c.yaml", MIFUSE_FUSE_LOG_JSON="true")
        assert wrong.exit_code == 2 and "'nonsense'" in json.loads(wrong.stderr)["error"]

    def test_a_message_quotes_no_endless_word(self, tmp_path):
        (tmp_path / "m.csv").write_text(f"file,emotion\n{'x' * 50_000},angry\n")
        wrong = mifuse("train-source", "--manifest", tmp_path / "m.csv", "--encoder", "logmel", "--out",
                       tmp_path / "o", "--classes", "a,b")  # fmt: skip
        assert wrong.exit_code == 3 and "xxx..." in wrong.stderr and len(wrong.stderr) < 1000

    @pytest.mark.parametrize("arguments", [("--help",), ("validate", "none")])
    def test_a_reader_that_goes_away(self, arguments):
        """As after `| head`: what it does not read is dropped, and the exit code is that of the command."""
        codes = []
        for closed in (False, True):
            process = start(*arguments)
            if closed:
                process.stdout.close()
                process.stderr.close()
                codes.append(process.wait())
            else:
                out, said = process.communicate()
                assert out and not said
                codes.append(process.returncode)
        assert codes[0] == codes[1] == (3 if arguments[0] == "validate" else 0)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    @pytest.mark.parametrize("arguments", [("--help",), ("validate", "none")])
    def test_a_full_disk_for_what_is_printed(self, arguments):
        full = Path("/dev/full").open("w")  # noqa: SIM115
        with full:
            out = subprocess.run(
                [*MIFUSE, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
            said = subprocess.run([*MIFUSE, *arguments], stdout=subprocess.PIPE, stderr=full, check=False)
        assert out.returncode == 3 and "Traceback" not in out.stderr
        assert ("cannot be written (No space left on device)" in out.stderr) == (arguments == ("--help",))
        assert said.returncode == (0 if arguments == ("--help",) else 3)

    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    def test_closed_streams(self, closed, tmp_path):
        (tmp_path / "a").mkdir()
        tone = tmp_path / "a/a.wav"
        soundfile.write(tone, np.sin(np.arange(1600) / 5) / 2, 16_000)
        command = shlex.join([*MIFUSE, "validate", str(tone.parent)])
        assert subprocess.run(["bash", "-c", f"{command} {closed}"], check=False).returncode == 0

    def test_json(self, fuse_args, tmp_path):
        result = mifuse(*fuse_args, "--json")
        found = json.loads(result.stdout)
        assert result.exit_code == 0 and found["out"] == str(tmp_path / "fused.h5") and found["clips"] == 24
        assert result.stdout.count("\n") == 1

    @pytest.mark.parametrize("name", ["evaluate", "show"])
    def test_json_of_other_commands(self, pipeline, corpora, tmp_path, name):
        out = ["--predictions", pipeline.lalm, "--manifest", corpora.labels, "--out", tmp_path / "e.h5"]
        result = mifuse(name, *(out if name == "evaluate" else [pipeline.student]), "--json", "--quiet")
        assert isinstance(json.loads(result.stdout), dict) and result.stderr == ""

    def test_train_source_without_validation_has_no_accuracy(self, corpora, encoders, tmp_path):
        arguments = ["--manifest", corpora.source, "--encoder", encoders["whisper"], "--out", tmp_path / "m"]
        result = mifuse("train-source", *arguments, "--validation", "0", "--epochs", "1", "--json")
        assert json.loads(result.stdout)["validation_ua"] is None  # NaN is no JSON

    def test_quiet(self, fuse_args, pipeline, corpora, tmp_path):
        result = mifuse(*fuse_args, "--quiet")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
        arguments = ["--model", pipeline.model, "--manifest", corpora.target, "--out", tmp_path / "s.h5"]
        process = start("sample-source", *arguments, "-q")
        assert process.communicate() == ("", "") and process.returncode == 0

    def test_people_read_a_report(self, pipeline, corpora, tmp_path):
        arguments = ["--predictions", pipeline.lalm, "--manifest", corpora.labels, "--out", tmp_path / "e.h5"]
        report = mifuse("evaluate", *arguments).stdout
        assert "UA                   100.00 %" in report and "true, by predicted" in report
        assert "UA, prior-corrected  100.00 %" in report
        assert "|decision:argmax p+prior-corrected argmax p/prior|" in report
        shown = mifuse("show", tmp_path / "e.h5").stdout
        assert "evaluation, schema 2" in shown and "protocol" not in shown and "unchanged" in shown

    def test_up_to_date(self, fuse_args, tmp_path):
        mifuse(*fuse_args)
        result = mifuse(*fuse_args, "--update")
        assert result.exit_code == 0 and "is up to date" in result.stderr

    def test_refuses_to_overwrite(self, fuse_args, tmp_path):
        assert mifuse(*fuse_args).exit_code == 0
        before = (tmp_path / "fused.h5").read_bytes()
        refused(mifuse(*fuse_args, "--tau", "0.5"), 3, "fused.h5: exists already", "--force")
        assert (tmp_path / "fused.h5").read_bytes() == before
        assert mifuse(*fuse_args, "--tau", "0.5", "--force").exit_code == 0
        assert (tmp_path / "fused.h5").read_bytes() != before

    @pytest.mark.parametrize("flag", ["--force", "--update"])
    def test_never_replaces_a_foreign_directory(self, pipeline, corpora, tmp_path, flag):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("x")
        tail = ["--manifest", corpora.target, "--epochs", "1", "--out", tmp_path / "mine", flag]
        result = mifuse("train", "--fused", pipeline.fused, "--model", pipeline.model, *tail)
        refused(result, 3, "is a directory, but not a checkpoint")
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


class TestQueryLalm:
    @pytest.fixture
    def arguments(self, corpora, tmp_path):
        tail = ["--manifest", corpora.target, "--model", "m", "--n-samples", "2", "--out", tmp_path / "l.h5"]
        return ["query-lalm", *tail, "--base-url"]

    def test_needs_a_key(self, arguments, serve):
        refused(mifuse(*arguments, serve().url), 3, "no API key")

    @pytest.mark.parametrize("way", ["environment", "file"])
    def test_key_is_nowhere(self, arguments, serve, tmp_path, tmp_path_factory, way):
        server = serve()
        echoed = {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key"}}
        server.reply = lambda digest: (401, echoed)
        secret = tmp_path_factory.mktemp("secret") / "key"
        secret.write_text(KEY + "\n")
        env = {"OPENAI_API_KEY": KEY} if way == "environment" else {}
        flags = ["--api-key-file", secret] if way == "file" else []
        process = start(*arguments, server.url, *flags, **env)
        out, err = process.communicate()
        assert process.returncode == 5 and "Traceback" not in err and out == ""
        assert err.count("error: ") == 1 and "401" in err and "Check the API key" in err
        assert server.headers_seen[0] == f"Bearer {KEY}"
        assert KEY not in err and not (tmp_path / "l.h5").exists()
        server.reply = lambda digest: f'{{"angry": 1, "happy": 0, "neutral": 0, "sad": 0}} by {KEY}'
        result = mifuse(*arguments, server.url, *flags, "--json", **env)
        assert result.exit_code == 0 and KEY not in result.output
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert any(path.name == "l.h5" for path in files) and any("journal" in p.name for p in files)
        for path in files:
            assert KEY.encode() not in path.read_bytes(), path
        with sqlite3.connect(tmp_path / "l.h5.journal.sqlite") as db:
            assert KEY not in "\n".join(db.iterdump())
        assert KEY not in Lalm.load(tmp_path / "l.h5").raw_answer(0, 0)

    def test_password_in_the_address_is_nowhere(self, arguments, serve, tmp_path, key):
        address = serve().url.replace("://", "://user:pass-w0rd@")
        result = mifuse(*arguments, address)
        assert result.exit_code == 0 and "pass-w0rd" not in result.output
        for path in tmp_path.iterdir():
            assert b"pass-w0rd" not in path.read_bytes(), path

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupt_lets_answers_come_in(self, arguments, serve, tmp_path, number):
        server = serve()
        server.reply = lambda digest: server.hold.clear() if len(server.asked) >= 10 else None
        process = start(*arguments, server.url, "--concurrency", "4", OPENAI_API_KEY=KEY)
        until(lambda: not server.hold.is_set() and len(server.asked) > 12)
        process.send_signal(number)
        assert "interrupted: waiting" in next(line for line in process.stderr if "interr" in line)
        server.reply = None
        server.hold.set()
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 130 and out == "" and "Traceback" not in err
        assert err.splitlines()[-1] == "error: interrupted; run the same command again to go on"
        made = Lalm.load(tmp_path / "l.h5")
        answered = int((made.status != 0).sum())
        assert answered == len(server.asked) < 48 and made.header.parameters["complete"] is False
        assert made.header.parameters["summary"]["requests"]["unresolved"] == 0
        result = mifuse(*arguments, server.url, "--json", OPENAI_API_KEY=KEY)
        assert json.loads(result.stdout)["asked"] == 48 - answered
        assert Lalm.load(tmp_path / "l.h5").header.parameters["complete"] is True

    def test_second_interrupt_leaves_at_once(self, arguments, serve, tmp_path):
        server = serve()
        server.hold.clear()
        process = start(*arguments, server.url, OPENAI_API_KEY=KEY)
        assert server.arrived.wait(HANG_SECONDS)
        process.send_signal(signal.SIGINT)
        next(line for line in process.stderr if "interrupted: waiting" in line)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 130 and out == "" and "Traceback" not in err
        assert err == "error: interrupted; run the same command again to go on\n"
        assert not (tmp_path / "l.h5").exists()

    def test_killed_run_goes_on(self, arguments, serve, tmp_path):
        server = serve()
        journal = tmp_path / "l.h5.journal.sqlite"

        def stored():
            with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as db:
                return dict(db.execute("SELECT key, raw FROM answer"))

        answered = []

        def reply(digest):
            answered.append(digest)
            if len(answered) > 20:
                server.hold.clear()
            return None

        server.reply = reply
        process = start(*arguments, server.url, "--concurrency", "3", OPENAI_API_KEY=KEY)
        until(lambda: not server.hold.is_set() and len(server.asked) > len(answered))
        process.kill()
        process.communicate()
        kept, first = stored(), set(server.asked)
        assert 15 <= len(kept) < 48 and len(first) < 48
        # What the killed run has sent goes to a server that nobody hears any more.
        port = server.server_address[1]
        server.reply = None
        server.hold.set()
        server.shutdown()
        server.server_close()
        server = serve(port)
        result = mifuse(*arguments, server.url, "--json", OPENAI_API_KEY=KEY)
        found = json.loads(result.stdout)
        assert found["asked"] == len(server.asked) == 48 - len(kept)
        assert len(set(server.asked)) == len(server.asked) and len(first | set(server.asked)) == 48
        after = stored()
        assert len(after) == 48 and kept.items() <= after.items()
        assert found["statuses"] == {"ok": 48} and "may have been billed" in result.stderr

    def test_journal_in_use(self, arguments, serve, tmp_path):
        from mifuse_cli.lalm.journal.journal import Journal

        with Journal(tmp_path / "l.h5.journal.sqlite"):
            refused(mifuse(*arguments, serve().url, OPENAI_API_KEY=KEY), 3, "in use by process")


class TestTrain:
    @pytest.mark.slow
    def test_killed_run_goes_on(self, pipeline, corpora, tmp_path, nursery):
        """A whole command that is killed; quick tests resume the training loop alone."""
        arguments = ["--fused", pipeline.fused, "--model", pipeline.model, "--manifest", corpora.target]
        arguments += ["--epochs", "60", "--batch-size", "8"]
        partial = tmp_path / "s.partial"

        def epoch():
            with safe_open(partial, "np") as file:
                return int(file.metadata()["epoch"])

        process = nursery.start("train", *arguments, "--out", tmp_path / "s")
        until(lambda: partial.exists() and epoch() > 3)
        nursery.kill(process)
        reached = epoch()
        assert 3 < reached < 60 and not (tmp_path / "s").exists()
        process = nursery.start("train", *arguments, "--out", tmp_path / "s", "--json")
        out, err = process.communicate()
        assert process.returncode == 0 and f"continued after epoch {reached} " in err
        assert json.loads(out)["resumed_from"] == reached
        assert mifuse("train", *arguments, "--out", tmp_path / "whole").exit_code == 0
        first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("s", "whole"))
        assert first == second
        histories = [Training.load(tmp_path / name / "train.h5").history for name in ("s", "whole")]
        np.testing.assert_array_equal(*histories)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "whole"]

    def test_half_written_directories_do_not_show(self, tmp_path):
        with pytest.raises(InputError, match="full"), atomic_directory(tmp_path / "d") as directory:
            (directory / "a").write_text("x")
            raise OSError("disk full")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_of_any_encoding(tmp_path, encoding):
    (tmp_path / os.fsdecode(b"b\xf6se")).mkdir()
    for number, name in enumerate((os.fsdecode(b"b\xf6se"), "stra\u00dfe \u2603")):
        (tmp_path / name).mkdir(exist_ok=True)
        soundfile.write(os.fsencode(tmp_path / name / "a.wav"), np.sin(np.arange(8000) * 0.1), 16_000)
        command = [
            sys.executable,
            "-m",
            "mifuse_cli",
            "prepare",
            "generic",
            tmp_path / name,
            tmp_path / str(number),
        ]
        env = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, env=env, check=False)
        assert done.returncode == 3 and b"Traceback" not in done.stderr
        assert b"outside of any folder" in done.stderr
        (tmp_path / name / "sad").mkdir()
        (tmp_path / name / "a.wav").rename(tmp_path / name / "sad" / "a.wav")
        done = subprocess.run([*command, "--json"], capture_output=True, env=env, check=False)
        assert b"Traceback" not in done.stderr and done.returncode == (0 if number else 3)
        if number:
            assert json.loads(done.stdout)["root"] == str(tmp_path / name)
