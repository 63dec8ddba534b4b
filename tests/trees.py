"""Small copies of licensed corpora as they lie on disks, with what readers stumble over.

Every function writes a tree and returns the utterances that were planted in it. Each has four classes for four
speakers, 32 clips in all unless ``takes`` says otherwise, and some of other classes; high voices are angry or
happy and loud ones angry or neutral, so that a model can learn from them.
"""

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
from conftest import RATE, emotional, tone

from mifuse_cli.corpora import Utterance

APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xff\xfe\n[\xff\n"
GENDERS = {"F": "female", "M": "male"}
EMOTIONS = {
    "ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad",
    "A": "angry", "H": "happy", "N": "neutral", "S": "sad",
}  # fmt: skip


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def wav(path: Path, label: str, seed: int) -> Path:
    """0.3 s at 16 kHz, mono, 16 bit."""
    rng = np.random.default_rng(seed)
    emotion = EMOTIONS.get(label)
    sound = emotional(emotion, seed % 3, rng) if emotion else tone(250, 0.1, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound.clip(-1, 1), RATE, "PCM_16")
    write(path.with_name(f"._{path.name}"), APPLE)
    return path


# IEMOCAP: the wearer of the markers, the second letter of a scene's name, is not who speaks.

SCENES = ("F_impro01", "M_impro05a", "M_script01_1b", "F_script02_2", "F_script03_1")
OTHERS = ("fru", "fea", "sur", "dis", "oth", "xxx")
RATERS = (
    "C-E2:\tNeutral;\t()\r\nC-E3:\tAnger; Sadness;\t()\r\nC-F1:\tNeutral;\t(curious)\r\n"
    "A-E3:\tval 3; act 2; dom  2;\t()\r\nA-E4:\tval 3; act 2; dom  ;\t()\r\n"
)


def turn(session: str, scene: str, gender: str, number: str, label: str, text: str = "") -> Utterance:
    return Utterance(
        utt_id=f"Ses0{session}{scene}_{gender}{number}",
        path=None,
        speaker=f"0{session}{gender}",
        label=label,
        session=session,
        part="improvised" if "impro" in scene else "scripted",
        gender=GENDERS[gender],
        text=text,
    )


def iemocap_turns(sessions: str = "35", takes: int = 2) -> list[Utterance]:
    """Excited and happy take turns; every speaker has one clip of a class in each scene as far as they go."""
    turns = []
    for session, gender in product(sessions, "FM"):
        labels = [
            (take, label)
            for take in range(takes)
            for label in ("ang", "sad", "neu", "exc" if take % 2 else "hap")
        ]
        for n, (take, label) in enumerate([*labels, *enumerate(OTHERS)]):
            number = f"{n:03}" if n else "XX0"
            turns.append(turn(session, SCENES[take % len(SCENES)], gender, number, label, f"It’s take {n}."))
    return turns


def iemocap(root: Path, turns: list[Utterance] | None = None, audio: bool = True) -> list[Utterance]:
    """Session 3 and 5 with scenes whose names have one letter more than others, unless turns are given.

    Of the first scene the text is in Windows-1252, of the last one there is none.
    """
    turns = iemocap_turns() if turns is None else turns
    dialogs: dict[tuple[str, str], list[Utterance]] = {}
    for one in turns:
        dialogs.setdefault((one.session, one.utt_id.rsplit("_", 1)[0]), []).append(one)
    planted = []
    for place, ((session, dialog), members) in enumerate(sorted(dialogs.items())):
        folder = root / f"Session{session}"
        blocks = [
            f"[{6 + n}.2901 - {7 + n}.2357]\t{one.utt_id}\t{one.label}\t[2.5000, 2.5000, 2.5000]\r\n{RATERS}\r\n"
            for n, one in enumerate(members)
        ]
        head = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\r\n\r\n"
        labels = head + "".join(blocks)
        mark = "\ufeff" if place == 1 else ""
        evaluation = folder / "dialog/EmoEvaluation"
        write(evaluation / f"{dialog}.txt", mark + (labels.replace("\r\n", "\n") if place % 2 else labels))
        write(evaluation / f"._{dialog}.txt", APPLE)
        write(evaluation / "Categorical" / f"{dialog}_e2_cat.txt", f"{members[0].utt_id} :Anger; ()\n")
        write(evaluation / "Self-evaluation" / f"{dialog}.txt", blocks[0].replace("\tneu\t", "\tang\t"))
        write(evaluation / "Attribute" / f"{dialog}_e2_atr.txt", f"{members[0].utt_id} :act 3; val 3; ()\n")
        has_text = dialog.rsplit("_", 1)[-1] != "1b"
        if has_text:
            said = [f"{one.utt_id} [006.2901-008.2357]: {one.text}\r\n" for one in members]
            text = "".join(["M: [BREATHING]\r\n", *said])
            write(
                folder / f"dialog/transcriptions/{dialog}.txt",
                text.encode("cp1252" if place == 0 else "utf-8"),
            )
        if audio:
            wav(folder / f"dialog/wav/{dialog}.wav", "", place)
        for n, one in enumerate(members):
            path = folder / f"sentences/wav/{dialog}/{one.utt_id}.wav" if audio else None
            if path:
                wav(path, one.label, 100 * place + n)
            planted.append(replace(one, path=path, text=one.text if has_text else ""))
    return planted


# MSP-IMPROV: names carry the emotion that was asked for, which here is never the label.

PARTS = {"T": "target-improvised", "R": "target-read", "S": "other-improvised", "P": "natural"}


def clip(speaker: str, scenario: str, number: str, label: str) -> Utterance:
    intended = {"A": "H", "H": "S", "S": "N", "N": "A"}.get(label, "N")
    return Utterance(
        utt_id=f"MSP-IMPROV-S{number}{intended}-{speaker}-{scenario}-FM{number}",
        path=None,
        speaker=speaker,
        label=label,
        session=str(int(speaker[1:])),
        part=PARTS[scenario],
        gender=GENDERS[speaker[0]],
    )


def msp_improv_clips(sessions: str = "12", takes: int = 2) -> list[Utterance]:
    labels = "ASHN" * takes + "OX"
    return [
        clip(f"{gender}0{session}", "TRSP"[(n + n // 4) % 4], f"{n + 1:02}", label)
        for session, gender in product(sessions, "FM")
        for n, label in enumerate(labels)
    ]


def msp_improv(
    root: Path,
    clips: list[Utterance] | None = None,
    labels: str = "Evaluation.txt",
    audio: str = "",
) -> list[Utterance]:
    """Two sessions unless clips are given, the file of labels at ``labels`` and the audio below ``audio``."""
    blocks, planted = [], []
    for n, one in enumerate(msp_improv_clips() if clips is None else clips):
        name = one.utt_id.replace("MSP", "UTD", 1)
        means = ["A:3.000000; V:3.500000; D:3.000000 ; N:4.000000;", "A:3.000000; V:3.500000; D:NaN ; N:NaN;"]
        form = [*means, "A:3.000000; V:3.500000; D:3.000000 ;"][n % 3]
        rater = "workerid-p1; Neutral; Neutral,; A:3.000000; V:4.000000; D:3.000000; N:4.000000;\r\n"
        blocks.append(f"{name}.avi; {one.label}; {form}\r\n{rater}{rater}\r\n")
        _, _, sentence, _, scenario, _ = one.utt_id.split("-")
        folder = root / audio / f"session{one.session}" / sentence / scenario
        planted.append(replace(one, path=wav(folder / f"{one.utt_id}.wav", one.label, n)))
        write(folder / f"{name}.avi", b"RIFF")
    write(root / labels, "\ufeff" + "".join(blocks))
    write((root / labels).with_name(f"._{Path(labels).name}"), APPLE)
    return planted


# MSP-Podcast: one set of clips in any of the spellings of its releases.

SPEAKERS = {
    "30": ("Male", "Train"),
    "39": ("Female", "Train"),
    "41": ("Female", "Development"),
    "52": ("Male", "Test1"),
}
SPLITS = {"Train": "train", "Development": "development", "Validation": "development"}


def podcast_rows(takes: int = 2) -> list[dict[str, str]]:
    """Rows of the consensus table: four speakers, one whom nobody knows, every label, a clip of 44.1 kHz."""
    rows = [
        (f"{speaker:0>4}_{n:04}", label, speaker, gender, split)
        for speaker, (gender, split) in SPEAKERS.items()
        for n, label in enumerate("AHNS" * takes)
    ]
    rows += [(f"0900_{n:04}", label, "Unknown", "Unknown", "Train") for n, label in enumerate("AUFDCOX")]
    rows += [("1023_0235", "O", "0x1f", "Female", "Test2")]
    columns = ("FileName", "EmoClass", "SpkrID", "Gender", "Split_Set")
    return [dict(zip(columns, (f"MSP-PODCAST_{name}.wav", *rest), strict=True)) for name, *rest in rows]


def msp_podcast(
    root: Path,
    rows: list[dict[str, str]] | None = None,
    labels: str = "Labels/labels_consensus.csv",
    audio: str = "Audios",
    partitions: str = "Partitions.txt",
    takes: int = 2,
) -> list[Utterance]:
    """Clips with labels at ``labels``, and two of Test3 that only the file of partitions knows."""
    rows = podcast_rows(takes) if rows is None else rows
    path = write(root / labels, b"")
    {".csv": _podcast_csv, ".json": _podcast_json, ".txt": _podcast_txt}[path.suffix](path, rows)
    write(path.with_name(f"._{path.name}"), APPLE)
    write(
        path.with_name("labels_detailed.csv"),
        'FileName,EmoDetail\nMSP-PODCAST_0030_0000.wav,"WORKER1; Sad; "\n',
    )
    hidden = [f"MSP-PODCAST_test3_{n:04}.wav" for n in (1, 2)]
    parts = [(row["Split_Set"], row["FileName"]) for row in rows] + [("Test3", name) for name in hidden]
    write(root / partitions, "".join(f"{split}; {name}\r\n" for split, name in parts))
    known = {row["SpkrID"]: row["Gender"] for row in rows if row["SpkrID"] != "Unknown"}
    lines = [f"Speaker_{speaker}; {gender}" for speaker, gender in known.items()]
    lines += ["", *(f"{row['FileName']}; {row['SpkrID']}" for row in rows)]
    write(root / "Speaker_ids.txt", "\r\n".join(lines))
    planted = []
    for n, row in enumerate([*rows, *({"FileName": name, "Split_Set": "Test3"} for name in hidden)]):
        name, label, speaker = row["FileName"], row.get("EmoClass", ""), row.get("SpkrID", "")
        sound = wav(root / audio / name, label, n)
        if name == "MSP-PODCAST_1023_0235.wav":
            soundfile.write(sound, np.zeros((13230, 2)), 44_100)
        text = f"Sentence {n}." if n % 2 else ""
        if text:
            write(root / "Transcripts" / f"{sound.stem}.txt", f"{text}\r\n")
        planted.append(
            Utterance(
                utt_id=sound.stem,
                path=sound,
                speaker="" if speaker == "Unknown" else speaker,
                label=label,
                split=SPLITS.get(row["Split_Set"], row["Split_Set"].lower()),
                gender={"Male": "male", "Female": "female"}.get(row.get("Gender", ""), ""),
                text=text,
            )
        )
    return planted


def _podcast_csv(path: Path, rows: list[dict[str, str]]) -> None:
    # Not in the order of the releases, as columns go by their names.
    columns = ("EmoAct", "FileName", "Split_Set", "EmoClass", "EmoVal", "EmoDom", "Gender", "SpkrID")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({"EmoAct": "2.2", "EmoVal": "4.0", "EmoDom": "2.6", **row} for row in rows)


def _podcast_json(path: Path, rows: list[dict[str, str]]) -> None:
    clips = {row["FileName"]: {key: row[key] for key in row if key != "FileName"} for row in rows}
    path.write_text(json.dumps(clips), encoding="utf-8-sig")


def _podcast_txt(path: Path, rows: list[dict[str, str]]) -> None:
    rater = "WORKER00000001; Other-confused; Concerned,Confused; A:3.000000; V:3.000000; D:4.000000;\r\n"
    blocks = [
        f"{row['FileName']}; {row['EmoClass']}; A:2.400000; V:4.000000; D:2.800000;\r\n{rater}\r\n"
        for row in rows
    ]
    path.write_text("".join(blocks), newline="")
