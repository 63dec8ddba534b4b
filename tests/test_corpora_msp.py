"""MSP-IMPROV and MSP-Podcast: what is read from a copy, in any of its spellings, is what was planted."""

import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import PARTS, clip, msp_improv, msp_improv_clips, msp_podcast, podcast_rows, write

from mifuse_cli.corpora import find
from mifuse_cli.corpora import msp_improv as improv
from mifuse_cli.corpora import msp_podcast as podcast
from mifuse_cli.errors import InputError

FOUR = ("angry", "happy", "neutral", "sad")


def by_id(utterances):
    return sorted(utterances, key=lambda one: one.utt_id)


def published(corpus, emotions, **where):
    field = next(iter(where.items()), None)
    (known,) = {k.clips for k in corpus.known if set(k.emotions) == set(emotions) and k.where == field}
    return known


# MSP-IMPROV


@pytest.mark.parametrize(
    "labels", ["Evaluation.txt", "Evalution.txt", "Human/Evaluation.txt", "Human/Evalution.txt"]
)
@pytest.mark.parametrize("audio", ["", "Audio"])
def test_improv_in_every_layout(tmp_path, labels, audio):
    planted = msp_improv(tmp_path, msp_improv_clips("1", takes=1), labels, audio)
    assert by_id(improv.read(tmp_path)) == by_id(planted)
    assert all(one.path.is_file() for one in planted)


def test_improv_counts_by_label_speaker_session_and_part(tmp_path):
    msp_improv(tmp_path)
    found = list(improv.read(tmp_path))
    assert Counter(one.label for one in found) == {**dict.fromkeys("AHNS", 8), "O": 4, "X": 4}
    assert Counter((one.speaker, one.session, one.gender) for one in found) == {
        ("F01", "1", "female"): 10,
        ("M01", "1", "male"): 10,
        ("F02", "2", "female"): 10,
        ("M02", "2", "male"): 10,
    }
    assert {one.part for one in found} == set(improv.CORPUS.parts) == set(PARTS.values())


def test_improv_labels_are_not_the_emotions_that_were_asked_for(tmp_path):
    msp_improv(tmp_path)
    found = [one for one in improv.read(tmp_path) if one.label in "AHNS"]
    asked = [one.utt_id.split("-")[2][-1] for one in found]
    assert len(found) == 32
    assert not any(letter == one.label for letter, one in zip(asked, found, strict=True))


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("UTD-IMPROV-S01A-F01-S-FM01.avi; N; A:3.000000; V:3.500000; D:3.000000 ; N:4.000000;", "N"),
        ("UTD-IMPROV-S01A-F01-S-FM01.avi; A; A:3.000000; V:3.500000; D:NaN ; N:NaN;", "A"),
        ("UTD-IMPROV-S01A-F01-S-FM01.avi; X; A:3.000000; V:3.500000; D:3.000000 ;", "X"),
        ("UTD-IMPROV-S01A-F01-S-FM01.avi ; H ; A:NaN ; V:3 ;", "H"),
    ],
)
def test_improv_lines_of_every_form(tmp_path, line, label):
    write(tmp_path / "Evaluation.txt", f"{line}\nworkerid-p1; Sad; Sad,; A:3.0; V:4.0; D:3.0; N:4.0;\n\n")
    (found,) = improv.read(tmp_path)
    assert (found.utt_id, found.label, found.path) == ("MSP-IMPROV-S01A-F01-S-FM01", label, None)
    assert (found.speaker, found.session, found.part) == ("F01", "1", "other-improvised")


@pytest.mark.parametrize(
    ("name", "speaker", "part"),
    [
        ("S01A-F01-T-FM01", "F01", "target-improvised"),
        ("S20N-M06-R-MM12", "M06", "target-read"),
        ("S08H-M03-S-MF10", "M03", "other-improvised"),
        ("S13S-F04-P-FF02", "F04", "natural"),
    ],
)
def test_improv_names_of_every_kind(tmp_path, name, speaker, part):
    write(tmp_path / "Evalution.txt", f"UTD-IMPROV-{name}.avi; N; A:3.0; V:3.5; D:3.0 ;\n")
    (found,) = improv.read(tmp_path)
    assert (found.speaker, found.part, found.session) == (speaker, part, speaker[-1])


