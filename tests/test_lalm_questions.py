"""Which questions there are: their keys, who is asked again, and what a survey makes of them."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted import asked_about, completion, keep, opened

from mifuse_cli.audio import Excerpt
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.answers.response import Response
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.questions.clips import AskedClip, AudioOptions
from mifuse_cli.lalm.questions.plan import LONGER
from mifuse_cli.lalm.questions.prompts import DEFAULT_SYSTEM, DEFAULT_TEMPLATE, Wording
from mifuse_cli.lalm.questions.question_options import QuestionOptions

CLASSES = ("neutral", "angry", "sad", "happy")
FORM = QuestionOptions("api.example:80", "m-1", Wording(), CLASSES)
NAMES = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=6, unique=True
)
SHA = st.binary(min_size=32, max_size=32).map(bytes.hex)

OK = completion('{"angry": 70, "sad": 10, "neutral": 10, "happy": 10}')
MUTE = completion("It is hard to tell from this.")
REFUSED = {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]}
CUT = {"choices": [{"message": {"content": '{"angry": 7'}, "finish_reason": "length"}]}


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        yield journal


def clip(name="a", sha256="00" * 32, pieces=(1.5,), **more):
    return AskedClip(name, sha256, 1.5, 16000, 48044, Excerpt(Path(f"{name}.wav")), pieces=pieces, **more)


def keys(form=FORM, one=None, n=6):
    return [ask.key for ask in asked_about(opened(None, form, n), [one or clip()])]


def answer(journal, wanted, body):
    for ask, choices in wanted:
        keep(journal, ask.key, body, choices=choices[: len(body["choices"])], settled=True)


class TestKeys:
    @given(SHA, NAMES, st.integers(1, 12), st.sampled_from([0, 0.7, 1.0, 1.5]), st.randoms())
    @settings(max_examples=50)
    @example("ab" * 32, ["angry", "happy", "neutral", "sad"], 5, 1.0, None)
    def test_they_are_those_of_the_first_version(self, sha256, classes, n, temperature, shuffled):
        """Answers that it got would otherwise be paid for once more."""

        def digest(text):
            return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

        spec = {
            "classes": sorted(classes), "elicit": "verbalized", "host": "api.example:80", "key_version": 1,
            "max_completion_tokens": 256, "model": "m-1", "system": DEFAULT_SYSTEM,
            "temperature": int(temperature) if temperature == int(temperature) else temperature,
            "template": DEFAULT_TEMPLATE,
        }  # fmt: skip
        spec_hash = digest(json.dumps(spec, ensure_ascii=False, separators=(",", ":")))
        expected, k = [], len(classes)
        for sample in range(n):
            seed = hashlib.shake_256(f"{sha256}|{sample // k}".encode()).digest(16 + 2 * k)
            draw, order = int.from_bytes(seed, "big"), list(range(k))
            for last in reversed(range(1, k)):
                draw, other = divmod(draw, last + 1)
                order[last], order[other] = order[other], order[last]
            order = order[sample % k :] + order[: sample % k]
            places = ",".join(map(str, order))
            expected.append(
                (digest(f"1|{sha256}|{spec_hash}|{sample}|{places}"), [spec["classes"][i] for i in order])
            )
        if shuffled:
            shuffled.shuffle(classes)  # the order of the classes is not part of the question
        plan = opened(journal, replace(FORM, classes=tuple(classes), temperature=temperature), n)
        asks = list(asked_about(plan, [clip(sha256=sha256)]))
        assert plan.options.spec_hash == spec_hash
        assert [(ask.key, [classes[i] for i in ask.order]) for ask in asks] == expected

    @pytest.mark.parametrize(
        "change",
        [
            {"host": "other"}, {"model": "m-2"}, {"temperature": 0.9}, {"classes": (*CLASSES, "fear")},
            {"wording": Wording(system="")}, {"wording": Wording(template="{labels}?")}, {"elicit": "label"},
            {"max_tokens": 99}, {"json_schema": True}, {"choices_per_request": 2}, {"seed": 0}, {"seed": 1},
            {"audio": AudioOptions(upload="mp3")},
        ],
    )  # fmt: skip
    def test_what_changes_the_question_changes_them(self, change):
        assert not set(keys()) & set(keys(replace(FORM, **change)))

    @pytest.mark.parametrize(
        "change",
        [{"accept_label_only": True}, {"wording": Wording(refused="Please.")}, {"max_tokens": 256}],
    )
    def test_what_does_not_change_it_does_not(self, change):
        assert keys() == keys(replace(FORM, **change))

    def test_clips_differ_by_audio_context_and_pieces_alone(self):
        assert keys() == keys(
            one=replace(clip("b"), duration=9.0, file_sha256="ff", excerpt=Excerpt(Path("b.flac")))
        )
        others = [clip(sha256="11" * 32), clip(context="hello"), clip(context="hullo"), clip(pieces=(0.75, 0.75)),
                  clip(pieces=(0.5,) * 3)]  # fmt: skip
        found = [key for one in (clip(), *others) for key in keys(one=one)]
        assert len(found) == len(set(found)) == 6 * (1 + 3 + 2 + 3)

    @given(st.integers(1, 4), st.integers(1, 5))
    def test_every_sample_is_asked_for_once(self, choices, requests):
        plan = opened(journal, replace(FORM, choices_per_request=choices), choices * requests)
        for pieces in [(), (1.5,), (0.75, 0.75)]:
            asks = list(asked_about(plan, [clip(pieces=pieces)]))
            for piece, seconds in enumerate(pieces):
                mine = [ask for ask in asks if ask.piece == piece]
                samples = [ask.first + choice for ask in mine for choice in range(ask.choices)]
                assert samples == list(range(choices * requests))
                assert {ask.seconds for ask in mine} == {seconds}
            assert len({(ask.first, ask.order) for ask in asks}) == (requests if pieces else 0)
            assert len(asks) == len(pieces) * requests == len({ask.key for ask in asks})

    def test_names_are_for_people(self):
        one, two = asked_about(opened(None, FORM, 2), [clip()])
        assert (one.name, two.name) == ("a, sample 1", "a, sample 2")
        assert (
            list(asked_about(opened(None, FORM, 1), [clip(pieces=(1, 1))]))[1].name == "a, piece 2, sample 1"
        )


class TestMissing:
    def test_growing_from_5_to_8_asks_three_more(self, journal):
        clips = [clip("a"), clip("b", "11" * 32)]
        wanted = list(opened(journal, FORM, 5).missing(clips))
        assert len(wanted) == 10
        answer(journal, wanted, OK)
        assert list(opened(journal, FORM, 5).missing(clips)) == []
        more = list(opened(journal, FORM, 8).missing(clips))
        assert [(ask.clip.utt_id, ask.first, choices) for ask, choices in more] == [
            (name, sample, (0,)) for name in "ab" for sample in (5, 6, 7)
        ]

    def test_of_several_choices_the_lacking_ones(self, journal):
        plan = opened(journal, replace(FORM, choices_per_request=3), 6)
        first, second = asked_about(plan, [clip()])
        keep(journal, first.key, completion("a", "b"), choices=(0, 1), settled=True)
        keep(journal, second.key, b"<html>", settled=True)
        assert list(plan.missing([clip()])) == [(first, (2,)), (second, (0, 1, 2))]

    def test_twins_and_clips_left_out_are_not_asked_about(self, journal):
        clips = [clip("a"), clip("b", twin=True), clip("c", "11" * 32, pieces=())]
        assert {ask.clip.utt_id for ask, _ in opened(journal, FORM, 2).missing(clips)} == {"a"}


class TestAgain:
    @pytest.mark.parametrize(
        ("body", "reask", "refused", "asked"),
        [
            (OK, 9, 9, 0),
            (MUTE, 2, 0, 2),
            (MUTE, 0, 9, 0),
            (REFUSED, 0, 3, 3),
            (REFUSED, 9, 0, 0),
            (CUT, 1, 0, 1),
        ],
    )
    def test_as_often_as_told_for_the_first_reason(self, journal, body, reask, refused, asked):
        plan = opened(journal, FORM, 2, reask=reask, reask_refused=refused)
        assert list(plan.due_again([clip()])) == []  # what was never answered is not asked again, but asked
        answer(journal, plan.missing([clip()]), body)
        seen = set(keys(n=2))
        for again in range(1, asked + 1):
            wanted = list(plan.due_again([clip()]))
            assert [(ask.first, ask.again, choices) for ask, choices in wanted] == [
                (0, again, (0,)),
                (1, again, (0,)),
            ]
            for ask, _ in wanted:
                assert ask.order == list(asked_about(plan, [clip()]))[ask.first].order
                assert ask.extra == (FORM.wording.refused if body is REFUSED else "")
                assert ask.longer == (body is CUT)
                assert ask.name == f"a, sample {ask.first + 1}" + ", again" * again
                assert ask.key not in seen
                seen.add(ask.key)
            assert list(plan.due_again([clip()])) == wanted  # as long as there is no answer
            answer(journal, wanted, MUTE if again % 2 else body)
        assert list(plan.due_again([clip()])) == []
        assert list(plan.missing([clip()])) == []

    def test_until_one_can_be_read(self, journal):
        plan = opened(journal, FORM, 2, reask=5)
        answer(journal, plan.missing([clip()]), MUTE)
        answer(journal, [next(plan.due_again([clip()]))], OK)
        assert [ask.first for ask, _ in plan.due_again([clip()])] == [1]
        tries = plan.answers(asked_about(plan, [clip()]))
        found = [[one.parsed.status for one in some] for some in tries.values()]
        assert sorted(found, key=len) == [[Status.UNPARSED], [Status.UNPARSED, Status.OK]]

    def test_one_choice_of_several_is_asked_again_alone(self, journal):
        plan = opened(journal, replace(FORM, choices_per_request=3), 6, reask=1)
        texts = [one["choices"][0]["message"]["content"] for one in (OK, MUTE, OK)]
        answer(journal, plan.missing([clip()]), completion(*texts))
        wanted = list(plan.due_again([clip()]))
        assert [(ask.first, ask.choices, choices) for ask, choices in wanted] == [(1, 1, (0,)), (4, 1, (0,))]
        answer(journal, wanted, OK)
        assert list(plan.due_again([clip()])) == []
        tries = plan.answers(asked_about(plan, [clip()]))
        assert [len(tries[key, choice]) for key, choice in tries] == [1, 2, 1] * 2

    def test_a_reason_changes_the_form_of_the_question_but_not_its_key(self, journal):
        one = clip()
        plan = opened(journal, FORM, 1, reask=1, reask_refused=1)
        (ask,) = asked_about(plan, [one])
        found = []
        for body in (MUTE, CUT, REFUSED):
            keep(journal, ask.key, body, settled=True)
            journal.execute("UPDATE answer SET outcome = 'ok'").result()
            found += [again for again, _ in plan.due_again([one])]
            journal.execute("DELETE FROM answer").result()
        assert [(again.longer, bool(again.extra)) for again in found] == [
            (False, False),
            (True, False),
            (False, True),
        ]
        # Else a parser that sees another reason would have it asked, and paid, once more.
        assert len({again.key for again in found}) == 1


class TestSurvey:
    @pytest.fixture
    def survey(self, journal):
        journal.add_clips(1, [clip("a"), clip("b", context="hello"), clip("c")])
        journal.mark_twins(1)
        return opened(journal, replace(FORM, seed=77, choices_per_request=2), 4, reask=1)

    def test_questions_carry_all_that_a_request_needs(self, survey, journal):
        asked = list(survey.requests())
        assert [one.name for one in asked] == [f"{c}, sample {n}" for c in "ab" for n in (1, 3)]
        assert [one.choices for one in asked] == [(0, 1)] * 4
        assert {one.fields["temperature"] for one in asked} == {1.0}
        assert len({one.fields["seed"] for one in asked}) == 4
        assert all(0 <= one.fields["seed"] < 2**31 for one in asked)
        assert [one.fields for one in survey.requests()] == [one.fields for one in asked]
        assert asked[2].text_bytes > asked[0].text_bytes > len(DEFAULT_SYSTEM + DEFAULT_TEMPLATE)
        assert asked[0].read(Response.of(OK), 0).parsed.status is Status.OK

    def test_what_was_cut_off_may_be_longer_the_next_time(self, survey, journal):
        for one in survey.requests():
            keep(journal, one.key, CUT, settled=True)
        first, rest = next(survey.requests_again()), next(survey.requests())
        assert (first.length, rest.length) == (LONGER, 1)
        assert first.fields["max_completion_tokens"] == LONGER * rest.fields["max_completion_tokens"]

    def test_the_rest_of_a_question_has_a_seed_of_its_own(self, survey, journal):
        first = next(survey.requests())
        keep(journal, first.key, OK, settled=True)
        rest = next(survey.requests())
        assert (rest.key, rest.choices) == (first.key, (1,))
        assert rest.fields["seed"] == first.fields["seed"] ^ 1

    def test_volume_counts_what_is_missing_or_all(self, survey, journal):
        whole = survey.volume()
        assert (whole.requests, whole.answers, whole.seconds) == (4, 8, 4 * 1.5)
        keep(journal, next(survey.requests()).key, OK, settled=True)
        assert (survey.volume().requests, survey.volume().answers) == (4, 7)
        assert survey.volume(missing=False) == whole
