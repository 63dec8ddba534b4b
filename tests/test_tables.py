"""Tables as people have them: separators, encodings, Excel, spaces, doubled and nameless columns."""

import os
import unicodedata
from pathlib import Path

import pytest

from mifuse_cli.errors import InputError
from mifuse_cli.tables import Table, windows_hint, written_name

ROWS = [{"file": "a/c0.wav", "speaker": "s0"}, {"file": "a/c1.wav", "speaker": "Jörg, der"}]
PLAIN = 'file,speaker\na/c0.wav,s0\na/c1.wav,"Jörg, der"\n'


def read(path, content, needed=("file",), encoding="utf-8", known=("file", "speaker")):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return [row for _, row in Table(path, needed, known=known)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.csv"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "file;speaker\na/c0.wav;s0\na/c1.wav;Jörg, der\n",
        "file\tspeaker\na/c0.wav\ts0\na/c1.wav\tJörg, der\n",
        "file|speaker\na/c0.wav|s0\na/c1.wav|Jörg, der\n",
        "sep=;\r\nfile;speaker\r\na/c0.wav;s0\r\na/c1.wav;Jörg, der\r\n",
        '"sep=,"\n' + PLAIN,
        "SEP=,,\n" + PLAIN,
        "sep=\t\nfile\tspeaker\na/c0.wav\ts0\na/c1.wav\tJörg, der\n",
        'file , speaker\n a/c0.wav , s0\na/c1.wav, "Jörg, der"\n',
        "file;speaker;;\na/c0.wav;s0;;\na/c1.wav;Jörg, der;;\n;;;\n ; ;;\n",
        "file;speaker\na/c0.wav;s0;;\na/c1.wav;Jörg, der\n\n\n",
        "\n;;\nfile;speaker\n;\na/c0.wav;s0\n;\na/c1.wav;Jörg, der\n",
        ';file;speaker\n0;a/c0.wav;s0\n1;a/c1.wav;"Jörg, der"\n',
        "File;SPEAKER\na/c0.wav;s0\na/c1.wav;Jörg, der\n",
        'file,speaker\na/c0.wav,s0\n\ufeffa/c1.wav,"J\u00f6rg, der"\n',  # as cat joins two files
        '\ufefffile,speaker\n\u200ba/c0.wav,s0\u00a0\u200b\n\ufeff"a/c1.wav", "\u200eJ\u00f6rg, der"\n',
        "file;speaker;Speaker\na/c0.wav;s0;s0\na/c1.wav;Jörg, der; Jörg, der\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_what_is_unambiguous_is_read(path, content, encoding):
    assert read(path, content, encoding=encoding) == ROWS


def test_the_separator_is_that_of_the_needed_columns(path):
    assert read(path, "file,notes; of;all\na.wav,x; y\n")[0] == {"file": "a.wav", "notes; of;all": "x; y"}
    assert read(path, "path, or name;file\nx, y;a.wav\n")[0] == {"path, or name": "x, y", "file": "a.wav"}


def test_lines_are_those_of_the_file(path):
    path.write_text('sep=,\n\nfile,text\na.wav,"two\nlines"\n\nb.wav,one\n')
    assert [line for line, _ in Table(path, ("file",))] == [5, 7]


def test_every_iteration_reads_anew(path):
    path.write_text("file\na.wav\nb.wav\n")
    table = Table(path, ("file",))
    first, second = iter(table), iter(table)
    assert [next(first), *second, *first].count((2, {"file": "a.wav"})) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "file,emotion,emotion\na.wav,sad,sad\nb.wav,sad,happy\n",
            "columns are called 'emotion', and line 3 has 'sad'",
        ),
        ("file,File\na.wav,b.wav\n", "two columns are called 'file'"),
        ("file,speaker\na.wav\n", "line 2: expected 2 values, one a column, found 1"),
        ("file,speaker\na.wav,s,x\n", "line 2: expected 2 values, one a column, found 3"),
        ("name;speaker\na.wav;s\n", r"no column 'file' \(found: name, speaker\)"),
        ("", r"no column 'file' \(found: nothing\)"),
        (
            "file,speaker\na.wav,Jörg\n".encode("cp1252"),
            "line 2 is not UTF-8 .byte 0xf6, 'ö' in Windows-1252",
        ),
        ("file,speaker\na.wav,s\n".encode("utf-16")[:-1], "cut off, or not in utf-16"),
        ('file,speaker\n"a.wav" x,s\n', "cannot be read as CSV .*line 2"),
        (b"RIFF\x24\x08\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0", "t.csv: "),
    ],
)
def test_what_is_not_is_named(path, content, message):
    with pytest.raises(InputError, match=message):
        read(path, content)


def test_what_has_no_end_is_not_read(path):
    os.mkfifo(path)
    for endless in (path, Path("/dev/zero")):
        if endless.exists():
            with pytest.raises(InputError, match="is a device or a pipe"):
                Table(endless, ("file",))


def test_no_file(path):
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        Table(path, ())


class TestWrittenNames:
    def test_backslashes_are_slashes_unless_there_is_such_a_file(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a/b.wav").touch()
        assert written_name(tmp_path, "a\\b.wav") == "a/b.wav"
        assert written_name(tmp_path, "a\\gone.wav") == "a/gone.wav"
        (tmp_path / "a\\b.wav").touch()
        assert written_name(tmp_path, "a\\b.wav") == "a\\b.wav"

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_accents_in_either_form(self, tmp_path, form):
        there = tmp_path / unicodedata.normalize(form, "wütend.wav")
        there.touch()
        for other in ("NFC", "NFD"):
            found = written_name(tmp_path, unicodedata.normalize(other, "wütend.wav"))
            assert os.path.samefile(tmp_path / found, there)

    def test_paths_of_windows_are_told(self):
        assert "Windows" in windows_hint(r"C:\data\a.wav") and "Windows" in windows_hint("\\\\host\\a.wav")
        assert windows_hint("a/b.wav") == windows_hint("a\\b.wav") == ""


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as artifacts"),
        (b"RIFF", "a WAV file"),
        (b"PK\x03\x04", "a ZIP archive"),
    ],
)
def test_files_of_other_formats_are_named(path, head, said):
    with pytest.raises(InputError, match=f"is {said}.*expected a table"):
        read(path, head + bytes(600))
