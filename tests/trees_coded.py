"""Small corpora in the layouts of those that code all in file names, with the traps of the real copies.

Each function fills a directory and gives the root that a user would name. Audio is real, a few
milliseconds long, and of a length of its own for every file.
"""

import csv
from itertools import count
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
LFS_STUB = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 73774\n"
_LENGTHS = count(160)

CREMA_D = (
    "1001_DFA_ANG_XX",
    "1001_DFA_DIS_XX",
    "1001_IEO_FEA_HI",
    "1001_IEO_HAP_LO",
    "1002_IEO_SAD_MD",
    "1002_TIE_NEU_XX",
    "1040_ITH_SAD_X",
)
EMODB = (
    "03a01Fa",
    "03a01Nc",
    "03a01Wa",
    "08a02La",
    "08b10Td",
    "16a04Ea",
    "16b09Ac",
    "16b09N",
)
NEMO = (
    "KD0_anger_10",
    "KD0_neutral_2",
    "MP0_sadness_79",
    "WR0_surprised_64",
    "WR0_happiness_4",
    "TP0_fear_52",
)
RAVDESS_CODES = ("01", "02", "03", "04", "05", "06", "07", "08")


def wav(path: Path) -> Path:
    """A short tone, written in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.sin(np.arange(next(_LENGTHS)) / 5)
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return path


def hidden(directory: Path, name: str) -> None:
    """What macOS leaves beside a file that it copied."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"._{name}").write_bytes(b"\0\5\x16\7Mac OS X")
    (directory / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def text(path: Path, *lines: str, ends: str = "\n", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + ends for line in lines).encode(encoding))
    return path


def crema_d(root: Path) -> Path:
    """A clone whose MP3 copies are stubs, with the tables of the raters beside."""
    for stem in CREMA_D:
        wav(root / "AudioWAV" / f"{stem}.wav")
        text(root / "AudioMP3" / f"{stem}.mp3", LFS_STUB, ends="")
        text(root / "VideoFlash" / f"{stem}.flv", LFS_STUB, ends="")
    hidden(root / "AudioWAV", "1001_DFA_ANG_XX.wav")
    text(
        root / "VideoDemographics.csv",
        '"ActorID","Age","Sex","Race","Ethnicity"',
        '1001,51,"Male","Caucasian","Not Hispanic"',
        '1002,21,"Female","Caucasian","Not Hispanic"',
    )
    text(
        root / "processedResults/summaryTable.csv",
        '"","FileName","VoiceVote","VoiceLevel"',
        '"1","1001_DFA_ANG_XX","A:D","58:41"',
    )
    return root


def ravdess(root: Path) -> Path:
    """Speech and song of two actors, unpacked beside each other, and a clip cut from a video."""
    for actor in ("01", "02"):
        speech = root / "Audio_Speech_Actors_01-24" / f"Actor_{actor}"
        for code in RAVDESS_CODES:
            wav(speech / f"03-01-{code}-01-01-01-{actor}.wav")
        for code in RAVDESS_CODES[:6]:
            wav(root / "Audio_Song_Actors_01-24" / f"Actor_{actor}" / f"03-02-{code}-01-02-01-{actor}.wav")
        hidden(speech, f"03-01-01-01-01-01-{actor}.wav")
    wav(root / "Video_Speech_Actor_01" / "Actor_01" / "01-01-05-01-01-01-01.wav")
    text(root / "Video_Speech_Actor_01" / "Actor_01" / "01-01-05-01-01-01-01.mp4", "video")
    return root


def ravdess_of_kaggle(root: Path) -> Path:
    """The copy that holds every clip twice."""
    for actor in ("01", "02"):
        for code in RAVDESS_CODES:
            name = f"Actor_{actor}/03-01-{code}-01-01-01-{actor}.wav"
            wav(root / name)
            wav(root / "audio_speech_actors_01-24" / name)
    return root


def emodb(root: Path) -> Path:
    """The archive with the label files of its phoneticians."""
    for stem in EMODB:
        wav(root / "wav" / f"{stem}.wav")
        text(root / "lablaut" / f"{stem}.lablaut", "0.0 x")
    hidden(root / "wav", "03a01Wa.wav")
    text(root / "erklaerung.txt", "Datenbank", encoding="latin-1")
    return root


def nemo(root: Path, *more: str) -> Path:
    """The release: file ids with suffix, speakers behind spaces, typographic quotes; rows for ``more`` too."""
    lines = ["file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage"]
    for stem in (*NEMO, *more):
        speaker, emotion, sentence = stem.split("_")
        gender = "female" if speaker == "KD0" else "male"
        said = f"„Żółw”, zdanie {sentence}."
        lines.append(f"{stem}.wav\t{emotion}\t{said}\tżółw zdanie\t        {speaker}\t{gender}\t23")
    text(root / "data.tsv", *lines)
    for stem in NEMO:
        wav(root / "samples" / f"{stem}.wav")
    hidden(root / "samples", "KD0_anger_10.wav")
    return root


def generic_csv(root: Path) -> Path:
    """A table as a spreadsheet saves it, its columns under names of its own; one clip is missing."""
    for name in ("a/one.wav", "a/two.flac"):
        wav(root / "clips" / name)
    return text(
        root / "labels.csv",
        "path,label,who,text,fold",
        'clips/a/one.wav,happy,S1,"Well, yes",train',
        "clips/a/two.flac,sad,S2,No,test",
        "clips/a/gone.wav,,S2,Gone,test",
        "",
        ends="\r\n",
        encoding="utf-8-sig",
    )


def generic_folders(root: Path, *names: str) -> Path:
    """A folder for every class; by default with speakers below and names that repeat."""
    for name in names or (
        "Angry/s1/001.wav",
        "Angry/s2/001.wav",
        "Happy/s1/001.wav",
        "Happy/s1/002.flac",
        "sad/003.wav",
    ):
        wav(root / name)
    hidden(root / "Angry", "001.wav")
    wav(root / ".cache" / "004.wav")
    text(root / "README.txt", "Clips")
    return root


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path
