"""Parts of a corpus, made by --shard, and mifuse merge, which joins them."""

import json
import shlex
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from conftest import RATE, mifuse, read_rows, refused, tone, write_csv
from querying import Query

import mifuse_cli as m
from mifuse_cli.artifacts import Lalm, Source
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.lalm import Journal, journal_path, take_in
from mifuse_cli.manifest import Clips, clips_of

PARTS = ("1/3", "2/3", "3/3")


def ids(made):
    return made.utt_id.tolist()


class TestShard:
    def test_parts_are_disjoint_and_about_equal(self, corpora):
        whole = [clip.utt_id for clip in clips_of(corpora.target, None)[0]]
        parts = [[clip.utt_id for clip in clips_of(corpora.target, None, shard=shard)[0]] for shard in PARTS]
        assert sorted(one for part in parts for one in part) == whole and set(map(len, parts)) == {8}
        assert len(Clips(None, corpora.wav_dir, shard="1/3")) == 8

    def test_order_and_names_do_not_matter(self, corpora, tmp_path):
        def files(manifest):
            return {clip.path.name for clip in Clips(manifest, None, shard="2/3")}

        shutil.copytree(corpora.wav_dir, tmp_path / "wav")
        rows = read_rows(corpora.target)
        other = [{"utt_id": f"x{number}", **row} for number, row in enumerate(reversed(rows))]
        assert files(write_csv(tmp_path / "m.csv", other)) == files(corpora.target)

    def test_copies_are_in_one_part(self, tmp_path):
        rng = np.random.default_rng(0)
        for number in range(12):
            soundfile.write(tmp_path / f"{number}.wav", tone(200 + number, 0.3, rng), RATE)
            shutil.copyfile(tmp_path / f"{number}.wav", tmp_path / f"copy-{number}.wav")
        for shard in ("1/4", "2/4", "3/4", "4/4"):
            names = {clip.utt_id for clip in Clips(None, tmp_path, shard=shard)}
            assert len(names) == 6
            assert {f"copy-{name}" for name in names if "-" not in name} == {n for n in names if "-" in n}

    def test_parts_of_a_recording_are_clips_of_their_own(self, tmp_path):
        soundfile.write(tmp_path / "long.wav", tone(220, 0.3, np.random.default_rng(0), 6.0), RATE)
        rows = [{"file": "long.wav", "start": str(n), "end": str(n + 1)} for n in range(6)]
        manifest = write_csv(tmp_path / "m.csv", rows)
        parts = [[clip.start for clip in clips_of(manifest, None, shard=shard)[0]] for shard in PARTS]
        assert sorted(one for part in parts for one in part) == [0, 1, 2, 3, 4, 5]
        assert set(map(len, parts)) == {2}

    @pytest.mark.parametrize("value", ["0/3", "4/3", "1", "1/0", "a/b", "1/3 ", "-1/3"])
    def test_bad_values(self, pipeline, corpora, tmp_path, value):
        out = tmp_path / "part.h5"
        found = mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target, "--out", out,
                       "--shard", value)  # fmt: skip
        refused(found, 2, "--shard", "2/8")

    def test_more_parts_than_clips(self, pipeline, corpora, tmp_path):
        found = mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target, "--out",
                       tmp_path / "part.h5", "--shard", "25/25")  # fmt: skip
        refused(found, 3, "part 25/25", "24 clips", "fewer parts")


