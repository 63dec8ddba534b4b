"""``mifuse query-lalm`` as a command of this process, asking a scripted service."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import soundfile
from conftest import KEY, mifuse

GOOD = '{"angry": 40, "happy": 30, "neutral": 20, "sad": 10}'
PROBS = [0.4, 0.3, 0.2, 0.1]


class Query:
    """The command with its usual options: ``out`` is the artifact, ``manifest`` the corpus."""

    def __init__(self, manifest: Path, out: Path) -> None:
        self.manifest, self.out = manifest, out

    def __call__(self, url: str, *flags: Any, key: str | None = KEY, **options: Any) -> Any:
        """Run it with further flags; options replace the usual ones, None leaves one out."""
        values = {"manifest": self.manifest, "model": "m", "n_samples": 2, "rpm": 1e6, "out": self.out}
        values |= {"base_url": url or None, **options}
        named = [
            (f"--{name.replace('_', '-')}", value) for name, value in values.items() if value is not None
        ]
        env = {"OPENAI_API_KEY": key} if key else {}
        return mifuse("query-lalm", *(text for pair in named for text in pair), *flags, **env)

    def found(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Run it to a good end; its result."""
        result = self(*arguments, "--json", **options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)


def heard(request: Any) -> tuple[bytes, str]:
    """Audio and text of a question."""
    audio, text = request.body["messages"][-1]["content"]
    return base64.b64decode(audio["input_audio"]["data"]), text["text"]


def seconds_of(audio: bytes) -> float:
    return soundfile.info(io.BytesIO(audio)).duration
