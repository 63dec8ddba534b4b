"""Corpora that say all in file names: CREMA-D, RAVDESS, EMO-DB, nEMO."""

import csv
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trees_coded
from hypothesis import given, settings
from hypothesis import strategies as st

from mifuse_cli.corpora import Utterance, find
from mifuse_cli.errors import InputError

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "corpora"
NAMES = ("crema-d", "ravdess", "emodb", "nemo")
TREES = {
    "crema-d": trees_coded.crema_d,
    "ravdess": trees_coded.ravdess,
    "emodb": trees_coded.emodb,
    "nemo": trees_coded.nemo,
}


def read(name: str, root: Path) -> dict[str, Utterance]:
    """Utterances by id, none of which may stand twice."""
    found = list(find(name).read(root))
    by_id = {one.utt_id: one for one in found}
    assert len(by_id) == len(found)
    return by_id


def emotions(name: str, utterances: dict[str, Utterance]) -> Counter[str]:
    labels = find(name).labels
    assert labels is not None
    return Counter(labels[one.label] for one in utterances.values())


@pytest.mark.parametrize(
    ("name", "stem", "speaker", "emotion", "gender", "part"),
    [
        ("crema-d", "1001_DFA_ANG_XX", "1001", "angry", "male", ""),
        ("crema-d", "1002_IEO_SAD_MD", "1002", "sad", "female", ""),
        ("crema-d", "1040_ITH_SAD_X", "1040", "sad", "", ""),
        ("ravdess", "03-01-05-01-01-01-01", "01", "angry", "male", "speech"),
        ("ravdess", "03-02-02-01-02-01-02", "02", "calm", "female", "song"),
        ("emodb", "03a01Wa", "03", "angry", "male", ""),
        ("emodb", "08b10Td", "08", "sad", "female", ""),
        ("emodb", "16b09N", "16", "neutral", "female", ""),
        ("nemo", "KD0_anger_10", "KD0", "angry", "female", ""),
        ("nemo", "WR0_surprised_64", "WR0", "surprised", "male", ""),
    ],
)
def test_a_file_name_tells_all(tmp_path, name, stem, speaker, emotion, gender, part):
    one = read(name, TREES[name](tmp_path))[stem]
    assert (one.speaker, find(name).labels[one.label], one.gender, one.part) == (
        speaker,
        emotion,
        gender,
        part,
    )
    assert one.path.name == f"{stem}.wav" and one.path.is_file()


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("crema-d", {"angry": 1, "disgusted": 1, "fearful": 1, "happy": 1, "neutral": 1, "sad": 2}),
        (
            "ravdess",
            dict.fromkeys(("neutral", "calm", "happy", "sad", "angry", "fearful"), 4)
            | {"disgusted": 2, "surprised": 2},
        ),
        (
            "emodb",
            {"angry": 1, "bored": 1, "disgusted": 1, "fearful": 1, "happy": 1, "sad": 1, "neutral": 2},
        ),
        ("nemo", dict.fromkeys(("angry", "fearful", "happy", "neutral", "sad", "surprised"), 1)),
    ],
)
def test_everything_planted_is_found_and_nothing_else(tmp_path, name, planted):
    assert emotions(name, read(name, TREES[name](tmp_path))) == planted


@pytest.mark.parametrize(
    ("name", "total", "four", "speakers"),
    [
        ("crema-d", 7442, 4900, 91),
        ("ravdess", 1440, 672, 24),
        ("emodb", 535, 339, 10),
        ("nemo", 4481, 3076, 9),
    ],
)
def test_published_counts_agree_with_each_other(name, total, four, speakers):
    corpus = find(name)
    assert corpus.name == name and corpus.speakers == speakers
    (everything,) = (known.clips for known in corpus.known if not known.emotions)
    single = {known.emotions[0]: known.clips for known in corpus.known if known.emotions}
    assert everything == total
    assert sum(single[emotion] for emotion in ("angry", "happy", "neutral", "sad")) == four
    assert set(single) <= set(corpus.labels.values())
    if set(single) == set(corpus.labels.values()):
        assert sum(single.values()) == total
    assert {known.where for known in corpus.known} == {("part", "speech") if name == "ravdess" else None}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".flac", ".WAV"])