class TestAnswers:
    @pytest.fixture
    def parts(self, serve, corpora, tmp_path):
        """Answers of three parts by one server, which is ``parts.server``."""

        class Parts(list):
            pass

        made = Parts(tmp_path / f"lalm-{shard[0]}.h5" for shard in PARTS)
        made.server = serve()
        made.whole = Query(corpora.target, tmp_path / "whole" / "lalm.h5")
        for shard, out in zip(PARTS, made, strict=True):
            Query(corpora.target, out).found(made.server.url, shard=shard)
        return made

    def test_nothing_is_asked_twice(self, parts, corpora):
        assert len(parts.server.asked) == len(set(parts.server.asked)) == 48
        result = m.merge(m.MergeConfig(parts=parts, out=parts.whole.out))
        assert (result.kind, result.parts, result.clips, result.repeated) == ("lalm", 3, 24, 0)
        assert result.summary["requests"]["answered"] == 48 and not result.notes
        merged = Lalm.load(parts.whole.out)
        for part in map(Lalm.load, parts):
            rows = [ids(merged).index(one) for one in ids(part)]
            for name in ("audio_sha256", "probs", "status", "order", "usage"):
                np.testing.assert_array_equal(getattr(merged, name)[rows], getattr(part, name))
            texts = [[part.raw_answer(u, n) for n in range(2)] for u in range(8)]
            assert texts == [[merged.raw_answer(u, n) for n in range(2)] for u in rows]
        # Where the same command went on without --shard, it would have made the same.
        assert parts.whole.found(parts.server.url, "--update")["up_to_date"]
        assert parts.whole.found(parts.server.url)["asked"] == 0 and len(parts.server.asked) == 48
        again = Lalm.load(parts.whole.out)
        assert again.digest() == merged.digest()
        assert [(p.role, p.sha256) for p in again.header.parents] == [
            (p.role, p.sha256) for p in merged.header.parents
        ]
        assert parts.whole.found(parts.server.url, n_samples=3)["asked"] == 24

    def test_fuse_knows_where_it_is_from(self, parts, pipeline, tmp_path):
        m.merge(m.MergeConfig(parts=parts, out=parts.whole.out))
        fuse = {"lalm": parts.whole.out, "source": pipeline.source, "weighting": "mi"}
        assert m.fuse(m.FuseConfig(out=tmp_path / "f.h5", **fuse)).clips == 24
        # A part is not the whole.
        with pytest.raises(ArtifactError, match="has 16 clips that"):
            m.fuse(m.FuseConfig(out=tmp_path / "g.h5", **{**fuse, "lalm": parts[0]}))

    def test_again(self, parts):
        config = m.MergeConfig(parts=parts, out=parts.whole.out)
        m.merge(config)
        before = parts.whole.out.read_bytes()
        with pytest.raises(InputError, match="exists already"):
            m.merge(config)
        assert m.merge(m.MergeConfig(parts=parts, out=parts.whole.out, update=True)).up_to_date
        assert parts.whole.out.read_bytes() == before
        result = m.merge(m.MergeConfig(parts=parts, out=parts.whole.out, force=True))
        assert result.summary["requests"]["answered"] == 48  # not counted twice
        with closing(sqlite3.connect(journal_path(parts.whole.out))) as db:
            assert db.execute("SELECT count(*) FROM intent").fetchone() == (48,)
            assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'sent'").fetchall()

    def test_a_part_that_is_missing_is_told_and_asked_for_later(self, parts):
        found = mifuse("merge", *parts[1:], "--out", parts.whole.out)
        refused(found, 3, "not among the parts: 1/3", "--shard 1/3", "--partial")
        assert not parts.whole.out.exists() and not journal_path(parts.whole.out).exists()
        result = m.merge(m.MergeConfig(parts=parts[1:], out=parts.whole.out, partial=True))
        assert result.clips == 16 and result.notes == ("not among the parts: 1/3",)
        assert parts.whole.found(parts.server.url)["asked"] == 16

    def test_what_was_merged_of_some_parts_is_whole_with_the_others(self, parts, tmp_path):
        some = tmp_path / "some.h5"
        m.merge(m.MergeConfig(parts=parts[1:], out=some, partial=True))
        refused(mifuse("merge", some, "--out", tmp_path / "o.h5"), 3, "not among the parts: 1/3")
        result = m.merge(m.MergeConfig(parts=[some, parts[0]], out=parts.whole.out))
        assert result.clips == 24 and not result.notes

    def test_the_command_that_makes_a_missing_part(self, parts):
        made = Lalm.load(parts[1])
        out = made.header.config["out"]
        command = f"mifuse query-lalm --shard 2/3 --model m --out {out} --n-samples 2"
        replace(made, header=replace(made.header, command=command)).save(parts[1])
        found = mifuse("merge", *parts[1:], "--out", parts.whole.out)
        line = refused(found, 3, "--partial")
        assert line.endswith(" first: mifuse query-lalm --shard 1/3 --model m --out FILE --n-samples 2")
        words = ["mifuse", "query-lalm", "--wav-dir", "my wav", "--out=of x.h5", "--shard=3/3"]
        replace(made, header=replace(made.header, command=shlex.join(words))).save(parts[1])
        line = refused(mifuse("merge", *parts[1:], "--out", parts.whole.out), 3)
        assert line.endswith(" first: mifuse query-lalm --wav-dir 'my wav' --out=FILE --shard=1/3")

    def test_parts_beside_the_whole(self, parts, pipeline, corpora, tmp_path):
        fuse = ["fuse", "--source", pipeline.source, "--out", tmp_path / "f.h5", "--lalm"]
        told = "lalm-2.h5 holds part 2/3 of its clips alone: join it with the others by mifuse merge."
        assert refused(mifuse(*fuse, parts[1]), 4).endswith(told)
        m.merge(m.MergeConfig(parts=parts[1:], out=parts.whole.out, partial=True))
        refused(mifuse(*fuse, parts.whole.out), 4, "holds part 2/3, 3/3 of its clips alone")
        evaluate = ["evaluate", "--manifest", corpora.labels, "--predictions"]
        assert refused(mifuse(*evaluate, parts[1]), 4).endswith(told)
        m.merge(m.MergeConfig(parts=parts, out=parts.whole.out, force=True))
        assert mifuse(*fuse, parts.whole.out).exit_code == 0

    def test_unfinished_parts(self, parts, corpora):
        """What a part has no answer to is asked once, wherever."""
        out = parts[0].with_name("short.h5")
        parts.server.reply = lambda digest: (
            (400, {"error": {"message": "bad audio"}}) if digest < "5" else None
        )
        Query(corpora.target, out)(parts.server.url, shard="1/3", n_samples=2)
        parts.server.reply = None
        missing = (Lalm.load(out).probs[..., 0] != Lalm.load(out).probs[..., 0]).sum()
        result = m.merge(m.MergeConfig(parts=[out, *parts[1:]], out=parts.whole.out))
        assert 0 < missing < 16 and result.summary["statuses"].get("ok") != 48
        asked = parts.whole.found(parts.server.url)["asked"]
        assert asked == missing and Lalm.load(parts.whole.out).header.parameters["complete"]

    def test_the_same_clip_in_two_parts(self, parts, corpora, tmp_path):
        copy = tmp_path / "copy.h5"
        shutil.copyfile(parts[0], copy)
        shutil.copyfile(journal_path(parts[0]), journal_path(copy))
        result = m.merge(m.MergeConfig(parts=[*parts, copy], out=parts.whole.out))
        assert result.repeated == 8 and result.summary["requests"]["answered"] == 48
        Query(corpora.target, tmp_path / "other.h5").found(parts.server.url, shard="2/3")
        found = mifuse("merge", *parts, tmp_path / "other.h5", "--out", tmp_path / "o.h5")
        refused(found, 4, "other.h5", "lalm-2.h5", "other content")
        assert not (tmp_path / "o.h5").exists() and not journal_path(tmp_path / "o.h5").exists()

    def test_parts_of_other_questions(self, parts, corpora, tmp_path):
        Query(corpora.target, tmp_path / "warm.h5").found(parts.server.url, shard="3/3", temperature=0.5)
        found = mifuse("merge", *parts[:2], tmp_path / "warm.h5", "--out", parts.whole.out)
        refused(found, 4, "warm.h5", "lalm-1.h5", "spec", "temperature")

    def test_journals_that_are_not_there_in_use_or_of_other_clips(self, parts):
        arguments = ["merge", *parts, "--out", parts.whole.out]
        with Journal(journal_path(parts[2])):
            refused(mifuse(*arguments), 3, "lalm-3.h5.journal.sqlite", "in use")
        kept = journal_path(parts[2]).read_bytes()
        shutil.copyfile(journal_path(parts[1]), journal_path(parts[2]))
        refused(mifuse(*arguments), 4, "lalm-3.h5", "other clips")
        journal_path(parts[2]).unlink()
        refused(mifuse(*arguments), 3, "lalm-3.h5.journal.sqlite", "paid")
        assert not parts.whole.out.exists() and not journal_path(parts.whole.out).exists()
        journal_path(parts[2]).write_bytes(kept)
        assert mifuse(*arguments).exit_code == 0

    def test_several_choices_a_request(self, serve, corpora, tmp_path):
        """Choices after the first stand with its body."""
        server, outs = serve(), [tmp_path / "1.h5", tmp_path / "2.h5"]
        for number, out in enumerate(outs, start=1):
            Query(corpora.target, out).found(
                server.url, shard=f"{number}/2", n_samples=4, choices_per_request=2, probe="off"
            )
        whole = Query(corpora.target, tmp_path / "whole.h5")
        m.merge(m.MergeConfig(parts=outs, out=whole.out))
        asked = len(server.asked)
        merged = Lalm.load(whole.out).probs
        assert whole.found(server.url, n_samples=4, choices_per_request=2, probe="off")["asked"] == 0
        np.testing.assert_array_equal(Lalm.load(whole.out).probs, merged)
        assert len(server.asked) == asked

    def test_the_command(self, parts):
        found = mifuse("merge", *parts, "--out", parts.whole.out)
        assert found.exit_code == 0 and "lalm, of 3 parts" in found.stdout and "48 of 48" in found.stdout
        found = mifuse("merge", parts[0], "--partial", "--force", "--out", parts.whole.out)
        assert "lalm, of 1 part\n" in found.stdout and "not among the parts: 2/3, 3/3" in found.stderr
        assert mifuse("merge", *parts, "--force", "--out", parts.whole.out).exit_code == 0
        found = mifuse("merge", *parts, "--out", parts.whole.out, "--update", "--json")
        assert json.loads(found.stdout)["up_to_date"]
        refused(mifuse("merge", parts[0], parts[0], "--out", parts.whole.out), 2, "given 2 times")


