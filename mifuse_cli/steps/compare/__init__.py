"""``mifuse compare``: many systems on every transfer between corpora, and the tables."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np

from mifuse_cli import lineage
from mifuse_cli.artifacts import Compared
from mifuse_cli.config import Progress
from mifuse_cli.cores import free_cores
from mifuse_cli.errors import InputError, MifuseError
from mifuse_cli.files import is_empty, read_results, refuse_links, write_texts
from mifuse_cli.steps.compare.config import CompareConfig, CompareResult
from mifuse_cli.steps.compare.formatting import as_csv, latex, markdown
from mifuse_cli.steps.compare.planning import Plan, plan
from mifuse_cli.steps.compare.scoring import results
from mifuse_cli.steps.compare.targets import write_targets

_TABLES = ("table.md", "table.tex", "scores.csv", "results.json")

__all__ = ["CompareConfig", "CompareResult", "compare"]

if TYPE_CHECKING:
    from mifuse_cli.steps.compare.running import Task


def compare(config: CompareConfig, *, progress: Progress | None = None) -> CompareResult:
    """Run what is missing, one process for each core, then score everything and write the tables.

    Every run is an artifact of its own below ``OUT/runs``, the true classes are in ``OUT/targets``. An interrupted
    comparison goes on from the runs, and so does one with further systems, seeds or corpora. ``force`` repeats the
    runs of the systems that are named.

    Raises:
        InputError: a corpus, model or artifact that is missing or cannot be read, labels that are
            unknown, fewer answers or speakers than needed, an output that is not a comparison.
        ArtifactError: models or answers over other classes or clips, answers that are not complete.
    """
    _refuse_other(config)
    planned = plan(config)
    todo = [task for task in planned.tasks.values() if task.systems]
    made, total = 0, sum(len(task.systems) for task in todo)
    if todo:
        _encode(config, planned, progress)
    for number in _run(todo, config.jobs or free_cores()):
        made += number
        if progress:
            progress("comparing", made, total)
    found = results(config, planned, _predictions(planned))
    texts = {
        "results.json": json.dumps(found, indent=1) + "\n",  # first: it tells what the directory is
        "table.md": markdown(found),
        "table.tex": latex(found),
        "scores.csv": as_csv(found),
    }
    other_targets = write_targets(config, planned)
    changed = write_texts(config.out, texts)
    return CompareResult(
        out=config.out,
        protocol=found["protocol"],
        runs=len(planned.tasks) * len(planned.systems),
        made=made,
        results=found,
        up_to_date=config.update and not (made or changed or other_targets),
        notes=planned.notes,
    )


def _refuse_other(config: CompareConfig) -> None:
    out = config.out
    lineage.refuse_inputs(config, out)
    refuse_links(
        out, out / "runs", out / "targets", *(out / "runs").rglob("*"), *(out / "targets").rglob("*")
    )
    if is_empty(out):
        return
    tables = [name for name in _TABLES if os.path.lexists(out / name)]
    if not (out / "runs").is_dir() or (tables and "systems" not in read_results(out)):
        raise InputError(
            f"{out}: is a directory that holds something else than a comparison. Choose another --out."
        )


def _encode(config: CompareConfig, planned: Plan, progress: Progress | None) -> None:
    """Compute the features and voices of every clip into the cache that the runs share."""
    from mifuse_cli.methods.structure import states_in_use
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.prepare import hidden_states
    from mifuse_cli.model.speaker_encoder import speaker_vectors

    seen: set[tuple[str, str, int]] = set()
    heard: set[str] = set()
    for (_, target, _), task in planned.tasks.items():
        # Before the features, which take longer: a wrong speaker encoder is then told of at once.
        if task.speaker_encoder is not None and target not in heard:
            device = find_device(config.device)
            speaker_vectors(
                task.clips,
                task.speaker_encoder,
                device=device,
                encoding=config.encoding,
                progress=progress,
            )
            heard.add(target)
        source = checkpoint.load(task.model)
        states = states_in_use(source.shape)
        key = (target, source.encoder_digest(), states)
        if task.systems and key not in seen:
            device = find_device(config.device)
            hidden_states(
                source,
                task.clips,
                states=states,
                device=device,
                encoding=config.encoding,
                progress=progress,
            )
            seen.add(key)


def _run(todo: list[Task], jobs: int) -> Iterator[int]:
    """Run the tasks, ``jobs`` at a time; yields the number of systems run by each task as it ends."""
    from mifuse_cli.steps.compare import running

    if jobs == 1 or len(todo) < 2:
        yield from map(running.run, todo)
        return
    # Largest targets first, so that the last tasks to finish are short.
    waiting = sorted(todo, key=lambda task: len(task.clips) * len(task.systems))
    context = get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), context, initializer=_prepare_process) as pool:
        pending: set[Future[int]] = set()
        try:
            while waiting or pending:
                # No more tasks than can run at once, since submitted tasks cannot be cancelled after an error.
                while waiting and len(pending) < jobs:
                    pending.add(pool.submit(running.run, waiting.pop()))
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        except BrokenProcessPool:
            raise MifuseError(
                "a process was ended from outside, as happens when memory runs out. Finished runs are kept: run the "
                "same command again, with fewer --jobs."
            ) from None


def _prepare_process() -> None:
    """Limit the process to one thread, since there is one process for each core, and leave Ctrl-C to the
    parent.
    """
    import scipy.linalg  # noqa: F401 - thread limits apply only to libraries already loaded
    import sklearn.cluster  # noqa: F401
    import torch
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
