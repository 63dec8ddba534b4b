"""Known vulnerabilities of what is installed beside this Python, but those of ``known-vulnerabilities.txt``.

Ends with 1 if there are others. Ends with 2 if none was found, but packages could not be looked up, since the index
is not reached or tells of no vulnerabilities: pip-audit alone takes these for clean.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CLEAN, VULNERABLE, NOT_CHECKED = 0, 1, 2
_KNOWN = Path(__file__).with_name("known-vulnerabilities.txt")


def judged(packages: list[dict[str, Any]], known: set[str]) -> tuple[list[str], int]:
    """What to print of the packages in a report of pip-audit, and the exit code.

    Args:
        packages: ``dependencies`` of the report.
        known: ids of vulnerabilities that do not concern us.
    """
    checked = [one for one in packages if "skip_reason" not in one]
    # What is installed for editing is this project itself.
    not_checked = sorted(
        one["name"] for one in packages if "editable" not in one.get("skip_reason", "editable")
    )
    found = {
        vulnerability["id"]: f"{one['name']} {one['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for one in checked
        for vulnerability in one["vulns"]
        if not known & {vulnerability["id"], *vulnerability["aliases"]}
    }
    lines = [
        *found.values(),
        f"{len(checked)} packages checked, {len(found)} vulnerabilities that are not explained",
    ]
    if not_checked:
        lines.append(
            f"{len(not_checked)} packages NOT checked, of which the package index told nothing: "
            f"{', '.join(not_checked)}"
        )
    if found:
        return lines, VULNERABLE
    return lines, CLEAN if checked and not not_checked else NOT_CHECKED


def main() -> int:
    """Audit, print, and give the exit code."""
    lines = (line.split("#")[0].split() for line in _KNOWN.read_text(encoding="utf-8").splitlines())
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(
            f"NOT checked, pip-audit gave no report: {done.stderr.strip() or f'exit code {done.returncode}'}"
        )
        return NOT_CHECKED
    told, code = judged(packages, {words[0] for words in lines if words})
    print("\n".join(told))
    return code


if __name__ == "__main__":
    sys.exit(main())
