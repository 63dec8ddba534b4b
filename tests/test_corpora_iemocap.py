"""IEMOCAP: what is read from a copy is what was planted, and every known wrong rule for speakers is caught."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import SCENES, iemocap, iemocap_turns, turn, write

from mifuse_cli.corpora import find
from mifuse_cli.corpora.iemocap import CORPUS, read
from mifuse_cli.errors import InputError

LABELS = tuple(CORPUS.labels)
LINE = "[6.2901 - 8.2357]\t{}\tneu\t[2.5000, 2.5000, 2.5000]\n"


def by_id(utterances):
    return sorted(utterances, key=lambda one: one.utt_id)


def labels_in(root, text, session=1):
    return write(root / f"Session{session}/dialog/EmoEvaluation/Ses01F_impro01.txt", text)


def test_what_is_read_is_what_was_planted(tmp_path):
    planted = iemocap(tmp_path)
    assert by_id(read(tmp_path)) == by_id(planted)
    assert all(one.path.is_file() for one in planted)


def test_counts_by_class_part_session_and_speaker(tmp_path):
    iemocap(tmp_path, iemocap_turns("12345", takes=4))
    found = [one for one in read(tmp_path) if one.label in ("ang", "hap", "exc", "neu", "sad")]
    assert Counter(one.label for one in found) == {"ang": 40, "hap": 20, "exc": 20, "neu": 40, "sad": 40}
    assert Counter(one.part for one in found) == {"improvised": 80, "scripted": 80}
    assert Counter(one.session for one in found) == dict.fromkeys("12345", 32)
    assert Counter((one.speaker, one.gender) for one in found) == {
        (f"0{session}{letter}", gender): 16
        for session in "12345"
        for letter, gender in (("F", "female"), ("M", "male"))
    }


def test_the_parent_of_the_release_serves_as_well(tmp_path):
    planted = iemocap(tmp_path / "IEMOCAP_full_release")
    assert by_id(read(tmp_path)) == by_id(planted)


def test_turns_without_audio_have_no_path(tmp_path):
    planted = iemocap(tmp_path)
    planted[0].path.unlink()
    assert [one.utt_id for one in read(tmp_path) if one.path is None] == [planted[0].utt_id]


def test_a_copy_without_any_audio_is_read(tmp_path):
    planted = iemocap(tmp_path, audio=False)
    assert by_id(read(tmp_path)) == by_id(planted)


@pytest.mark.parametrize(
    ("name", "speaker", "part"),
    [
        ("Ses01F_impro01_F000", "01F", "improvised"),
        ("Ses01F_impro01_M003", "01M", "improvised"),
        ("Ses03M_impro05a_F012", "03F", "improvised"),
        ("Ses03M_impro08b_M002", "03M", "improvised"),
        ("Ses05M_script01_1b_F004", "05F", "scripted"),
        ("Ses02F_script01_1_M010", "02M", "scripted"),
        ("Ses04M_script02_2_FXX0", "04F", "scripted"),
        ("Ses05F_script03_2_MXX1", "05M", "scripted"),
    ],
)
def test_names_of_every_kind(tmp_path, name, speaker, part):
    labels_in(tmp_path, LINE.format(name), session=name[4])
    (found,) = read(tmp_path)
    assert (found.utt_id, found.speaker, found.part, found.session) == (name, speaker, part, name[4])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(
            turn,
            st.sampled_from("12345"),
            st.sampled_from(SCENES),
            st.sampled_from("FM"),
            st.from_regex(r"\A([0-9]{3}|XX[0-9])\Z"),
            st.sampled_from(LABELS),
            st.text("abc ’[]:.", max_size=12).map(str.strip),
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda one: one.utt_id,
    )
)
def test_any_turns_survive_the_disk(turns):
    with tempfile.TemporaryDirectory() as root:
        assert by_id(iemocap(Path(root), turns, audio=False)) == by_id(read(Path(root)))


# Speakers. Each rule below is one that a toolkit has or had.


def marker_letter(name):
    """The letter after the session, which is who wore the markers."""
    return name[:6]


def third_to_sixth(name):
    """Again the wearer, by position."""
    return name[3:6]


def by_position(name):
    """Of the turn's letter by its place, which is an underscore if the scene's name is one letter longer."""
    return name[:5] + ("F" if name[18 if "script" in name else 15] == "F" else "M")


def by_recording(name):
    """A split of session 4 by its recordings: in each of them both of its speakers talk."""
    return "valid" if name.startswith("Ses04M") else "train"


def check(utterances):
    """What we promise of speakers: one voice each, and a session has its own."""
    assert len({one.speaker for one in utterances}) == 2 * len({one.utt_id[4] for one in utterances})
    assert all(one.utt_id.rsplit("_", 1)[1][0] == one.speaker[-1] for one in utterances)
    sessions = {}
    for one in utterances:
        assert sessions.setdefault(one.speaker, one.session) == one.session


def groups(utterances, rule):
    together = {}
    for one in utterances:
        together.setdefault(rule(one), set()).add(one.utt_id)
    return sorted(map(sorted, together.values()))


@pytest.fixture(scope="module")
def five_sessions(tmp_path_factory):
    root = tmp_path_factory.mktemp("iemocap")
    iemocap(root, iemocap_turns("12345", takes=5), audio=False)
    return list(read(root))


def test_our_speakers_are_voices_and_stay_in_their_session(five_sessions):
    check(five_sessions)
    assert {one.speaker for one in five_sessions} == {f"0{s}{letter}" for s in "12345" for letter in "FM"}


@pytest.mark.parametrize("rule", [marker_letter, third_to_sixth, by_position])
def test_a_wrong_rule_for_speakers_groups_clips_otherwise_and_is_caught(five_sessions, rule):
    wrong = [replace(one, speaker=rule(one.utt_id)) for one in five_sessions]
    assert groups(wrong, lambda one: one.speaker) != groups(five_sessions, lambda one: one.speaker)
    with pytest.raises(AssertionError):
        check(wrong)


def test_a_split_by_recordings_shares_speakers_and_is_caught(five_sessions):
    split = [replace(one, session=by_recording(one.utt_id)) for one in five_sessions]
    sides = {side: {one.speaker for one in split if one.session == side} for side in ("train", "valid")}
    assert sides["train"] & sides["valid"] == {"04F", "04M"}
    with pytest.raises(AssertionError):
        check(split)


def test_the_rule_by_position_calls_women_men_in_scenes_with_long_names(five_sessions):
    women = [one for one in five_sessions if one.gender == "female" and by_position(one.utt_id)[-1] == "M"]
    assert {one.utt_id.rsplit("_", 1)[0][5:] for one in women} == {"M_impro05a", "M_script01_1b"}


# Published counts


def published(emotions, **where):
    field = next(iter(where.items()), None)
    (known,) = {k.clips for k in CORPUS.known if set(k.emotions) == set(emotions) and k.where == field}
    return known


FOUR = ("angry", "happy", "excited", "neutral", "sad")


def test_published_counts_are_those_of_the_corpus_and_agree():
    assert find("iemocap") is CORPUS
    assert published(()) == 10_039
    assert published(FOUR) == 5531 == 1708 + 1636 + 1103 + 1084
    assert published(("happy",)) + published(("excited",)) == 595 + 1041 == 1636
    assert published(FOUR, part="improvised") + published(FOUR, part="scripted") == 2943 + 2588 == 5531
    kinds = {("neutral",): 1708, ("happy", "excited"): 1636, ("angry",): 1103, ("sad",): 1084}
    totals = {"1": 1085, "2": 1023, "3": 1151, "4": 1031, "5": 1241}
    for session, total in totals.items():
        assert sum(published(kind, session=session) for kind in kinds) == total
        assert published(FOUR, speaker=f"0{session}F") + published(FOUR, speaker=f"0{session}M") == total
    for kind, total in kinds.items():
        assert sum(published(kind, session=session) for session in totals) == total
    assert sum(totals.values()) == 5531


def test_every_emotion_that_is_counted_or_merged_has_a_label():
    emotions = set(CORPUS.labels.values())
    assert {emotion for known in CORPUS.known for emotion in known.emotions} <= emotions
    assert CORPUS.merge.keys() <= emotions
    assert CORPUS.speakers == len(
        [known for known in CORPUS.known if known.where and known.where[0] == "speaker"]
    )


# What cannot be read


@pytest.mark.parametrize(
    "line",
    [
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\n",
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\n",
        LINE.format("Ses01F_impro01_X000"),
        LINE.format("Ses06F_impro01_F000"),
        LINE.format("Ses01F_impro01_F000 extra"),
        "[START - END]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\n",
    ],
)
def test_a_damaged_turn_is_named_with_file_and_line(tmp_path, line):
    path = labels_in(tmp_path, f"% comment\n\n{LINE.format('Ses01F_impro01_F000')}{line}")
    with pytest.raises(InputError) as raised:
        list(read(tmp_path))
    assert f"{path}, line 4: " in str(raised.value)
    assert "expected one like '[6.2901" in str(raised.value)


def test_unknown_codes_are_handed_on(tmp_path):
    labels_in(tmp_path, LINE.format("Ses01F_impro01_F000").replace("neu", "zzz"))
    assert [one.label for one in read(tmp_path)] == ["zzz"]


def test_a_session_without_labels_is_refused(tmp_path):
    iemocap(tmp_path)
    (tmp_path / "Session2/sentences/wav").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"Session2: has no labels, expected dialog/EmoEvaluation/Ses\*\.txt"
    ):
        list(read(tmp_path))


def test_another_directory_is_refused_and_the_right_one_suggested(tmp_path):
    root = tmp_path / "data/IEMOCAP"
    iemocap(root, audio=False)
    for wrong in (root / "Session3", root / "Session3/dialog", tmp_path):
        with pytest.raises(InputError, match=r"is not IEMOCAP: found .*, expected .*Session1") as raised:
            list(read(wrong))
        assert f"Did you mean {root}?" in str(raised.value)
    with pytest.raises(InputError, match=r"cannot be read .*Session1 to Session5"):
        list(read(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found nothing, expected"):
        list(read(tmp_path / "empty"))


def test_two_recordings_of_a_turn_are_refused(tmp_path):
    path = iemocap(tmp_path)[0].path
    write(path.with_suffix(".flac"), b"")
    with pytest.raises(InputError, match=rf"two recordings of {path.stem}, .*\.flac and .*\.wav"):
        list(read(tmp_path))


def test_recordings_whose_file_of_labels_is_empty_are_unlabelled_and_not_forgotten(tmp_path):
    planted = iemocap(tmp_path)
    dialog = planted[0].utt_id.rsplit("_", 1)[0]
    labels_in_it = {one.utt_id for one in planted if one.utt_id.startswith(f"{dialog}_")}
    next(tmp_path.rglob(f"EmoEvaluation/{dialog}.txt")).write_bytes(b"")
    found = {one.utt_id: one.label for one in read(tmp_path)}
    assert found.keys() == {one.utt_id for one in planted}
    assert {name for name, label in found.items() if not label} == labels_in_it
