"""`mifuse doctor`: what is there, what is missing, and the command that mends it."""

import base64
import io
import json
import shutil
import threading
import tomllib
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import KEY, mifuse, refused

import mifuse_cli as m
from mifuse_cli.steps import doctor as examined


@pytest.fixture(autouse=True)
def requirements(monkeypatch):
    """Those of this tree, whatever was installed from an older one."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = project["dependencies"] + [
        f'{one}; extra == "{name}"'
        for name in ("report", "onnx", "audformat", "demo")
        for one in extras[name]
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: found)


def checks(**options):
    result = m.doctor(m.DoctorConfig(**options))
    return result, {one.name: one for one in result.checks}


def test_this_machine_is_well(tmp_path):
    result = mifuse("doctor", "--cache-dir", tmp_path / "not" / "there")
    assert result.exit_code == 0, result.stdout
    for word in ("torch ", "cores may be used", "wav, flac, ogg, mp3", "GB of disk are free"):
        assert word in result.stdout
    assert not (tmp_path / "not").exists()  # nothing is made


def test_a_package_that_is_too_old_or_gone(monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "4.0" if name == "transformers" else version(name))
    result, found = checks()
    assert result.exit_code == 6
    assert found["transformers"].found == "4.0, expected >=5"
    assert found["transformers"].advice == "pip install 'transformers>=5'"

    def gone(name):
        if name in ("soundfile", "onnxruntime"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", gone)
    _, found = checks()
    assert found["soundfile"].found.startswith("not installed")
    assert "mifuse[onnx]" in found["extra onnx"].advice and "onnxruntime" in found["extra onnx"].found


def test_a_missing_extra_is_no_fault(monkeypatch):
    monkeypatch.setattr(examined, "_installed", lambda name: name != "pyarrow")
    result, found = checks()
    assert found["extra audformat"].state == "missing" and result.exit_code == 0


def test_a_format_that_does_not_decode(monkeypatch):
    import soundfile

    write = soundfile.write

    def without_mp3(file, data, rate, format=None, **options):
        if format == "MP3":
            raise ValueError("Unknown format: 'MP3'")
        write(file, data, rate, format=format, **options)

    monkeypatch.setattr(soundfile, "write", without_mp3)
    result, found = checks()
    assert (
        result.exit_code == 6 and "not mp3" in found["audio"].found and "soundfile" in found["audio"].advice
    )


def test_a_full_disk_and_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    result, found = checks(cache_dir=tmp_path)
    assert result.exit_code == 6 and found["cache"].advice.startswith("make room: rm ")
    (tmp_path / "file").touch()
    _, found = checks(cache_dir=tmp_path / "file" / "cache")
    assert "cannot be written" in found["cache"].found


@pytest.fixture
def service():
    """Lists two models to whoever has the key."""

    class Lister(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0][
                "content"
            ]
            wav = base64.b64decode(content[0]["input_audio"]["data"])
            samples, rate = soundfile.read(io.BytesIO(wav))
            pitch = np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)
            if self.server.reply is None:
                choice = {"index": 0, "message": {"content": f"A tone of {pitch:.0f} Hz."}}
                self.send(200, {"choices": [choice], "usage": {"prompt_tokens": 31, "completion_tokens": 6}})
            else:
                self.send(*self.server.reply)

        def do_GET(self):
            good = self.path == "/v1/models" and self.headers["Authorization"] == f"Bearer {KEY}"
            body = (
                {"data": [{"id": "gpt-audio"}, {"id": "other"}]}
                if good
                else {"error": {"message": f"no {KEY}"}}
            )
            self.send(200 if good else 401, body)

        def send(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = HTTPServer(("127.0.0.1", 0), Lister)
    server.reply = None
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield server
    server.shutdown()
    server.server_close()


class TestService:
    def test_that_lists_the_model(self, service, key):
        result, found = checks(base_url=service.url, model="gpt-audio")
        assert "answer" not in found and result.exit_code == 0 and "lists 2 models" in found["service"].found
        assert found["price"].state == "ok"

    def test_that_does_not(self, service, key):
        result, found = checks(base_url=service.url, model="gpt-audoi")
        assert result.exit_code == 5
        assert found["service"].advice == "choose one of: gpt-audio, other"

    def test_that_refuses_the_key(self, service, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}x")
        result = mifuse("doctor", "--base-url", service.url)
        assert result.exit_code == 5 and "status 401" in result.stdout and f"{KEY}x" not in result.stdout

    def test_that_is_not_there(self, key):
        result, found = checks(base_url="http://127.0.0.1:9/v1")
        assert result.exit_code == 5 and "/v1" in found["service"].advice

    def test_that_is_asked_about_a_tone(self, service, key):
        result, found = checks(base_url=service.url, model="gpt-audio", ask=True)
        assert result.exit_code == 0
        assert found["answer"].found == "'A tone of 220 Hz.' to a tone, 31 tokens of prompt"

    @pytest.mark.parametrize(
        ("reply", "word"),
        [
            ((400, {"error": {"message": f"no input_audio here, {KEY}"}}), "--audio-part"),
            ((200, {"error": {"message": "overloaded", "code": 503}}), "overloaded"),
            ((200, {"choices": [{"index": 0, "message": {"content": ""}}]}), "none to a tone"),
        ],
    )
    def test_that_takes_no_audio(self, service, key, reply, word):
        service.reply = reply
        result, found = checks(base_url=service.url, model="gpt-audio", ask=True)
        assert (result.exit_code, found["answer"].state) == (5, "bad")
        assert word in found["answer"].found and KEY not in found["answer"].found

    def test_by_the_name_of_its_profile(self, service, monkeypatch):
        monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
        result, found = checks(base_url=service.url, service="dashscope")
        assert result.exit_code == 0 and "lists 2 models" in found["service"].found
        refused(mifuse("doctor", "--service", "dashscope"), 2, "needs --base-url")
        refused(mifuse("doctor", "--base-url", service.url, "--ask"), 2, "--model")

    def test_without_a_key(self):
        result, found = checks(base_url="http://127.0.0.1:9/v1")
        assert result.exit_code == 5 and "OPENAI_API_KEY" in found["service"].advice
