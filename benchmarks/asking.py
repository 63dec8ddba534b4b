"""Asking a service, keeping its answers, and making the artifact of them."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from measuring import Row, Spent, apart, in_turn

from mifuse_cli import QueryLalmConfig, query_lalm
from mifuse_cli.audio import RATE, Excerpt, wav_bytes
from mifuse_cli.lalm import Journal, OpenQuestions, QuestionOptions, journal_path
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.questions.clips import AskedClip
from mifuse_cli.lalm.questions.plan import first_questions
from mifuse_cli.lalm.questions.prompts import Wording
from mifuse_cli.steps.query_lalm.saving import save_artifact

BODY = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": '{"angry": 70, "happy": 10, "neutral": 5, "sad": 15}',
                },
            }
        ],
        "usage": {"prompt_tokens": 120, "completion_tokens": 40, "total_tokens": 160},
    }
).encode()
AT_ONCE, DELAY_S, CLIPS, CLIP_S = 16, 0.2, 1000, 3


async def _answer(delay: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    try:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().splitlines()
            size = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            await reader.readexactly(size)
            await asyncio.sleep(delay)
            writer.write(head.encode() + BODY)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _serve(told: Connection, delay: float) -> None:
    async def run() -> None:
        server = await asyncio.start_server(
            lambda reader, writer: _answer(delay, reader, writer), "127.0.0.1", 0, limit=2**24
        )
        told.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def service(delay: float = 0.0) -> Iterator[str]:
    """Address of a server in a process of its own that gives every question the same answer after some seconds."""
    context = multiprocessing.get_context("fork")
    address, told = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(told, delay), daemon=True)
    process.start()
    try:
        yield address.recv()
    finally:
        process.kill()


def bare(url: str, files: list[Path]) -> None:
    """The straightforward way: a loop over the openai package, answers kept in memory."""
    from openai import AsyncOpenAI

    async def run() -> list[str | None]:
        client, free = AsyncOpenAI(base_url=url, api_key="none"), asyncio.Semaphore(AT_ONCE)

        async def one(file: Path) -> str | None:
            async with free:
                sound = base64.b64encode(file.read_bytes()).decode()
                part = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
                told = [{"type": "text", "text": "Which emotion?"}, part]
                answer = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": told}]
                )
                return answer.choices[0].message.content

        return await asyncio.gather(*map(one, files))

    assert all(asyncio.run(run()))


def overhead(place: Path) -> list[Row]:
    """What the client costs: questions of a service that answers after a time, some at once."""
    wav = place / "asked"
    wav.mkdir()
    rng = np.random.default_rng(0)
    for number in range(CLIPS):
        samples = rng.uniform(-0.1, 0.1, CLIP_S * RATE)
        (wav / f"{number}.wav").write_bytes(wav_bytes(samples))
    files = sorted(wav.iterdir())

    def ours(url: str) -> None:
        out = Path(tempfile.mkdtemp(dir=place)) / "lalm.h5"
        query_lalm(
            QueryLalmConfig(
                wav_dir=wav, out=out, model="m", base_url=url, n_samples=1, rpm=1e9, concurrency=AT_ONCE
            )
        )

    with service(DELAY_S) as url:
        mine, theirs = in_turn(lambda: ours(url), lambda: bare(url, files), 2, apart)
    limit = CLIPS * DELAY_S / AT_ONCE
    note = f"{CLIPS} clips of {CLIP_S} s, an answer after {DELAY_S:g} s, {AT_ONCE} at once: "

    def told(one: Spent) -> str:
        return f"{one.wall_s:.1f} s (CPU {one.cpu_s:.1f} s)"

    note += f"{told(mine)}, the loop {told(theirs)}"
    return [
        Row(
            "query-lalm",
            "a bare loop over openai",
            mine.wall_s / theirs.wall_s,
            "x the time",
            most=1.25,
            note=note,
        ),
        Row(
            "query-lalm", "the time of the service", mine.wall_s / limit, "x the time", note=f"{limit:.1f} s"
        ),
    ]


def group_commit(place: Path) -> list[Row]:
    """How many times as fast 64 requests at once are kept as one after the other."""
    keys = iter(range(10**9))
    with Journal(place / "bench.sqlite") as journal:

        def keep(waiting: int) -> None:
            for _ in range(256 // waiting):
                begun = [(key := str(next(keys)), journal.begin(key, 1)) for _ in range(waiting)]
                done = []
                for key, intent in begun:
                    number = intent.result()
                    done.append(journal.store(number, key, BODY, http_status=200))
                    done.append(journal.settle(number, key, decode(BODY)))
                for one in done:
                    one.result()

        one, many = in_turn(lambda: keep(1), lambda: keep(64), 5)
    value = one.wall_s / many.wall_s
    return [Row("query-lalm, journal", "requests one by one", value, "x as fast", note="64 requests at once")]


def compaction(place: Path, clips: int = 2000) -> list[Row]:
    """Cost of making the artifact from a journal, over that of decoding the JSON of its answers alone."""
    options = QuestionOptions("h", "m", Wording(), ("angry", "happy", "neutral", "sad"), n_samples=5)
    with Journal(journal_path(place / "made.h5")) as journal:
        found = [
            AskedClip(f"{i:06}", f"{i:064}", 2.0, RATE, 64044, Excerpt(Path()), pieces=(2.0,))
            for i in range(clips)
        ]
        journal.add_clips(journal.new_run(), found)
        begun = [(one.key, journal.begin(one.key, 1)) for one in first_questions(options, found)]
        for key, intent in begun:
            journal.store(intent.result(), key, BODY, http_status=200)
            last = journal.settle(intent.result(), key, decode(BODY))
        last.result()
        config = QueryLalmConfig(wav_dir=place, out=place / "made.h5", model="m")
        questions = OpenQuestions(options, journal)

        def decode_json() -> None:
            for _ in begun:
                json.loads(json.loads(BODY)["choices"][0]["message"]["content"])

        made, decoded = in_turn(lambda: save_artifact(config, place, questions, None), decode_json, 5)
    return [
        Row(
            "query-lalm, artifact",
            "decoding the JSON of the answers",
            made.cpu_s / decoded.cpu_s,
            "x the CPU time",
            note=f"{len(begun):,} answers",
        )
    ]


def rows(place: Path, shared: Path | None) -> list[Row]:
    os.environ.setdefault("OPENAI_API_KEY", "none")
    return [*overhead(place), *group_commit(place), *compaction(place)]
