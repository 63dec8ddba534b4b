"""What is chosen from a corpus, and what is refused: by a corpus made up for it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.corpora import NAMES, Corpus, Known, Utterance, find
from mifuse_cli.corpora.selection import (
    Comparison,
    Wanted,
    check_utterances,
    check_wanted,
    compare,
    select,
)
from mifuse_cli.errors import InputError, UsageError

CORPUS = Corpus(
    name="made-up",
    read=lambda root: [],
    labels={"A": "angry", "H": "happy", "E": "excited", "N": "neutral", "S": "sad", "X": "undecided"},
    parts=("read", "free"),
    partitions=("train", "development", "test1"),
    known=(
        Known(6),
        Known(3, ("happy", "excited")),
        Known(2, ("happy", "excited"), ("part", "free")),
        Known(1, ("neutral",), ("split", "train")),
    ),
    speakers=2,
)
FOUR = ("angry", "happy", "neutral", "sad")


def utterance(utt_id, label="N", **more):
    return Utterance(utt_id, Path(f"{utt_id}.wav"), label=label, **more)


SIX = [
    utterance("f", "H", part="free", split="train"),
    utterance("a", "E", part="free", split="train"),
    utterance("c", "N", part="read", split="train"),
    utterance("b", "X", part="read", split="test1"),
    utterance("d", "A", part="free", split="test1"),
    utterance("e", "E", part="read", split="test1"),
]


def chosen(utterances, **wanted):
    selection = select(CORPUS, utterances, Wanted(**{"classes": FOUR, "merge": {}, **wanted}))
    return {one.utterance.utt_id: one.emotion for one in selection.chosen}, selection.left_out


class TestSelect:
    def test_sorted_with_emotions_and_the_rest_counted(self):
        kept, left_out = chosen(SIX)
        assert list(kept.items()) == [("c", "neutral"), ("d", "angry"), ("f", "happy")]
        assert left_out == {"excited": 2, "undecided": 1}

    def test_merging_and_other_classes(self):
        assert chosen(SIX, merge={"excited": "happy"}) == (
            {"a": "happy", "c": "neutral", "d": "angry", "e": "happy", "f": "happy"},
            {"undecided": 1},
        )
        assert chosen(SIX, classes=("happy", "excited"))[0] == {"a": "excited", "e": "excited", "f": "happy"}

    def test_parts_and_partitions(self):
        assert set(chosen(SIX, parts=("free",))[0]) == {"d", "f"}
        assert set(chosen(SIX, partitions=("train",), parts=("read",))[0]) == {"c"}

    def test_unlabelled_clips_are_kept_only_where_nothing_is_labelled(self):
        hidden = [utterance("x", "", split="test3"), utterance("y", "", split="test3")]
        kept, left_out = chosen(SIX + hidden)
        assert not {"x", "y"} & kept.keys() and left_out["unlabelled"] == 2
        assert chosen(hidden) == ({"x": "", "y": ""}, {})

    def test_sessions(self):
        both = [utterance("a", session="1"), utterance("b", session="2")]
        assert set(chosen(both, sessions=("2",))[0]) == {"b"}

    def test_names_of_a_corpus_without_labels_of_its_own_are_spelled_as_they_like(self):
        free = Corpus("free", lambda root: [], labels=None)
        wanted = Wanted(classes=("Angry", "sad"), merge={"wut": "angry"})
        four = [utterance(str(n), label) for n, label in enumerate(["Wut", "SAD", "angry", "Freude"])]
        selection = select(free, four, wanted)
        assert [one.emotion for one in selection.chosen] == ["Angry", "sad", "Angry"]
        assert selection.left_out == {"Freude": 1}
        with pytest.raises(UsageError, match=r"--merge zorn: labels are Freude, SAD, Wut, angry"):
            select(free, four, Wanted(classes=("sad",), merge={"Zorn": "sad"}))

    def test_an_absent_partition_names_those_there(self):
        hidden = [
            utterance(str(n), "N", split=s) for n, s in enumerate(["train", "development", "development"])
        ]
        with pytest.raises(
            InputError, match=r"test1.*development \(2 clips\), train \(1.*--partitions development"
        ):
            chosen(hidden, partitions=("test1",))

    def test_an_absent_part_names_those_there(self):
        with pytest.raises(InputError, match=r"part free; its parts are read \(1 clips\)"):
            chosen([utterance("c", "N", part="read")], parts=("free",))

    def test_no_clip_of_the_classes(self):
        with pytest.raises(InputError, match=r"none of 1 labelled clips.*excited \(1 clips\).*--merge"):
            chosen([utterance("a", "E")])

    @given(st.lists(st.sampled_from("AHENSX"), min_size=1), st.booleans())
    def test_every_labelled_clip_is_chosen_or_left_out(self, labels, merged):
        utterances = [utterance(f"{n:03}", label) for n, label in enumerate(labels)]
        merge = {"excited": "happy"} if merged else {}
        if not {"A", "H", "N", "S"} & set(labels) and not (merged and "E" in labels):
            with pytest.raises(InputError):
                chosen(utterances, merge=merge)
        else:
            kept, left_out = chosen(utterances, merge=merge)
            assert len(kept) + sum(left_out.values()) == len(labels)


class TestChecks:
    def test_unknown_labels_are_all_named(self):
        with pytest.raises(InputError, match=r"'Q' of q, 'Z' of z; expected one of A, H, E"):
            check_utterances(CORPUS, [*SIX, utterance("q", "Q"), utterance("z", "Z"), utterance("z2", "Z")])

    def test_repeated_ids_with_both_paths(self):
        twice = [utterance("a"), Utterance("a", Path("copy/a.wav"), label="N")]
        with pytest.raises(
            InputError, match=r"1 utterances stand more than once, first 'a', at a.wav and copy/a.wav"
        ):
            check_utterances(CORPUS, twice)

    def test_nothing_found(self):
        with pytest.raises(InputError, match="no utterances"):
            check_utterances(CORPUS, [])

    def test_corpora_without_labels_of_their_own_take_any(self):
        check_utterances(Corpus("free", lambda root: [], labels=None), [utterance("a", "whatever")])

    @pytest.mark.parametrize(
        ("wanted", "words"),
        [
            ({"classes": ("angry", "furious")}, "--classes 'furious': made-up has angry, excited, happy"),
            ({"merge": {"exited": "happy"}}, "--merge 'exited'"),
            ({"merge": {"excited": "hapy"}}, "--merge excited=hapy: 'hapy' is neither in --classes nor"),
            ({"parts": ("sung",)}, "--parts 'sung': expected one of read, free"),
            ({"partitions": ("test9",)}, "--partitions 'test9': expected one of train"),
        ],
    )
    def test_names_that_the_corpus_does_not_have(self, wanted, words):
        with pytest.raises(UsageError, match=words):
            check_wanted(CORPUS, Wanted(**{"classes": FOUR, "merge": {}, **wanted}))

    def test_a_class_that_merging_makes_is_there_and_one_that_it_ends_is_not(self):
        check_wanted(CORPUS, Wanted(classes=("angry", "positive"), merge={"happy": "positive"}))
        with pytest.raises(UsageError, match="'excited'"):
            check_wanted(CORPUS, Wanted(classes=("excited", "happy"), merge={"excited": "happy"}))


class TestCompare:
    def test_counts_before_merging(self):
        assert compare(CORPUS, SIX) == [
            Comparison("all", 6, 6),
            Comparison("happy + excited", 3, 3),
            Comparison("happy + excited, part free", 2, 2),
            Comparison("neutral, split train", 1, 1),
            Comparison("speakers", 2, 0),
        ]

    def test_clips_without_audio_do_not_count(self):
        silent = [Utterance(u.utt_id, None, label=u.label, part=u.part, split=u.split) for u in SIX[:2]]
        assert [one.found for one in compare(CORPUS, silent + SIX[2:])] == [4, 1, 0, 1, 0]


@pytest.mark.parametrize("name", NAMES)
def test_registered_corpora_are_consistent(name):
    corpus = find(name)
    emotions = set((corpus.labels or {}).values())
    assert corpus.name == name and corpus.merge.keys() <= emotions | {"excited"}
    assert set(corpus.default_parts) <= set(corpus.parts)
    for known in corpus.known:
        assert set(known.emotions) <= emotions
        assert known.where is None or known.where[0] in Utterance.__slots__


def test_unknown_corpus_is_a_usage_error_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'iemocap'"):
        find("iemocp")