def test_any_layout_and_format_is_read(tmp_path, name, suffix):
    found = read(name, TREES[name](tmp_path / "release"))
    for stem in found:
        other = tmp_path / "other" / "deep" / f"{stem}{suffix}"
        other.parent.mkdir(parents=True, exist_ok=True)
        other.touch()
    moved = read(name, tmp_path / "other")
    assert {i: (one.speaker, one.label, one.part) for i, one in moved.items()} == {
        i: (one.speaker, one.label, one.part) for i, one in found.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_another_corpus_is_refused(tmp_path, name):
    other = trees_coded.emodb if name != "emodb" else trees_coded.nemo
    with pytest.raises(InputError, match=r"all of them are not named like .*\.wav, first .*\.wav\. Give"):
        read(name, other(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_does_not_belong_is_named(tmp_path, name):
    root = TREES[name](tmp_path)
    first = min(one.path for one in read(name, root).values())
    trees_coded.wav(first.with_name("noise-1.wav"))
    with pytest.raises(InputError, match=r"holds 1 audio files that are not named like .*noise-1\.wav"):
        read(name, root)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_there(tmp_path, name):
    with pytest.raises(InputError, match=r"holds no audio\. Expected files like"):
        read(name, tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        read(name, tmp_path / "gone")


@pytest.mark.parametrize(
    ("name", "stem", "code"),
    [
        ("crema-d", "1001_DFA_EXC_XX", "EXC"),
        ("ravdess", "03-01-09-01-01-01-01", "09"),
        ("emodb", "03a01Xa", "X"),
        ("nemo", "KD0_disgust_10", "disgust"),
    ],
)
def test_an_unknown_code_is_left_to_the_caller(tmp_path, name, stem, code):
    trees_coded.wav(tmp_path / f"{stem}.wav")
    assert read(name, tmp_path)[stem].label == code
    assert code not in find(name).labels


def test_crema_d_may_be_named_by_its_audio(tmp_path):
    root = trees_coded.crema_d(tmp_path)
    assert read("crema-d", root / "AudioWAV") == read("crema-d", root)
    mp3 = read("crema-d", root / "AudioMP3")
    assert mp3.keys() == read("crema-d", root).keys()


def test_crema_d_does_without_demographics_but_not_with_broken_ones(tmp_path):
    root = trees_coded.crema_d(tmp_path)
    (root / "VideoDemographics.csv").unlink()
    assert {one.gender for one in read("crema-d", root).values()} == {""}
    trees_coded.text(root / "VideoDemographics.csv", "ActorID,Age", "1001,51")
    with pytest.raises(InputError, match=r"no column 'Sex' \(found: ActorID, Age\)\. Take the file"):
        read("crema-d", root)


def test_ravdess_is_heard_in_the_audio_release_alone(tmp_path):
    root = trees_coded.ravdess(tmp_path)
    found = read("ravdess", root)
    assert Counter(one.part for one in found.values()) == {"speech": 16, "song": 12}
    assert Counter(one.speaker for one in found.values()) == {"01": 14, "02": 14}
    with pytest.raises(InputError, match="sound of the videos only"):
        read("ravdess", root / "Video_Speech_Actor_01")


def test_ravdess_of_kaggle_is_given_twice_for_the_caller_to_refuse(tmp_path):
    found = list(find("ravdess").read(trees_coded.ravdess_of_kaggle(tmp_path)))
    assert set(Counter(one.utt_id for one in found).values()) == {2}
    assert len({one.path for one in found}) == len(found) == 32


def test_nemo_tells_what_is_said_and_what_is_missing(tmp_path):
    root = trees_coded.nemo(tmp_path, "TP0_neutral_1")
    found = read("nemo", root)
    assert found["KD0_anger_10"].text == "„Żółw”, zdanie 10."
    gone = found.pop("TP0_neutral_1")
    assert (gone.path, gone.speaker, gone.label, gone.gender) == (None, "TP0", "neutral", "male")
    assert found.keys() == set(trees_coded.NEMO) and all(one.path for one in found.values())
    assert read("nemo", root / "samples") == {**found, gone.utt_id: gone}


def test_nemo_with_a_table_of_another_kind(tmp_path):
    root = trees_coded.nemo(tmp_path)
    trees_coded.text(root / "data.tsv", "file_id\temotion", "a.wav\tanger")
    with pytest.raises(InputError, match="no column 'raw_text' or 'speaker_id' or 'gender'"):
        read("nemo", root)


def digits(low: int, high: int) -> st.SearchStrategy[str]:
    return st.integers(low, high).map(lambda n: f"{n:02}")


NAMED = {
    "crema-d": (
        "{speaker}_{text}_{label}_{level}",
        st.fixed_dictionaries(
            {
                "speaker": st.integers(1001, 1091).map(str),
                "text": st.text("ADEFHILMNORSTW", min_size=3, max_size=3),
                "label": st.sampled_from(["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]),
                "level": st.sampled_from(["LO", "MD", "HI", "XX", "X"]),
            }
        ),
    ),
    "ravdess": (
        "03-{channel}-{label}-{level}-{text}-01-{speaker}",
        st.fixed_dictionaries(
            {"channel": digits(1, 2), "label": digits(1, 8), "level": digits(1, 2), "text": digits(1, 2)}
            | {"speaker": digits(1, 24)}
        ),
    ),
    "emodb": (
        "{speaker}{text}{label}{version}",
        st.fixed_dictionaries(
            {
                "speaker": digits(3, 16),
                "text": st.from_regex(r"[ab](0[1-9]|10)", fullmatch=True),
                "label": st.sampled_from("WLEAFTN"),
                "version": st.sampled_from(["", *"abcdef"]),
            }
        ),
    ),
    "nemo": (
        "{speaker}_{label}_{text}",
        st.fixed_dictionaries(
            {
                "speaker": st.from_regex(r"[A-Z]{2}[0-9]", fullmatch=True),
                "label": st.sampled_from(["anger", "fear", "happiness", "neutral", "sadness", "surprised"]),
                "text": st.integers(1, 90).map(str),
            }
        ),
    ),
}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_names_are_taken_apart_as_they_were_put_together(name, data):
    pattern, fields = NAMED[name]
    planted = {
        pattern.format(**one): (one["speaker"], one["label"])
        for one in data.draw(st.lists(fields, min_size=1))
    }
    with TemporaryDirectory() as directory:
        for stem in planted:
            (Path(directory) / f"{stem}.wav").touch()
        found = read(name, Path(directory))
    assert {stem: (one.speaker, one.label) for stem, one in found.items()} == planted


@pytest.mark.parametrize("name", ["ravdess", "emodb", "nemo"])
def test_real_copies_are_read_as_their_owners_labelled_them(name):
    root = SHARED / name
    if not root.is_dir():
        pytest.skip(f"needs ../shared/corpora/{name}")
    with (root / "metadata.csv").open(newline="", encoding="utf-8") as file:
        listed = {
            Path(row["file"]).stem: (str(root / row["file"]), row["speaker"], row["emotion"])
            for row in csv.DictReader(file)
        }
    labels = find(name).labels
    assert {
        i: (str(one.path), f"{name}_{one.speaker}", labels[one.label]) for i, one in read(name, root).items()
    } == listed