@pytest.mark.parametrize(
    "line",
    [
        "UTD-IMPROV-S01A-F01-S-FM01.avi; N",
        "UTD-IMPROV-S01A-F01-S-FM01.avi; A:3.0; V:3.5; D:3.0 ;",
        "UTD-IMPROV-S01A-F07-S-FM01.avi; N; A:3.0; V:3.5; D:3.0 ;",
        "UTD-IMPROV-S01A-F01-Q-FM01.avi; N; A:3.0; V:3.5; D:3.0 ;",
    ],
)
def test_improv_names_a_damaged_line(tmp_path, line):
    path = write(tmp_path / "Evaluation.txt", f"\n{line}\n")
    with pytest.raises(InputError, match=f"{path}, line 2: .* is not a clip, expected one like 'UTD-IMPROV-"):
        list(improv.read(tmp_path))


def test_improv_recordings_that_the_labels_do_not_name_are_unlabelled(tmp_path):
    planted = msp_improv(tmp_path, msp_improv_clips("1", takes=1))
    path = tmp_path / "Evaluation.txt"
    path.write_text(path.read_text().replace(planted[0].utt_id.replace("MSP", "UTD"), "x"))
    found = {one.utt_id: one.label for one in improv.read(tmp_path)}
    assert found.keys() == {one.utt_id for one in planted} and found[planted[0].utt_id] == ""


def test_improv_two_recordings_of_a_clip_are_refused(tmp_path):
    planted = msp_improv(tmp_path, [clip("F01", "T", "01", "N")])
    write(tmp_path / "16k" / planted[0].path.name, b"")
    with pytest.raises(
        InputError, match=r"two recordings of MSP-IMPROV-S01A-F01-T-FM01, 16k/.* and session1/"
    ):
        list(improv.read(tmp_path))


def test_improv_suggests_the_directory_that_it_is_in(tmp_path):
    root = tmp_path / "data" / "IMPROV"
    msp_improv(root, [clip("F01", "T", "01", "N")])
    for wrong in (root / "session1", tmp_path):
        with pytest.raises(
            InputError, match=r"is not MSP-IMPROV: found .*Evaluation.txt or Evalution.txt"
        ) as raised:
            list(improv.read(wrong))
        assert f"Did you mean {root}?" in str(raised.value)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.builds(
            clip,
            st.from_regex(r"\A[FM]0[1-6]\Z"),
            st.sampled_from("TRSP"),
            st.integers(1, 20).map("{:02}".format),
            st.sampled_from(tuple(improv.CORPUS.labels)),
        ),
        max_size=6,
        unique_by=lambda one: one.utt_id,
    )
)
def test_improv_any_clips_survive_the_disk(clips):
    with tempfile.TemporaryDirectory() as root:
        assert by_id(msp_improv(Path(root), clips)) == by_id(improv.read(Path(root)))


def test_improv_published_counts_are_those_of_the_corpus_and_agree():
    corpus = find("msp-improv")
    turns = {"target-improvised": 652, "target-read": 620, "other-improvised": 4381, "natural": 2785}
    four = {"angry": 792, "sad": 885, "happy": 2644, "neutral": 3477}
    assert published(corpus, ()) == 8438 == sum(turns.values())
    assert published(corpus, FOUR) == 7798 == sum(four.values()) == 2880 + 4918
    for part, clips in turns.items():
        assert published(corpus, (), part=part) == clips
        assert sum(published(corpus, (emotion,), part=part) for emotion in four) < clips
    for emotion, clips in four.items():
        assert published(corpus, (emotion,)) == clips
        assert sum(published(corpus, (emotion,), part=part) for part in turns) == clips
    assert corpus.speakers == 12


# MSP-Podcast

SPELLINGS = ["labels_consensus.csv", "labels_concensus.csv", "labels_consensus.json", "labels.txt"]


@pytest.mark.parametrize("place", ["Labels/", ""])
@pytest.mark.parametrize("labels", SPELLINGS)
def test_podcast_in_every_spelling(tmp_path, labels, place):
    audio, partitions = ("Audios", "Partitions.txt") if place else ("Audio", "Labels/Partition.txt")
    planted = msp_podcast(tmp_path, None, place + labels, audio, partitions, takes=1)
    assert by_id(podcast.read(tmp_path)) == by_id(planted)
    assert all(one.path.is_file() for one in planted)


