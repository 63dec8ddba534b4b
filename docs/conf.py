"""Settings of the documentation site: ``sphinx-build -W -c docs . exp/site``.

The pages are the Markdown files of the repository, and one page for every command, made from the code.
"""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from mifuse_cli import __version__
from mifuse_cli.cli import app

project, release = "mifuse", __version__
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "recipes/README.md"]
suppress_warnings = ["myst.xref_missing", "myst.header"]  # links are tested by tests/test_docs.py
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
html_theme = "furo"


def write_command_pages(directory: Path) -> None:
    """Write one page for every command, and one that lists them."""
    directory.mkdir(exist_ok=True)
    group = typer.main.get_command(app)
    with typer.Context(group, info_name="mifuse") as context:
        for name, command in group.commands.items():
            text = get_docs_for_click(obj=command, ctx=context, name=name, call_prefix="mifuse")
            (directory / f"{name}.md").write_text(text, encoding="utf-8")
    names = "\n".join(group.commands)
    (directory / "index.md").write_text(f"# Commands\n\n```{{toctree}}\n{names}\n```\n", encoding="utf-8")


write_command_pages(Path(__file__).parent / "commands")
