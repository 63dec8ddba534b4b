"""From answers in the journal to arrays."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import asked_about, completion, keep, opened

from mifuse_cli.audio import Excerpt
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.arrays import USAGE, answer_arrays
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.questions.clips import AskedClip
from mifuse_cli.lalm.questions.prompts import Wording
from mifuse_cli.lalm.questions.question_options import QuestionOptions

CLASSES = ("neutral", "angry", "sad", "happy")
FORM = QuestionOptions("api.example", "m-1", Wording(), CLASSES)
UNKNOWN = [-1] * len(USAGE)
FRESH = itertools.count()  # for clips that no other example asked about
MUTE = "It is hard to tell from this."
REFUSED = {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]}


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        yield journal


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A journal for many examples, which ask about clips of their own."""
    with Journal(tmp_path_factory.mktemp("collect") / "j.sqlite") as journal:
        yield journal


def clip(name="a", sha256="00" * 32, pieces=(1.5,), **more):
    return AskedClip(
        name, sha256, sum(pieces), 16000, 48044, Excerpt(Path(f"{name}.wav")), pieces=pieces, **more
    )


def says(*shares, classes=CLASSES):
    """An answer by the shares of the classes."""
    return json.dumps(dict(zip(classes, shares, strict=True)))


def usage(prompt=-1, completion=-1, total=-1):
    known = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return {name: number for name, number in known.items() if number >= 0}


def put(journal, ask, *texts, spent=None, choices=None):
    body = completion(*texts, usage=usage(10, 5, 15) if spent is None else spent)
    keep(journal, ask.key, body, choices=choices or range(len(texts)), settled=True)


def reject(journal, ask, said="audio cannot be decoded"):
    journal.fail(journal.begin(ask.key, 1).result(), 400, said, rejected=True).result()


class TestSamples:
    def test_all_that_can_become_of_them(self, journal):
        clips = [clip("a"), clip("b", "11" * 32), clip("c", "22" * 32, ())]
        plan = opened(journal, FORM, 3)
        asks = list(asked_about(plan, clips))
        put(journal, asks[0], says(10, 70, 10, 10), spent=usage(10, 5, 15))
        put(journal, asks[1], MUTE, spent=usage(10))
        keep(journal, asks[2].key, REFUSED, settled=True)
        reject(journal, asks[3])
        keep(journal, asks[4].key, b"<html>", settled=True)
        block = answer_arrays(clips, plan)
        ok, mute, refused, rejected = Status.OK, Status.UNPARSED, Status.REFUSED, Status.REJECTED
        missing, skipped = Status.MISSING, Status.SKIPPED
        assert block.status.tolist() == [[ok, mute, refused], [rejected, missing, missing], [skipped] * 3]
        assert block.probs[0, 0].tolist() == pytest.approx([0.1, 0.7, 0.1, 0.1])
        assert np.isnan(block.probs.reshape(9, 4)[1:]).all()
        assert block.usage[0].tolist() == [[10, 5, 15, -1, -1], [10, -1, -1, -1, -1], UNKNOWN]
        assert (block.usage[1:] == -1).all()
        assert block.texts == [[says(10, 70, 10, 10).encode(), MUTE.encode(), b"No."], [b""] * 3, [b""] * 3]
        assert block.order[:2].reshape(6, 4).tolist() == [list(ask.order) for ask in asks]
        assert block.flags == {"percent": 1}
        assert block.rejection == "audio cannot be decoded"
        kinds = [block.probs.dtype, block.status.dtype, block.order.dtype, block.usage.dtype]
        assert kinds == [np.float32, np.uint8, np.uint8, np.int32]

    def test_nothing_was_asked_yet(self, journal):
        block = answer_arrays([clip()], opened(journal, FORM, 2))
        assert block.probs.shape == (1, 2, 4) and block.usage.shape == (1, 2, 5)
        assert (block.status == Status.MISSING).all() and block.rejection == ""
        assert answer_arrays([], opened(journal, FORM, 2)).probs.shape == (0, 2, 4)

    def test_the_order_of_the_classes_is_that_of_the_form(self, journal):
        put(journal, next(asked_about(opened(None, FORM, 1), [clip()])), says(10, 60, 20, 10))
        others = ("sad", "neutral", "happy", "angry")
        block = answer_arrays([clip()], opened(journal, replace(FORM, classes=others), 1))
        first = answer_arrays([clip()], opened(journal, FORM, 1))
        assert block.probs[0, 0].tolist() == pytest.approx([0.2, 0.1, 0.1, 0.6])
        assert [others[i] for i in block.order[0, 0]] == [CLASSES[i] for i in first.order[0, 0]]

    def test_twins_share_answers_and_rejections(self, journal):
        clips = [clip("a"), clip("b", twin=True)]
        plan = opened(journal, FORM, 2)
        one, two = asked_about(plan, clips[:1])
        put(journal, one, says(100, 0, 0, 0))
        reject(journal, two)
        block = answer_arrays(clips, plan)
        assert block.status.tolist() == [[Status.OK, Status.REJECTED]] * 2
        np.testing.assert_array_equal(block.probs[0], block.probs[1])

    def test_an_answer_after_a_rejection_counts(self, journal):
        plan = opened(journal, FORM, 1)
        (ask,) = asked_about(plan, [clip()])
        reject(journal, ask)
        put(journal, ask, says(100, 0, 0, 0))
        block = answer_arrays([clip()], plan)
        assert (block.status[0, 0], block.rejection) == (Status.OK, "")