def test_an_open_request_is_closed_by_a_later_merge(tmp_path):
    part, whole = Journal(tmp_path / "part"), Journal(tmp_path / "whole")
    with part, whole:
        part.plan_batch("tag", "host")
        intent = part.begin("key", 1, cost=2.0, batch="tag").result()
        take_in(whole, part)
        assert whole.accounts()["in_batches"] == 1 and whole.open_batches("host") == [("tag", None)]
        part.store(intent, "key", b'{"choices": [{"message": {"content": "x"}}]}', http_status=200).result()
        part.close_batch("tag", "completed")
        part.settle_unread()
        take_in(whole, part)
        take_in(whole, part)
        assert whole.accounts() == part.accounts() and whole.accounts()["answered"] == 1
        assert whole.open_batches("host") == [] and whole.answered(["key"]) == {"key": [0]}


class TestSamples:
    def sampled(self, pipeline, corpora, out, **changes):
        values = {"model": pipeline.model, "manifest": corpora.target, "n_samples": 4, **changes}
        m.sample_source(m.SampleSourceConfig(out=out, **values))
        return out

    @pytest.mark.parametrize("normalize", ["source", "target", "speaker"])
    def test_the_whole_is_what_one_run_makes(self, pipeline, corpora, tmp_path, normalize):
        parts = [
            self.sampled(pipeline, corpora, tmp_path / f"{shard[0]}.h5", shard=shard, normalize=normalize)
            for shard in PARTS
        ]
        result = m.merge(m.MergeConfig(parts=reversed(parts), out=tmp_path / "sub" / "merged.h5"))
        assert (result.kind, result.clips) == ("source", 24)
        whole = Source.load(self.sampled(pipeline, corpora, tmp_path / "whole.h5", normalize=normalize))
        merged = Source.load(result.out)
        np.testing.assert_array_equal(merged.probs, whole.probs)
        assert merged.digest() == whole.digest()
        assert [(p.role, p.sha256) for p in merged.header.parents] == [
            (p.role, p.sha256) for p in whole.header.parents
        ]
        assert m.show(m.ShowConfig(file=result.out)).parents[0]["state"] == "unchanged"
        again = {"model": pipeline.model, "manifest": corpora.target, "n_samples": 4, "normalize": normalize}
        assert m.sample_source(m.SampleSourceConfig(out=result.out, update=True, **again)).up_to_date
        fuse = {"lalm": pipeline.lalm, "source": result.out, "weighting": "mi"}
        assert m.fuse(m.FuseConfig(out=tmp_path / "f.h5", **fuse)).clips == 24

    def test_what_the_model_heard_goes_by_audio(self, pipeline, corpora, tmp_path):
        renamed = [
            {**row, "utt_id": f"x{number}", "file": str(corpora.source.parent / row["file"])}
            for number, row in enumerate(read_rows(corpora.source)[:12])
        ]
        manifest = write_csv(tmp_path / "m.csv", renamed + [
            {**row, "utt_id": f"y{number}", "file": str(corpora.target.parent / row["file"]), "emotion": ""}
            for number, row in enumerate(read_rows(corpora.target)[:12])
        ])  # fmt: skip
        parts = [
            self.sampled(pipeline, corpora, tmp_path / f"{shard[0]}.h5", shard=shard, manifest=manifest)
            for shard in PARTS
        ]
        result = m.merge(m.MergeConfig(parts=parts, out=tmp_path / "merged.h5"))
        assert Source.load(result.out).header.parameters["seen_in_training"] == 0.5

    def test_hidden_states_are_needed(self, pipeline, corpora, tmp_path):
        found = mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target, "--out",
                       tmp_path / "p.h5", "--shard", "1/2", "--no-hidden-states")  # fmt: skip
        refused(found, 2, "--shard", "--no-hidden-states")

    def test_what_cannot_be_merged(self, pipeline, corpora, copy, tmp_path):
        out = tmp_path / "o.h5"
        refused(mifuse("merge", pipeline.fused, "--out", out), 4, "of fuse (kind 'fused')", "expected parts")
        refused(mifuse("merge", pipeline.source, "--out", out), 4, "no part")
        refused(
            mifuse("merge", pipeline.source, pipeline.lalm, "--out", out), 4,
            f"{pipeline.source} is an artifact of sample-source (kind 'source')",
            f"{pipeline.lalm} is an artifact of query-lalm (kind 'lalm')",
        )  # fmt: skip
        refused(mifuse("merge", tmp_path / "absent.h5", "--out", out), 3, "absent.h5")
        part = self.sampled(copy, corpora, copy.root / "p.h5", shard="1/2")
        warm = self.sampled(copy, corpora, copy.root / "q.h5", shard="2/2", seed=1)
        refused(mifuse("merge", part, warm, "--out", out), 4, "q.h5", "seed")
        shutil.rmtree(copy.model)
        refused(mifuse("merge", part, "--partial", "--out", out), 3, "source model")
        shutil.copytree(copy.student, copy.model)
        refused(mifuse("merge", part, "--partial", "--out", out), 4, "stale")
        assert not out.exists()
