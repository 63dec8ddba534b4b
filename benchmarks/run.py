"""All benchmarks as one table of ratios, and as JSON. Run with ``make bench``.

Every row compares two things that are run in turn: ours and the straightforward way, a limit of the machine, or the
same for fewer clips. On a machine that others use, believe the ratios of CPU time; close other programs for those of
wall clock. ``--shared`` adds the rows of a Whisper encoder on real clips.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch is loaded: one thread a process, see docs/performance.md.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from measuring import line

from mifuse_cli import __version__
from mifuse_cli.cores import free_cores

SECTIONS = ("encoding", "predicting", "asking", "fusing", "growth")
"""Modules beside this one."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared", type=Path, help="has encoders/whisper-tiny.en and corpora; default: without these rows"
    )
    parser.add_argument("--only", choices=SECTIONS, help="this section")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    given = parser.parse_args()
    cores, start = free_cores(), time.monotonic()
    machine = (
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, torch {version('torch')}"
    )
    if given.only:
        with tempfile.TemporaryDirectory() as place:
            rows = import_module(given.only).rows(Path(place), given.shared)
        for row in rows:
            print(line(row), flush=True)
        found = [{"section": given.only, **asdict(row), "met": row.met} for row in rows]
    else:
        print(f"mifuse {__version__}, {machine}", flush=True)
        found = []
        for name in SECTIONS:
            print(f"\n{name}, after {time.monotonic() - start:.0f} s", flush=True)
            found += _apart(name, given.shared)
    if given.json is not None:
        given.json.write_text(
            json.dumps({"mifuse": __version__, "machine": machine, "rows": found}, indent=1)
        )


def _apart(section: str, shared: Path | None) -> list[dict[str, Any]]:
    """Rows of a section, measured in a process of its own, which does not hold what others needed."""
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "rows.json"
        command = [sys.executable, __file__, "--only", section, "--json", str(told)]
        subprocess.run([*command, *(["--shared", str(shared)] if shared else [])], check=True)
        rows: list[dict[str, Any]] = json.loads(told.read_text())["rows"]
        return rows


if __name__ == "__main__":
    main()