class TestChoices:
    def test_one_response_is_counted_once(self, journal):
        plan = opened(journal, replace(FORM, choices_per_request=3), 6)
        first, second = asked_about(plan, [clip()])
        put(journal, first, says(100, 0, 0, 0), says(0, 100, 0, 0), MUTE, spent=usage(30, 9, 39))
        put(journal, second, says(0, 0, 100, 0), says(0, 0, 0, 100), spent=usage(31, 6, 37))
        put(journal, second, says(50, 50, 0, 0), spent=usage(32, 3, 35), choices=(2,))
        block = answer_arrays([clip()], plan)
        assert block.status[0].tolist() == [1, 1, Status.UNPARSED, 1, 1, 1]
        np.testing.assert_array_equal(block.probs[0, [0, 1, 3, 4]], np.eye(4))
        assert block.usage[0, :, 0].tolist() == [30, 0, 0, 31, 0, 32]
        assert block.usage[0].sum(axis=0)[:3].tolist() == [93, 18, 111]
        assert block.order[0].tolist() == [list(first.order)] * 3 + [list(second.order)] * 3

    def test_the_rest_may_be_rejected(self, journal):
        plan = opened(journal, replace(FORM, choices_per_request=3), 3)
        (ask,) = asked_about(plan, [clip()])
        put(journal, ask, says(100, 0, 0, 0))
        reject(journal, ask)
        block = answer_arrays([clip()], plan)
        assert block.status[0].tolist() == [Status.OK, Status.REJECTED, Status.REJECTED]

    def test_those_beyond_what_was_asked_for_are_nobody_s(self, journal):
        plan = opened(journal, replace(FORM, choices_per_request=2), 2)
        put(journal, next(asked_about(plan, [clip()])), *[says(100, 0, 0, 0)] * 5)
        assert answer_arrays([clip()], plan).status.tolist() == [[Status.OK] * 2]


