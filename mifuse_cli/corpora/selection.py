"""Selection of a corpus's utterances and mapping of their labels to emotions: pure functions without files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mifuse_cli.corpora import Corpus, Known, Utterance
from mifuse_cli.errors import InputError, UsageError, some
from mifuse_cli.labels import composed

UNLABELLED = "unlabelled"


class Chosen(NamedTuple):
    """A selected utterance with its emotion, "" if it is not labelled."""

    utterance: Utterance
    emotion: str


@dataclass(frozen=True)
class Wanted:
    """What to select.

    Attributes:
        classes: emotions to keep.
        merge: emotions, each with the emotion that it is counted as.
        parts, partitions, sessions: to keep; none: all.
    """

    classes: tuple[str, ...]
    merge: Mapping[str, str]
    parts: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """What was selected.

    Attributes:
        chosen: sorted by utterance id.
        left_out: clips of other emotions, after merging, by emotion.
    """

    chosen: tuple[Chosen, ...]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """A published count and that of this copy.

    Attributes:
        what: the emotions and the part of the corpus, for people, or "speakers".
        published, found: clips, or speakers.
    """

    what: str
    published: int
    found: int


def check_wanted(corpus: Corpus, wanted: Wanted) -> None:
    """Refuse names that the corpus does not have.

    Raises:
        UsageError: naming all of them.
    """
    problems = []
    if corpus.parts or corpus.labels is not None:
        problems += [
            f"--parts {name!r}: expected one of {', '.join(corpus.parts) or 'none, as there are no parts'}"
            for name in wanted.parts
            if name not in corpus.parts
        ]
    if corpus.partitions:
        problems += [
            f"--partitions {name!r}: expected one of {', '.join(corpus.partitions)}"
            for name in wanted.partitions
            if name not in corpus.partitions
        ]
    if corpus.labels is not None:
        emotions = set(corpus.labels.values())
        problems += [
            f"--merge {name!r}: expected one of {', '.join(sorted(emotions))}"
            for name in wanted.merge
            if name not in emotions
        ]
        problems += [
            f"--merge {name}={into}: {into!r} is neither in --classes nor an emotion of {corpus.name}"
            for name, into in wanted.merge.items()
            if into not in emotions and into not in wanted.classes
        ]
        names = emotions - wanted.merge.keys() | set(wanted.merge.values())
        problems += [
            f"--classes {name!r}: {corpus.name} has {', '.join(sorted(names))} after merging"
            for name in wanted.classes
            if name not in names
        ]
    if problems:
        raise UsageError("; ".join(problems))


def check_utterances(corpus: Corpus, utterances: Sequence[Utterance]) -> None:
    """Refuse a corpus that contradicts itself or its description.

    Raises:
        InputError: no utterances, repeated ids, or labels that the corpus does not define.
    """
    if not utterances:
        raise InputError(f"{corpus.name}: no utterances were found. Check the root directory.")
    problems = []
    first: dict[str, Utterance] = {}
    twice = [(first[u.utt_id], u) for u in utterances if first.setdefault(u.utt_id, u) is not u]
    if twice:
        one, other = twice[0]
        places = (
            f"at {one.path} and {other.path} (give the directory that holds one copy, or remove the other)"
            if one.path != other.path
            else f"as {one.label!r} and {other.label!r} (keep one row for every clip, "
            "for instance with the label of most listeners)"
        )
        problems.append(f"{len(twice)} utterances stand more than once, first {one.utt_id!r}, {places}")
    if corpus.labels is not None:
        unknown = {u.label: u for u in reversed(utterances) if u.label and u.label not in corpus.labels}
        if unknown:
            named = some(f"{label!r} of {u.utt_id}" for label, u in sorted(unknown.items()))
            problems.append(f"unknown labels {named}; expected one of {', '.join(corpus.labels)}")
    if problems:
        raise InputError(f"{corpus.name}: {'; '.join(problems)}.")


def select(corpus: Corpus, utterances: Iterable[Utterance], wanted: Wanted) -> Selection:
    """The wanted utterances with their emotions.

    Utterances without a label are selected only if none in the wanted parts and partitions has one, as in a
    test partition whose labels are withheld.

    Args:
        corpus: where they are from.
        utterances: that passed `check_utterances`.
        wanted: that passed `check_wanted`.

    Raises:
        InputError: nothing is left; the message names what the copy has.
    """
    utterances = list(utterances)
    inside = [
        u
        for u in utterances
        if (not wanted.parts or u.part in wanted.parts)
        and (not wanted.partitions or u.split in wanted.partitions)
        and (not wanted.sessions or u.session in wanted.sessions)
    ]
    if not inside:
        raise _nothing(corpus, utterances, wanted)
    labelled = [u for u in inside if u.label]
    merge = _merging(corpus, labelled, wanted)
    spelled = {name.casefold(): name for name in wanted.classes}
    left_out: Counter[str] = Counter({UNLABELLED: len(inside) - len(labelled)} if labelled else {})
    chosen = [] if labelled else [Chosen(u, "") for u in inside]
    for one in labelled:
        emotion = emotion_of(corpus, one.label)
        emotion = merge.get(emotion.casefold(), emotion)
        if emotion.casefold() in spelled:
            chosen.append(Chosen(one, spelled[emotion.casefold()]))
        else:
            left_out[emotion] += 1
    if not chosen:
        raise InputError(
            f"{corpus.name}: none of {len(labelled)} labelled clips is {' or '.join(wanted.classes)}; found "
            f"{_counts(left_out)}. Choose --classes, or --merge names into them."
        )
    chosen.sort(key=lambda one: one.utterance.utt_id)
    return Selection(tuple(chosen), {name: n for name, n in sorted(left_out.items()) if n})


def emotion_of(corpus: Corpus, label: str) -> str:
    """The emotion that a label of the corpus means, before any is merged."""
    return composed(label) if corpus.labels is None else corpus.labels[label]


def compare(corpus: Corpus, utterances: Sequence[Utterance]) -> list[Comparison]:
    """Every published count, with the number of utterances of this copy that have audio."""
    heard = [u for u in utterances if u.path is not None or u.command]
    counts = [
        Comparison(_described(known), known.clips, sum(map(_member(corpus, known), heard)))
        for known in corpus.known
    ]
    if corpus.speakers is not None:
        counts.append(Comparison("speakers", corpus.speakers, len({u.speaker for u in heard} - {""})))
    return counts


def _member(corpus: Corpus, known: Known) -> Callable[[Utterance], bool]:
    labels = None if corpus.labels is None else {k for k, v in corpus.labels.items() if v in known.emotions}

    def counts(one: Utterance) -> bool:
        if known.where and getattr(one, known.where[0]) != known.where[1]:
            return False
        if not known.emotions:
            return True
        return one.label in (known.emotions if labels is None else labels)

    return counts


def _merging(corpus: Corpus, labelled: Sequence[Utterance], wanted: Wanted) -> dict[str, str]:
    """The merges with names in lower case, since corpora without a fixed set of labels vary in spelling."""
    merge = {composed(name).casefold(): composed(into) for name, into in wanted.merge.items()}
    there = {emotion_of(corpus, one.label) for one in labelled}
    if corpus.labels is None and (absent := merge.keys() - {name.casefold() for name in there}):
        raise UsageError(f"--merge {', '.join(sorted(absent))}: labels are {some(sorted(there))}")
    return merge


def _described(known: Known) -> str:
    emotions = " + ".join(known.emotions) or "all"
    return f"{emotions}, {known.where[0]} {known.where[1]}" if known.where else emotions


def _nothing(corpus: Corpus, utterances: Sequence[Utterance], wanted: Wanted) -> InputError:
    if wanted.partitions:
        there = Counter(u.split or "none" for u in utterances)
        return InputError(
            f"{corpus.name}: this copy has no clip of {_asked(wanted)}; its partitions are {_counts(there)}. "
            f"Choose among them, such as --partitions {max(there, key=lambda name: (name != 'train', there[name]))}."
        )
    if wanted.sessions:
        there = Counter(u.session or "none" for u in utterances)
        return InputError(
            f"{corpus.name}: this copy has no clip of {_asked(wanted)}; its sessions are {_counts(there)}."
        )
    there = Counter(u.part or "none" for u in utterances)
    return InputError(
        f"{corpus.name}: this copy has no clip of {_asked(wanted)}; its parts are {_counts(there)}."
    )


def _asked(wanted: Wanted) -> str:
    asked = {"part": wanted.parts, "partition": wanted.partitions, "session": wanted.sessions}
    return " and ".join(f"{name} {' or '.join(values)}" for name, values in asked.items() if values)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({n} clips)" for name, n in sorted(counts.items()) if n)
