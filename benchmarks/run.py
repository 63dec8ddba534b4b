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
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

# Before torch is loaded: one thread a process, see docs/performance.md.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import asking
import encoding
import fusing
import growth
import predicting
import torch
from measuring import Row, line

from mifuse_cli import __version__
from mifuse_cli.cores import free_cores

SECTIONS: dict[str, Callable[[Path, Path | None], list[Row]]] = {
    "encoding": encoding.rows,
    "predicting": lambda place, shared: predicting.rows(place),
    "asking": lambda place, shared: asking.rows(place),
    "fusing": lambda place, shared: fusing.rows(place),
    "growth": lambda place, shared: growth.rows(place),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared", type=Path, help="has encoders/whisper-tiny.en and corpora; default: without these rows"
    )
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this section; may be repeated")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    given = parser.parse_args()
    cores, start = free_cores(), time.monotonic()
    machine = (
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"mifuse {__version__}, {machine}", flush=True)
    found: dict[str, list[Row]] = {}
    for name in given.only or SECTIONS:
        with tempfile.TemporaryDirectory() as place:
            found[name] = SECTIONS[name](Path(place), given.shared)
        print(f"\n{name}, after {time.monotonic() - start:.0f} s", flush=True)
        for row in found[name]:
            print(line(row), flush=True)
    if given.json is not None:
        rows = [
            {"section": name, **asdict(row), "met": row.met} for name, some in found.items() for row in some
        ]
        given.json.write_text(json.dumps({"mifuse": __version__, "machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