class TestAskedAgain:
    def again(self, journal, *tries):
        """Answer the first question and those that follow from it; each try is a text and a usage."""
        plan = opened(journal, FORM, 1, reask=9, reask_refused=9)
        first, *rest = tries
        put(journal, next(asked_about(plan, [clip()])), first[0], spent=first[1])
        for text, spent in rest:
            ((ask, _),) = plan.due_again([clip()])
            put(journal, ask, text, spent=spent)
        return answer_arrays([clip()], plan)

    def test_the_first_readable_answer_counts_and_all_are_paid_for(self, journal):
        good = says(0, 0, 0, 100)
        block = self.again(journal, (MUTE, usage(10, 4, 14)), ("", usage(11, 5)), (good, usage(12, 6, 18)))
        assert block.status.tolist() == [[Status.OK]]
        assert block.probs[0, 0].tolist() == [0, 0, 0, 1]
        assert block.texts == [[good.encode()]]
        assert block.usage[0, 0].tolist() == [33, 15, 32, -1, -1]

    def test_without_one_the_first_tells_why(self, journal):
        block = self.again(journal, ("sad", usage()), (MUTE, usage(1, 1, 2)))
        assert block.status.tolist() == [[Status.LABEL_ONLY]]
        assert block.texts == [[b"sad"]]
        assert block.usage[0, 0].tolist() == [1, 1, 2, -1, -1]

    def test_who_does_not_ask_again_still_uses_what_there_is(self, journal):
        self.again(journal, (MUTE, usage()), (says(100, 0, 0, 0), usage()))
        assert answer_arrays([clip()], opened(journal, FORM, 1)).status.tolist() == [[Status.OK]]


class TestPieces:
    @given(
        seconds=st.lists(st.floats(0.1, 30), min_size=2, max_size=4),
        rows=st.lists(st.lists(st.integers(1, 100), min_size=4, max_size=4), min_size=4, max_size=4),
    )
    @settings(max_examples=25, deadline=None)
    def test_a_sample_is_their_mean_by_length(self, shared, seconds, rows):
        one = clip(sha256=f"{next(FRESH):064x}", pieces=tuple(seconds))
        plan, rows = opened(shared, FORM, 1), np.array(rows[: len(seconds)], dtype=float)
        shares = rows / rows.sum(axis=1, keepdims=True)
        for ask, row in zip(asked_about(plan, [one]), shares, strict=True):
            put(shared, ask, says(*row), spent=usage(10, 5))
        block = answer_arrays([one], plan)
        mean = sum(s * row for s, row in zip(seconds, shares, strict=True)) / sum(seconds)
        assert block.status.tolist() == [[Status.OK]]
        np.testing.assert_allclose(block.probs[0, 0], mean, rtol=1e-5)
        assert block.usage[0, 0].tolist() == [10 * len(rows), 5 * len(rows), -1, -1, -1]
        assert block.texts[0][0].count(b"\n") == len(rows) - 1

    @pytest.mark.parametrize(
        ("second", "status"),
        [
            (lambda journal, ask: None, Status.MISSING),
            (reject, Status.REJECTED),
            (lambda journal, ask: put(journal, ask, MUTE), Status.UNPARSED),
            (lambda journal, ask: keep(journal, ask.key, REFUSED, settled=True), Status.REFUSED),
        ],
    )
    def test_a_sample_without_one_of_them_has_no_distribution(self, journal, second, status):
        one = clip(pieces=(1.0, 1.0, 1.0))
        plan = opened(journal, FORM, 2)
        asks = list(asked_about(plan, [one]))
        for ask in asks:
            if (ask.piece, ask.first) == (1, 1):
                second(journal, ask)
            else:
                put(journal, ask, says(100, 0, 0, 0))
        block = answer_arrays([one], plan)
        assert block.status.tolist() == [[Status.OK, status]]
        assert block.probs[0, 0].tolist() == [1, 0, 0, 0] and np.isnan(block.probs[0, 1]).all()

    def test_a_piece_asked_again_counts_like_any_other(self, journal):
        one = clip(pieces=(1.0, 3.0))
        plan = opened(journal, FORM, 1, reask=1)
        first, second = asked_about(plan, [one])
        put(journal, first, says(100, 0, 0, 0))
        put(journal, second, MUTE)
        ((again, _),) = plan.due_again([one])
        put(journal, again, says(0, 100, 0, 0))
        block = answer_arrays([one], plan)
        assert block.probs[0, 0].tolist() == [0.25, 0.75, 0, 0]
        assert block.usage[0, 0].tolist() == [30, 15, 45, -1, -1]
