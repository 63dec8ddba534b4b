"""Known vulnerabilities of what is installed beside this Python, but those of ``known-vulnerabilities.txt``.

Ends with 1 if there are others, or if not one package could be looked up, which pip-audit alone takes for none found.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_KNOWN = Path(__file__).with_name("known-vulnerabilities.txt")


def judged(packages: list[dict[str, Any]], known: set[str]) -> tuple[list[str], bool]:
    """What to print of the packages in a report of pip-audit, and whether all is well.

    Args:
        packages: ``dependencies`` of the report.
        known: ids of vulnerabilities that do not concern us.
    """
    audited = [one for one in packages if "skip_reason" not in one]
    left_out = sorted(one["name"] for one in packages if "skip_reason" in one)
    found = {
        vulnerability["id"]: f"{one['name']} {one['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for one in audited
        for vulnerability in one["vulns"]
        if not known & {vulnerability["id"], *vulnerability["aliases"]}
    }
    lines = list(found.values())
    lines.append(f"{len(audited)} packages audited, {len(found)} vulnerabilities that are not explained")
    if left_out:
        lines.append(f"not audited: {', '.join(left_out)}")
    if not audited:
        lines.append(
            "not one package could be looked up: is the package index reached, and does it tell of them?"
        )
    return lines, bool(audited) and not found


def main() -> int:
    """Audit, print, and give the exit code."""
    lines = (line.split("#")[0].split() for line in _KNOWN.read_text(encoding="utf-8").splitlines())
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(done.stderr.strip() or "pip-audit gave no report")
        return 1
    told, good = judged(packages, {words[0] for words in lines if words})
    print("\n".join(told))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
