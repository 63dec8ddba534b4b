"""Which corpora are sources and which are targets of a comparison."""

from __future__ import annotations

from pathlib import Path

from mifuse_cli.config import words
from mifuse_cli.errors import InputError
from mifuse_cli.files import nearest
from mifuse_cli.steps.compare.config import CompareConfig


def sources_and_targets(config: CompareConfig) -> tuple[list[str], list[str]]:
    """Names of the sources and of the targets, given or found.

    Raises:
        InputError: a directory that is not there, or too few corpora in it.
    """
    if not words(config.sources) and not words(config.targets):
        names = words(config.names) or _found(config)
        return names, names
    sources = words(config.sources) or _with_models(config)
    targets = words(config.targets) or _with_answers(config)
    if not any(source != target for source in sources for target in targets):
        raise InputError(
            f"{config.models}, {config.data}: found the sources {', '.join(sources) or 'none'} and the targets "
            f"{', '.join(targets) or 'none'}, expected a source and a target of another name. Check --sources, "
            "--targets and the directories."
        )
    return sources, targets


def _with_models(config: CompareConfig) -> list[str]:
    """Corpora that have a model of the first seed."""
    first = f"seed{int(words(config.seeds)[0])}"
    return [path.name for path in _below(config.models, "source models") if (path / first).is_dir()]


def _with_answers(config: CompareConfig) -> list[str]:
    """Corpora that have data and answers."""
    return [
        path.name for path in _below(config.data, "corpora") if (config.lalm / f"{path.name}.h5").is_file()
    ]


def _found(config: CompareConfig) -> list[str]:
    """Corpora that have data, models and answers."""
    names = [name for name in _with_answers(config) if (config.models / name).is_dir()]
    if len(names) < 2:
        raise InputError(
            f"{config.data}: found {len(names)} corpora ({', '.join(names)}) with models in {config.models} and "
            f"answers in {config.lalm}, expected two or more. Check the directories."
        )
    return names


def _below(directory: Path, what: str) -> list[Path]:
    """Directories in a directory, by name."""
    if not directory.is_dir():
        raise InputError(
            f"{directory}: no such directory{nearest(directory)}. Give the one that holds the {what}."
        )
    return sorted(path for path in directory.iterdir() if path.is_dir())
