"""``mifuse compare``: many systems on every transfer between corpora, and the tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np

from mifuse_cli import lineage
from mifuse_cli.artifacts import Compared
from mifuse_cli.config import Progress
from mifuse_cli.errors import InputError
from mifuse_cli.files import atomic_file
from mifuse_cli.steps.compare.config import CompareConfig, CompareResult
from mifuse_cli.steps.compare.planning import Plan, plan
from mifuse_cli.steps.compare.scoring import results
from mifuse_cli.steps.compare.tables import as_csv, latex, markdown

__all__ = ["CompareConfig", "CompareResult", "compare"]

if TYPE_CHECKING:
    from mifuse_cli.steps.compare.running import Task


def compare(config: CompareConfig, *, progress: Progress | None = None) -> CompareResult:
    """Run what is missing, a process a core, then score all and write the tables.

    Every run is an artifact of its own below ``OUT/runs``; an interrupted comparison goes on from those, and so
    does one with further systems, seeds or corpora.

    Raises:
        InputError: a corpus, model or artifact that is missing or cannot be read, labels that are unknown, fewer
            answers than asked for, tables that exist.
        ArtifactError: models or answers over other classes or clips.
    """
    _refuse_overwrite(config)
    planned = plan(config)
    todo = [task for task in planned.tasks.values() if task.systems]
    made, total = 0, sum(len(task.systems) for task in todo)
    if todo:
        _encode(config, planned, progress)
    for number in _run(todo, config.jobs or os.cpu_count() or 1):
        made += number
        if progress:
            progress("comparing", made, total)
    found = results(config, planned, _predictions(planned))
    config.out.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "table.md": markdown(found),
        "table.tex": latex(found),
        "scores.csv": as_csv(found),
        "results.json": json.dumps(found, indent=1) + "\n",
    }.items():
        with atomic_file(config.out / name) as path:
            path.write_text(text, encoding="utf-8")
    return CompareResult(
        out=config.out,
        protocol=found["protocol"],
        runs=len(planned.tasks) * len(planned.systems),
        made=made,
        results=found,
        up_to_date=not made and config.update,
        notes=planned.notes,
    )


def _refuse_overwrite(config: CompareConfig) -> None:
    if config.out.is_dir() and any(config.out.iterdir()) and not (config.out / "runs").is_dir():
        raise InputError(
            f"{config.out}: is a directory that holds something else than a comparison. Choose another --out."
        )
    lineage.refuse_overwrite(config, config.out / "results.json")


def _encode(config: CompareConfig, planned: Plan, progress: Progress | None) -> None:
    """Put every clip's features into the cache, which the runs then share."""
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.prepare import all_layers

    seen: set[tuple[str, str]] = set()
    for (_, target, _), task in planned.tasks.items():
        source = checkpoint.load(task.model)
        key = (target, source.encoder_digest())
        if task.systems and key not in seen:
            device = find_device(config.device)
            all_layers(source, task.clips, device=device, cache=config.cache_dir, progress=progress)
            seen.add(key)


def _run(todo: list[Task], jobs: int) -> Iterator[int]:
    """Run the tasks, ``jobs`` at a time; gives how many systems each has run as it ends."""
    from mifuse_cli.steps.compare import running

    if jobs == 1 or len(todo) < 2:
        yield from map(running.run, todo)
        return
    # The largest targets first, so that no process is left with one at the end.
    todo = sorted(todo, key=lambda task: -len(task.clips) * len(task.systems))
    pool = ProcessPoolExecutor(min(jobs, len(todo)), get_context("spawn"), initializer=_one_thread)
    try:
        pending = [pool.submit(running.run, task) for task in todo]
        for done in as_completed(pending):
            yield done.result()
    finally:
        # After an error or an interruption, what is running ends and nothing else is begun.
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """A core for each process: threads of several would only wait for each other."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def _predictions(planned: Plan) -> dict[tuple[str, str, int], np.ndarray]:
    """Predictions (R, U, K) of the plan's systems by source, target and seed."""
    found = {}
    for key, task in planned.tasks.items():
        made = Compared.load(task.out)
        place = {name: number for number, name in enumerate(made.systems.tolist())}
        found[key] = made.probs[[place[one.name] for one in planned.systems]]
    return found
