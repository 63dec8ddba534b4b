import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import KEY, train_config

import mifuse_cli as m
from mifuse_cli.artifacts import Fused, Lalm
from mifuse_cli.errors import ArtifactError, RemoteError
from mifuse_cli.lalm import journal_path
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.journal.journal import Journal


class TestQueryLalm:
    @pytest.fixture
    def ask(self, serve, corpora, tmp_path, key):
        """Ask with defaults that can be changed; ``ask.server`` is the one that answers."""
        server = serve()

        def ask(**changes):
            values = {"manifest": corpora.target, "model": "m", "base_url": server.url, "n_samples": 2}
            return m.query_lalm(m.QueryLalmConfig(out=tmp_path / "lalm.h5", **{**values, **changes}))

        ask.server, ask.out = server, tmp_path / "lalm.h5"
        return ask

    def test_second_run_asks_nothing(self, ask):
        assert ask().asked == 48
        first = Lalm.load(ask.out)
        assert ask().asked == 0 and len(ask.server.asked) == 48
        assert Lalm.load(ask.out).digest() == first.digest()
        assert ask.server.headers_seen == [f"Bearer {KEY}"] * 48
        again = ask(update=True)
        assert again.up_to_date and again.asked == 0
        assert ask(n_samples=3).asked == 24
        assert len(set(ask.server.asked)) == 72
        more = Lalm.load(ask.out)
        np.testing.assert_array_equal(more.probs[:, :2], first.probs)
        assert (np.sort(more.order, axis=-1) == np.arange(4)).all()

    def test_lost_artifact_comes_back_from_the_journal(self, ask, monkeypatch):
        ask()
        digest = Lalm.load(ask.out).digest()
        ask.out.unlink()
        monkeypatch.delenv("OPENAI_API_KEY")  # nothing is asked, so no key is needed
        assert ask().asked == 0
        assert Lalm.load(ask.out).digest() == digest

    def test_same_audio_is_asked_once(self, ask, corpora, tmp_path):
        shutil.copytree(corpora.wav_dir, tmp_path / "wav")
        clip = sorted((tmp_path / "wav").iterdir())[3]
        shutil.copyfile(clip, tmp_path / "wav" / "zz-twin.wav")
        result = ask(manifest=None, wav_dir=tmp_path / "wav")
        assert (result.clips, result.asked) == (25, 48) and len(ask.server.asked) == 48
        made = Lalm.load(ask.out)
        np.testing.assert_array_equal(made.probs[3], made.probs[24])
        assert made.raw_answer(24, 1) == made.raw_answer(3, 1) != ""

    @pytest.mark.parametrize(
        "change", [{"model": "other"}, {"temperature": 0.5}, {"classes": "angry,happy,neutral,calm"}]
    )
    def test_other_questions(self, ask, change):
        ask()
        before = ask.out.read_bytes()
        with pytest.raises(ArtifactError, match=f"other questions: {next(iter(change))}"):
            ask(**change)
        assert len(ask.server.asked) == 48 and ask.out.read_bytes() == before
        if "model" in change:
            assert ask(**change, force=True).asked == 48

    def test_update_asks_what_a_changed_setting_needs(self, ask, monkeypatch):
        ask()
        assert ask(update=True).up_to_date
        assert ask(update=True, temperature=0.5).asked == 48
        monkeypatch.setenv("OPENAI_BASE_URL", ask.server.url.replace("127.0.0.1", "localhost"))
        assert ask(update=True, temperature=0.5, base_url="").asked == 48

    def test_clips_without_a_valid_answer(self, ask, pipeline, corpora, tmp_path):
        ids = Lalm.load(pipeline.lalm).audio_sha256[[2, 7]].tolist()
        ask.server.reply = lambda digest: "I cannot tell." if digest in ids else None
        result = ask()
        assert result.without_answer == 2 and result.statuses["ok"] == 44
        made = Lalm.load(ask.out)
        silent = np.isnan(made.probs).all(axis=(1, 2))
        assert np.flatnonzero(silent).tolist() == [2, 7]
        assert (made.status[silent] != Status.OK).all() and made.raw_answer(2, 0) == "I cannot tell."
        fused = m.fuse(
            m.FuseConfig(lalm=ask.out, source=pipeline.source, out=tmp_path / "fused.h5", weighting="mi")
        )
        assert fused.fallbacks == 2 and "2 clips have no valid LALM answer" in " ".join(fused.notes)
        labels = Fused.load(tmp_path / "fused.h5")
        np.testing.assert_array_equal(labels.weights[[2, 7]], [[0, 1], [0, 1]])
        np.testing.assert_allclose(labels.probs[[2, 7]], labels.mean[[2, 7], 1], atol=1e-6)
        score = m.EvaluateConfig(predictions=ask.out, manifest=corpora.labels, out=tmp_path / "e.h5")
        scored = m.evaluate(score)
        assert scored.metrics["missing"] == 2 and "2 clips have no prediction" in scored.notes[0]
        assert np.array(scored.confusion)[:, 4].sum() == 2
        config = train_config(pipeline, corpora, tmp_path / "s", fused=tmp_path / "fused.h5")
        assert m.train(replace(config, method="lalm-sfuda")).clips == 24

    def test_no_valid_answer_at_all(self, ask, pipeline, tmp_path):
        ask.server.reply = lambda digest: "No."
        with pytest.raises(RemoteError, match=r"48 answers, and no distribution .*\(unparsed 48\)"):
            ask()
        assert Lalm.load(ask.out).raw_answer(0, 0) == "No."
        with pytest.raises(ArtifactError, match="no valid answer at all"):
            m.fuse(m.FuseConfig(lalm=ask.out, source=pipeline.source, out=tmp_path / "f.h5"))
        assert not (tmp_path / "f.h5").exists()

    def test_answers_that_do_not_vary(self, ask, pipeline, tmp_path):
        ask.server.reply = lambda digest: '{"angry": 70, "happy": 10, "neutral": 10, "sad": 10}'
        assert ask().mean_mi == pytest.approx(0, abs=1e-7)
        result = m.fuse(
            m.FuseConfig(lalm=ask.out, source=pipeline.source, out=tmp_path / "f.h5", weighting="mi")
        )
        assert "lalm: answers are identical on 100% of clips" in result.notes[0]

    def test_service_that_refuses_keeps_answers(self, ask):
        digests = []

        def reply(digest):
            digests.append(digest)
            return None if len(digests) <= 10 else (403, {"error": {"message": "quota"}})

        ask.server.reply = reply
        with pytest.raises(RemoteError, match="answers of this run are kept"):
            ask(concurrency=1)
        assert (Lalm.load(ask.out).status == Status.OK).sum() == 10
        with Journal(journal_path(ask.out)) as journal:
            assert journal.accounts()["answered"] == 10
        ask.server.reply = None
        assert ask().asked == 38