def test_podcast_audio_in_another_directory_is_found(tmp_path):
    msp_podcast(tmp_path, audio="wavs")
    assert all(one.path for one in podcast.read(tmp_path) if one.label)


def test_podcast_counts_by_label_speaker_and_partition(tmp_path):
    msp_podcast(tmp_path)
    found = list(podcast.read(tmp_path))
    assert Counter((one.speaker, one.gender, one.split) for one in found) == {
        ("30", "male", "train"): 8,
        ("39", "female", "train"): 8,
        ("41", "female", "development"): 8,
        ("52", "male", "test1"): 8,
        ("", "", "train"): 7,
        ("0x1f", "female", "test2"): 1,
        ("", "", "test3"): 2,
    }
    labels = dict.fromkeys("AHNS", 8) | dict.fromkeys("UFDCX", 1) | {"A": 9, "O": 2, "": 2}
    assert Counter(one.label for one in found) == labels
    assert set(labels) - {""} == set(podcast.CORPUS.labels)
    assert [one.utt_id for one in found if not one.label] == [f"MSP-PODCAST_test3_000{n}" for n in (1, 2)]


LITERAL = """FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set
MSP-PODCAST_0001_0008.wav,N,2.2,4.0,2.6,30,Male,Test1
MSP-PODCAST_0001_0011.wav,N,4.125,4.75,4.0,39,Male,Test1
"""


def test_podcast_literal_table(tmp_path):
    write(tmp_path / "labels_consensus.csv", LITERAL)
    one, two = podcast.read(tmp_path)
    assert (one.utt_id, one.speaker, one.gender) == ("MSP-PODCAST_0001_0008", "30", "male")
    assert (two.utt_id, two.speaker, two.label, two.split) == ("MSP-PODCAST_0001_0011", "39", "N", "test1")


def test_podcast_literal_object_with_what_it_lacks_from_other_files(tmp_path):
    clips = {
        "MSP-PODCAST_0001_0008.wav": {"EmoClass": "N", "EmoAct": "2.2", "SpkrID": 30, "Split_Set": "Test1"},
        "MSP-PODCAST_0001_0009.wav": {"EmoClass": "A", "SpkrID": None},
    }
    write(tmp_path / "Labels/labels_consensus.json", json.dumps(clips))
    write(tmp_path / "Speaker_ids.txt", "Speaker_30; Male\nSpeaker_7; Female\nMSP-PODCAST_0001_0009.wav; 7\n")
    write(
        tmp_path / "Partition.txt",
        "Validation; MSP-PODCAST_0001_0009.wav\nTest3; MSP-PODCAST_test3_0001.wav\n",
    )
    found = [(u.label, u.speaker, u.gender, u.split) for u in podcast.read(tmp_path)]
    assert found == [
        ("N", "30", "male", "test1"),
        ("A", "7", "female", "development"),
        ("", "", "", "test3"),
    ]


def test_podcast_literal_lines(tmp_path):
    write(
        tmp_path / "Labels/labels.txt",
        "MSP-PODCAST_0001_0139.wav; N; A:2.400000; V:4.000000; D:2.800000;\n"
        "WORKER00000001; Other-confused; Concerned,Confused; A:3.000000; V:3.000000; D:4.000000;\n\n",
    )
    (found,) = podcast.read(tmp_path)
    assert (found.utt_id, found.label) == ("MSP-PODCAST_0001_0139", "N")


