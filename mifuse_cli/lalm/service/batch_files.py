"""Batches as files on this machine, for a program that answers them without a server: ``vllm run-batch``.

A batch is ``TAG.in.jsonl`` with its questions, their audio within. Whoever has the model writes the answers to
``TAG.out.jsonl`` in the format of OpenAI's batches (https://docs.vllm.ai/en/latest/serving/offline_inference.html).
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, BinaryIO

from mifuse_cli.errors import InputError
from mifuse_cli.lalm.service.client import LONGEST_LINE, BatchState
from mifuse_cli.lalm.service.failures import message_of
from mifuse_cli.lalm.service.service_options import provider_of

_IN, _OUT = ".in.jsonl", ".out.jsonl"


class BatchFiles:
    """A directory of batches, to be used like the batches of a provider.

    Args:
        directory: of the files; made when it is needed.
        model: name of the model that is to answer.
    """

    host = provider_of("vllm-batch", "")
    polled = False

    def __init__(self, directory: Path, model: str) -> None:
        self.directory, self.model = directory, model

    async def upload(self, file: BinaryIO) -> str:
        """Write the questions of a batch, read from where ``file`` stands; return the name of the file.

        Raises:
            InputError: it cannot be written.
        """
        path = self.directory / "questions"
        try:
            self.directory.mkdir(exist_ok=True)
            with path.open("wb") as written:
                shutil.copyfileobj(file, written)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
        return path.name

    async def create_batch(self, input_file: str, tag: str) -> str:
        """Give uploaded questions the name of their batch; return its id, which is the tag."""
        (self.directory / input_file).replace(self._questions(tag))
        return tag

    async def batches(self) -> AsyncGenerator[BatchState, None]:
        """All batches that wait for answers, or for their answers to be read."""
        for path in sorted(self.directory.glob(f"*{_IN}")):
            yield await self.batch_state(path.name.removesuffix(_IN))

    async def batch_state(self, batch_id: str) -> BatchState:
        """How far a batch is: over once its answers are as many as its questions."""
        questions, answers = self._questions(batch_id), self._answers(batch_id)
        over = answers.exists() and _lines(answers) >= _lines(questions)
        lost = not answers.exists() and not questions.exists()
        return BatchState(
            id=batch_id,
            tag=batch_id,
            state="failed" if lost else "completed" if over else "in_progress",
            input_file=questions.name,
            output_file=answers.name if over else None,
            error_file=None,
            message=f"{questions} and its answers are gone; the same command asks these questions again"
            if lost
            else "",
        )

    async def lines(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """A file of answers line by line.

        Raises:
            InputError: it cannot be read.
        """
        path = self.directory / file_id
        try:
            with path.open("rb") as file:
                while line := file.readline(LONGEST_LINE + 1):
                    if len(line) > LONGEST_LINE:
                        raise InputError(
                            f"{path}: has a line of more than {LONGEST_LINE} bytes, expected answers."
                        )
                    yield line
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}).") from None

    async def delete(self, file_id: str) -> None:
        """Remove a file of questions, and the directory with the last one."""
        (self.directory / file_id).unlink(missing_ok=True)

    def said(self, body: Any) -> str:
        """What an error body says, at most 400 characters of it."""
        text = message_of(body)
        return text if len(text) <= 400 else f"{text[:400]}..."

    def _questions(self, tag: str) -> Path:
        return self.directory / f"{tag}{_IN}"

    def _answers(self, tag: str) -> Path:
        return self.directory / f"{tag}{_OUT}"


def _lines(path: Path) -> int:
    """Whole lines of a file; 0 if there is none."""
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    except FileNotFoundError:
        return 0
