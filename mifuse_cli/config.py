"""Step configurations: one frozen dataclass is the flag list, the YAML keys and the stored provenance.

A field made with `option` carries its help text; the command line, the check of ``--config`` files and
the ``config`` attribute of every artifact are all read off the dataclass.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from mifuse_cli.encoding_settings import CACHE_DTYPES, ENGINES, WORKERS, Encoding, byte_count, size_problems
from mifuse_cli.errors import InputError, MifuseError, UsageError, did_you_mean, some
from mifuse_cli.files import format_of, read_text

_Engine = TypeVar("_Engine")
_LARGEST_WHOLE = 1 << 63
"""Whole numbers below it fit into an artifact."""
_MOST_NODES = 100_000
"""Values in a YAML file; a few lines of references to references make billions of them."""
_ENDINGS = {f".{name}" for name in (
    "csv", "gz", "h5", "hdf5", "htm", "html", "json", "jsonl", "md", "npy", "npz", "parquet", "pdf", "pkl", "png", "pt",
    "rttm", "svg", "tex", "tsv", "txt", "wav", "xlsx", "xml", "yaml", "yml", "zip")}  # fmt: skip
"""Of names that promise a format."""
Progress = Callable[..., None]
"""Progress callback, called with: the name of the work, pieces done, their total, and optional facts by name."""


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    settles: bool = True,
    panel: str = "",
    positional: bool = False,
    endings: tuple[str, ...] = (),
) -> Any:
    """Dataclass field that is a command-line option.

    Args:
        default: value when nothing is given; without it the option is required.
        help: one sentence for ``--help``.
        settles: whether the value affects the result (that of ``--force`` does not). ``--update``
            compares only such options to decide whether an output is current.
        panel: heading in ``--help`` under which the option is listed; "" for the general one.
        positional: whether the command line takes it without a flag, in the order of the fields.
        endings: those of a file to write, such as ".h5". A name that ends like another format is refused; one with an
            ending of its own, or none, is not.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "settles": settles,
            "panel": panel,
            "positional": positional,
            "endings": endings,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parent of every configuration."""

    def __post_init__(self) -> None:
        """Turn path strings into paths, then let the subclass list what is wrong with its values."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if is_repeatable(field):
                paths = [value] if isinstance(value, str | Path) else value
                object.__setattr__(self, field.name, tuple(map(Path, paths)))
            elif "Path" in str(field.type) and isinstance(value, str):
                object.__setattr__(self, field.name, Path(value))
        problems = [*self._impossible(), *self.problems()]
        if problems:
            raise UsageError("; ".join(problems))

    def problems(self) -> Iterable[str]:
        """Sentences about values that make no sense, all of them."""
        return ()

    def _impossible(self) -> Iterable[str]:
        """Sentences about values that no option can have: they come from files and from the environment too."""
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, float) and not math.isfinite(one):
                    yield f"{flag} {one}: expected a finite number"
                elif isinstance(one, int) and not -_LARGEST_WHOLE <= one < _LARGEST_WHOLE:
                    yield f"{flag}: expected a whole number of at most 63 bits"
                elif isinstance(one, str | Path) and "\0" in str(one):
                    yield f"{flag} {str(one)!r}: holds a zero byte"
            endings = field.metadata.get("endings") or ()
            if endings and isinstance(value, Path) and value.suffix.lower() in _ENDINGS.difference(endings):
                yield f"{flag} {value}: what is written is no {value.suffix}, expected a name with {endings[0]}"


@dataclass(frozen=True, kw_only=True)
class StepConfig(Config):
    """Options of every step that writes an artifact."""

    seed: int = option(0, "Seed of every random draw in this step.")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps.", settles=False)
    force: bool = option(False, "Overwrite an existing --out.", settles=False)
    update: bool = option(
        False,
        "Do nothing if --out was made with these settings and inputs, else make it anew.",
        settles=False,
    )

    @property
    def replaces(self) -> bool:
        """Whether an output that is there already may be replaced."""
        return self.force or self.update