@pytest.mark.parametrize("word", ["Development", "Validation"])
def test_podcast_both_words_for_the_development_partition(tmp_path, word):
    rows = [{**podcast_rows()[0], "Split_Set": word}]
    msp_podcast(tmp_path, rows)
    assert next(iter(podcast.read(tmp_path))).split == "development"


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(SPELLINGS),
    st.lists(
        st.fixed_dictionaries(
            {
                "FileName": st.from_regex(r"\AMSP-PODCAST_[0-9]{4}_[0-9]{4}\.wav\Z"),
                "EmoClass": st.sampled_from(tuple(podcast.CORPUS.labels)),
                "SpkrID": st.sampled_from(["3", "17", "0x1f", "Unknown"]),
                "Split_Set": st.sampled_from(["Train", "Development", "Validation", "Test1", "Test2"]),
            }
        ).map(lambda row: row | {"Gender": {"3": "Male", "17": "Female"}.get(row["SpkrID"], "Unknown")}),
        min_size=1,
        max_size=5,
        unique_by=lambda row: row["FileName"],
    ),
)
def test_podcast_any_clips_survive_the_disk(labels, rows):
    with tempfile.TemporaryDirectory() as root:
        assert by_id(msp_podcast(Path(root), rows, labels)) == by_id(podcast.read(Path(root)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "labels_consensus.csv",
            "Name,EmoClass\na,N\n",
            r"has no column 'FileName' \(found: Name, EmoClass\)",
        ),
        ("labels_consensus.csv", "", r"has no column 'FileName' or 'EmoClass' \(found: nothing\)"),
        (
            "labels_consensus.csv",
            f"{LITERAL}MSP-PODCAST_1.wav,N\n",
            "line 4: expected 8 values",
        ),
        ("labels_consensus.csv", 'FileName,EmoClass\n"a,N\n', "cannot be read as CSV .*line 2"),
        (
            "labels_consensus.csv",
            f"{LITERAL}a.wav,N,1,1,1,3,Male,Test9\n",
            "'Test9', expected one of Train, Dev",
        ),
        ("labels_consensus.json", "[1]", "cannot be read as a JSON object of clips"),
        ("labels_consensus.json", '{"a": ', "cannot be read as a JSON object of clips"),
        (
            "labels.txt",
            "\nMSP-PODCAST_0001_0139.wav, N\n",
            r"labels\.txt, line 2: 'MSP-.* separated by semicolons",
        ),
    ],
)
def test_podcast_names_what_cannot_be_read(tmp_path, name, text, message):
    write(tmp_path / "Labels" / name, text)
    with pytest.raises(InputError, match=message):
        list(podcast.read(tmp_path))


@pytest.mark.parametrize("name", ["Partitions.txt", "Speaker_ids.txt"])
def test_podcast_names_a_damaged_line_of_the_other_files(tmp_path, name):
    write(tmp_path / "Labels/labels_consensus.csv", LITERAL)
    write(tmp_path / name, "Read me first.\nMSP-PODCAST_0001_0008.wav\n")
    with pytest.raises(InputError, match=rf"{re.escape(name)}, line 2: 'MSP-PODCAST_0001_0008\.wav'"):
        list(podcast.read(tmp_path))


def test_podcast_suggests_the_directory_that_it_is_in(tmp_path):
    root = tmp_path / "data" / "PODCAST"
    msp_podcast(root, podcast_rows()[:1])
    for wrong in (root / "Audios", tmp_path):
        with pytest.raises(
            InputError, match=r"is not MSP-Podcast: found .*expected one of labels_con"
        ) as raised:
            list(podcast.read(wrong))
        assert f"Did you mean {root}?" in str(raised.value)


@pytest.mark.slow
def test_podcast_of_the_largest_release_is_read_in_seconds(tmp_path):
    header, row, _ = LITERAL.splitlines()
    rows = (row.replace("0001_0008", f"{n:04}_{n:06}") for n in range(265_000))
    write(tmp_path / "Labels/labels_consensus.csv", "\n".join([header, *rows]))
    start = time.process_time()
    assert sum(one.label == "N" for one in podcast.read(tmp_path)) == 265_000
    assert time.process_time() - start < 60


def test_podcast_published_counts_are_those_of_release_1_8():
    corpus = find("msp-podcast")
    table = {
        "train": (1839, 8564, 16518, 1680),
        "development": (621, 1320, 2529, 302),
        "test1": (622, 3475, 4702, 505),
        "test2": (136, 926, 2260, 161),
    }
    for split, row in table.items():
        assert tuple(published(corpus, (emotion,), split=split) for emotion in FOUR) == row
    assert corpus.partitions == ("train", "development", "test1", "test2", "test3")
    assert "1.8" in corpus.note and "excited" in corpus.note