@dataclass(frozen=True, kw_only=True)
class EncodingConfig(StepConfig):
    """Options of every step that encodes audio."""

    cache_dir: Path | None = option(
        None, "Directory of the feature cache; default: MIFUSE_CACHE_DIR or the user's cache.", settles=False
    )
    # Of the result it changes the last digits, as another device does.
    cache_dtype: str = option(
        "float32",
        "Numbers in the feature cache: float32, or float16, which takes half the room and rounds to 11 bits (relative "
        "error up to 0.05 %).",
        settles=False,
    )
    cache_limit: str = option(
        "",
        "Most room that the whole feature cache may take after the step, such as 20GB; what was not used for longest "
        "is removed. Default: no limit.",
        settles=False,
    )
    workers: int = option(0, WORKERS, settles=False)
    engine: str = option(
        "local",
        "What encodes audio with a frozen encoder: local, this machine; or ray, the cluster of RAY_ADDRESS, whose "
        "nodes all find the audio and the encoder at the same paths.",
        settles=False,
    )

    @property
    def encoding(self) -> Encoding:
        """The options of encoding in one."""
        return Encoding(
            cache_dir=self.cache_dir,
            cache_dtype=self.cache_dtype,
            cache_limit=byte_count(self.cache_limit) if self.cache_limit else None,
            workers=self.workers,
            engine=self.engine,
        )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from one_of("--cache-dtype", self.cache_dtype, CACHE_DTYPES)
        yield from size_problems("--cache-limit", self.cache_limit)
        yield from at_least("--workers", self.workers, 0)
        yield from one_of("--engine", self.engine, ENGINES)
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class TuningConfig(EncodingConfig):
    """Options of every step that can train an encoder."""

    # Neither affects the result, apart from rounding and from which units of the encoder dropout hits, so that a run
    # that ran out of memory can be continued with less.
    micro_batch_seconds: float = option(
        0.0,
        "Where the encoder is trained: seconds of audio whose activations are held at a time, the rest being computed "
        "again, so that a batch may be larger than memory; 0: those of the whole batch are held.",
        settles=False,
    )
    gradient_checkpointing: bool = option(
        False,
        "Where the encoder is trained: hold no activations within its blocks, compute them again for the gradients.",
        settles=False,
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from at_least("--micro-batch-seconds", self.micro_batch_seconds, 0)
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of every step that makes something.

    Attributes:
        out: the file or directory that was made.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path
    up_to_date: bool = False
    notes: tuple[str, ...] = ()


def is_repeatable(field: dataclasses.Field[Any]) -> bool:
    """Whether the option may be given several times: its type is ``tuple[Path, ...]``."""
    return str(field.type).startswith("tuple")


def as_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as JSON types."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def settings(config: Config) -> dict[str, Any]:
    """The options that affect the result, without paths: input files are compared by content instead."""
    values = as_dict(config)
    return {
        field.name: values[field.name]
        for field in dataclasses.fields(config)
        if field.metadata.get("settles", True) and "Path" not in str(field.type)
    }


def options_of(config: Config, kind: type[_Engine], **others: Any) -> _Engine:
    """Options of an engine: fields of a configuration of the same names, and ``others``, which come first."""
    names = {one.name for one in dataclasses.fields(cast(Any, kind)) if hasattr(config, one.name)}
    return kind(**{name: getattr(config, name) for name in names - others.keys()}, **others)


def words(text: str) -> list[str]:
    """Parts of ``text`` between commas, without spaces around them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def one_of(flag: str, value: str, allowed: Iterable[str]) -> Iterable[str]:
    """A problem sentence if ``value`` is not allowed, with the nearest allowed name."""
    names = list(allowed)
    if value not in names:
        yield f"{flag} {value!r}: expected one of {', '.join(names)}{did_you_mean(value, names)}"


def at_least(flag: str, value: float, lowest: float) -> Iterable[str]:
    """A problem sentence if ``value`` is below ``lowest``."""
    if not value >= lowest:
        yield f"{flag} {value}: expected {lowest} or more"


def between(flag: str, value: float, low: float, high: float) -> Iterable[str]:
    """A problem sentence if ``value`` is not in [low, high)."""
    if not low <= value < high:
        yield f"{flag} {value}: expected at least {low} and below {high}"


def above_zero(flag: str, value: float) -> Iterable[str]:
    """A problem sentence if ``value`` is not positive."""
    if not value > 0:
        yield f"{flag} {value}: expected more than 0"


NORMALIZATIONS = ("source", "target", "speaker")
"""Whose statistics standardise the input of a classifier's head."""


def normalize_problems(value: str) -> Iterable[str]:
    """A problem sentence if ``value`` is neither empty nor one of `NORMALIZATIONS`."""
    if value:
        yield from one_of("--normalize", value, NORMALIZATIONS)


def target_problems(manifest: Path | None, wav_dir: Path | None) -> Iterable[str]:
    """A problem sentence unless exactly one source of clips is given."""
    if (manifest is None) == (wav_dir is None):
        yield "expected one of --manifest and --wav-dir" + (", not both" if manifest else "")


def shard_option(panel: str = "") -> Any:
    """The option ``--shard`` of the steps whose artifacts ``merge`` joins."""
    return option(
        "",
        "I/N: only part I of N equal parts of the clips, for merge to join. The audio alone settles which part a clip "
        "is in; all parts need the same list of clips.",
        settles=False,  # its clips are compared, as a parent
        panel=panel,
    )


def shard_problems(value: str) -> Iterable[str]:
    """A problem sentence unless the value is empty, or I/N with I from 1 to N."""
    found = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", value)
    if value and not (found and int(found[1]) <= int(found[2])):
        yield f"--shard {value!r}: expected I/N with I from 1 to N, such as 2/8"


def tune_problems(value: str, others: tuple[str, ...] = ()) -> Iterable[str]:
    """A problem sentence unless ``value`` is head, all, top-N with N of at least 1, or one of ``others``."""
    if value not in ("head", "all", *others) and not re.fullmatch(r"top-[1-9]\d*", value):
        yield f"--tune {value!r}: expected {', '.join((*others, 'head', 'top-N', 'all'))}"


def read_yaml(path: Path, command: str, commands: Mapping[str, type[Config]]) -> dict[str, Any]:
    """Values of a ``--config`` file for a command, keys as field names.

    A mapping under a command's name holds options of that command alone, which win over those outside of it.

    Args:
        path: of the file.
        command: its name.
        commands: configurations of all commands by name.

    Raises:
        UsageError: unreadable file, not a mapping, or keys that the command does not know (all are named).
    """
    values = load_yaml(path, f"--config {path}")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: expected a mapping of option names to values")
    parts = {name: values.pop(name) for name in [*values] if name in commands and _is_part(values[name])}
    values = {str(key): value for key, value in {**values, **(parts.get(command) or {})}.items()}
    known = {field.name: field for field in dataclasses.fields(commands[command])}
    unknown = [f"{key!r}{_hint(key, command, commands)}" for key in sorted(values) if _name(key) not in known]
    if unknown:
        raise UsageError(f"--config {path}: unknown option {', '.join(unknown)}")
    odd = [key for key, value in values.items() if not _is_value(value) and not _is_list(value)]
    if odd:
        raise UsageError(f"--config {path}: {some(odd)}: expected a number, a text, or a list of them")
    return {_name(key): _as_given(value, known[_name(key)]) for key, value in values.items()}


def _is_part(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _name(key: str) -> str:
    return key.replace("-", "_")


def _hint(key: str, command: str, commands: Mapping[str, type[Config]]) -> str:
    """Which commands have an option that this one has not, or which option of it may be meant."""
    fields = {name: {one.name for one in dataclasses.fields(kind)} for name, kind in commands.items()}
    if key in commands:
        return " (a command: expected a mapping of its options)"
    others = [name for name, names in fields.items() if _name(key) in names]
    if others:
        return f" ({command} has none; {', '.join(others)} {'has' if len(others) == 1 else 'have'})"
    known = [one.replace("_", "-") if "-" in key else one for one in fields[command]]
    return did_you_mean(key, [*known, *commands])


def load_yaml(path: Path, name: str, kind: type[MifuseError] = UsageError) -> Any:
    """Decoded content of a YAML file.

    Args:
        path: of the file.
        name: what an error message calls it.
        kind: of the error where the file is no YAML.

    Raises:
        MifuseError: of that kind; the file is no YAML, or has a key twice.
        InputError: it cannot be read.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a mapping with the same key twice, of which the last would count."""

    def mapping(loader: Any, node: Any) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key.value, str)]
        if twice := [one for one in dict.fromkeys(names) if names.count(one) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{some(twice)}: given twice", node.start_mark
            )
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"{name}: is {format_of(path)}, expected YAML in UTF-8.") from None
    try:
        found = yaml.load(text, Loader)
        if sum(1 for _ in islice(_nodes(found), _MOST_NODES)) == _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES} values, counted as often as they are referred to")
    except (ValueError, yaml.YAMLError) as error:
        raise kind(f"{name}: cannot be read as YAML: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        # The constructors of YAML's types check little of what they are given.
        raise kind(f"{name}: cannot be read as YAML: it holds a value that is none ({error!r})") from None
    return found


def _nodes(value: Any) -> Iterator[None]:
    """One for every value in a document."""
    yield None
    for one in (
        [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _nodes(one)


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | datetime.date)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_value, value))


def _as_given(value: Any, field: dataclasses.Field[Any]) -> Any:
    """A value of a file as flags would have it: ``[a, b]`` is ``a,b``, or two flags if the option is repeatable."""
    if isinstance(value, list):
        return list(map(str, value)) if is_repeatable(field) else ",".join(map(str, value))
    if value is None or type(value).__name__ in re.findall(r"bool|int|float", str(field.type)):
        return value
    return [str(value)] if is_repeatable(field) else str(value)
