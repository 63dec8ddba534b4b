"""A subcommand of ``mifuse``: flags are parsed into a step's configuration, the step is run, its result is printed.

The flags of a subcommand are the fields of its configuration dataclass; nothing is listed here a second time.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
import typer.core

import mifuse_cli
from mifuse_cli import config as configs
from mifuse_cli import console
from mifuse_cli.errors import InputError, MifuseError, UsageError, did_you_mean
from mifuse_cli.model import launcher, processes

_EPILOG = (
    "Every option can also be set by MIFUSE_OPTION or MIFUSE_COMMAND_OPTION in the environment, or in the YAML "
    "file of --config; flags win over the environment, the environment over the file. Exit codes: 0 ok, 1 bug, "
    "2 usage, 3 bad input, 4 schema or lineage mismatch, 5 remote service failed (answers are kept), "
    "6 dependency or GPU missing, 130 interrupted."
)

app = typer.Typer(
    help="Adapt a speech emotion model to unlabelled audio with the help of an audio-language model.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_AS_JSON = "mifuse.log_json"
"""Key in ``ctx.meta``: whether errors are JSON, known before the options are parsed."""


class _Command(typer.core.TyperCommand):
    """A command whose errors tell if a wrong value is from the environment or the file of --config."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the parent does, with errors as JSON where they are wanted so."""
        told = (os.environ.get(name, "").lower() for name in _variables(ctx.command.name or "", "log_json"))
        as_json = ctx.meta[_AS_JSON] = "--log-json" in args or not {"1", "true", "yes", "on"}.isdisjoint(told)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            param = getattr(error, "param", None)
            if param is not None and (origin := _origin(ctx, param)):
                error.message = f"{error.message.rstrip('.')}, from {origin}."  # type: ignore[attr-defined]
            if not as_json or not hasattr(error, "format_message"):  # only errors of usage have it
                raise
            console.error(error.format_message(), as_json=True)
            raise typer.Exit(UsageError.exit_code) from None


def _origin(ctx: typer.Context, option: Any) -> str:
    """Where a value is from, if it is not of the command line."""
    source = ctx.get_parameter_source(option.name)
    if source is not None and source.name == "ENVIRONMENT":
        return next((f"{name} in the environment" for name in option.envvar if os.environ.get(name)), "")
    return "the file of --config" if source is not None and source.name == "DEFAULT_MAP" else ""


def _origins(ctx: typer.Context, text: str) -> str:
    """Where the options that an error names are from, as far as they are not of the command line."""
    found = (
        f"{flag} is from {origin}"
        for option in ctx.command.params
        for flag in option.opts
        if re.search(rf"{flag}(?![\w-])", text) and (origin := _origin(ctx, option))
    )
    return "".join(f"; {one}" for one in found)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mifuse {mifuse_cli.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Hold the options of the program itself; its help is that of `app`."""


_CONFIGS: dict[str, type[configs.Config]] = {}
"""Configurations of all commands by name."""


def command(name: str, example: str) -> Callable[[Callable[[Any], str]], None]:
    """Register the step ``name`` as a subcommand; the decorated function writes its result for people."""

    def register(report: Callable[[Any], str]) -> None:
        module_name = name.replace("-", "_")
        module = import_module(f"mifuse_cli.steps.{module_name}")
        stem = "".join(part.capitalize() for part in name.split("-"))
        config_type: type[configs.Config] = getattr(module, f"{stem}Config")
        _CONFIGS[name] = config_type
        step = getattr(module, module_name)

        def run(
            ctx: typer.Context, json: bool, log_json: bool, quiet: bool, config: Path | None, **values: Any
        ) -> None:
            is_first = launcher.number() == 0
            quiet, json = quiet or not is_first, json and is_first
            try:
                processes.check_undivided(step, name)
                if not quiet:
                    for text in _unknown_variables():
                        console.note(text, as_json=log_json)
                with console.progress_bar(quiet, log_json) as progress:
                    result = step(config_type(**values), progress=progress)
            except MifuseError as error:
                launcher.let_the_first_speak()
                origins = _origins(ctx, str(error)) if isinstance(error, UsageError) else ""
                console.error(f"{error}{origins}", as_json=log_json)
                raise typer.Exit(error.exit_code) from None
            except OSError as error:
                # A step names what it knows of. File systems fail in more ways, and no traceback tells users of them.
                where = f"{error.filename}: " if error.filename is not None else ""
                console.error(
                    f"{where}{error.strerror or error}. Expected a file that can be read or written.",
                    as_json=log_json,
                )
                raise typer.Exit(InputError.exit_code) from None
            except KeyboardInterrupt:
                if is_first:
                    console.error("interrupted; run the same command again to go on", as_json=log_json)
                raise typer.Exit(130) from None
            if not quiet:
                for text in getattr(result, "notes", ()):
                    console.note(text, as_json=log_json)
            if json:
                print(console.as_json(result))
            elif not quiet:
                if getattr(result, "up_to_date", False):
                    console.note(f"{result.out} is up to date", as_json=log_json)
                print(console.harmless(report(result)))
            if code := getattr(result, "exit_code", 0):
                raise typer.Exit(code)

        run.__signature__ = _signature(name, config_type)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        app.command(name, cls=_Command, help=inspect.getdoc(config_type), epilog=f"Example: {example}")(run)

    return register


def _signature(name: str, config_type: type[configs.Config]) -> inspect.Signature:
    """Keyword parameters of a command: the configuration's fields, then what every command has."""
    hints = get_type_hints(config_type)
    parameters = []
    common = {field.name for field in dataclasses.fields(configs.EncodingConfig)}
    for field in sorted(dataclasses.fields(config_type), key=lambda field: field.name in common):
        required = field.default is dataclasses.MISSING
        flag = "--" + field.name.replace("_", "-")
        described: Any = typer.Option(
            *([flag, "-o"] if field.name == "out" else [flag]),
            help=field.metadata["help"],
            envvar=_variables(name, field.name),
            show_envvar=False,
            rich_help_panel=field.metadata["panel"] or None,
            show_default=not required and field.default not in ("", None) and field.default is not False,
        )
        if field.metadata["positional"]:
            described = typer.Argument(help=field.metadata["help"], show_default=False)
        default = inspect.Parameter.empty if required else field.default
        hint: Any = list[Path] if configs.is_repeatable(field) else hints[field.name]
        parameters.append((field.name, Annotated[hint, described], default))
    parameters.append(("config", Annotated[Path | None, _config_option(name)], None))
    for option, flags, help in _OF_ALL:
        described = typer.Option(*flags, help=help, envvar=_variables(name, option), show_envvar=False)
        parameters.append((option, Annotated[bool, described], False))
    kind = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", kind, annotation=typer.Context)
    return inspect.Signature(
        [
            context,
            *(
                inspect.Parameter(n, kind, annotation=annotation, default=d)
                for n, annotation, d in parameters
            ),
        ]
    )


_OF_ALL = (
    ("json", ("--json",), "Print the result as JSON."),
    ("log_json", ("--log-json",), "Write progress, notes and errors as JSON lines to standard error."),
    ("quiet", ("--quiet", "-q"), "Print nothing but errors and --json."),
)
"""Options of every command: name, flags and help."""


def _variables(command: str, option: str) -> list[str]:
    """Names of an option in the environment, the one that counts first."""
    return [f"MIFUSE_{command.replace('-', '_')}_{option}".upper(), f"MIFUSE_{option}".upper()]


def _unknown_variables() -> list[str]:
    """Notes on variables of the environment that are named like options, and are none."""
    known = {
        variable
        for command, kind in _CONFIGS.items()
        for option in (
            *(field.name for field in dataclasses.fields(kind)),
            "config",
            *(one[0] for one in _OF_ALL),
        )
        for variable in _variables(command, option)
    }
    unknown = sorted(name for name in os.environ if name.startswith("MIFUSE_") and name not in known)
    return [
        f"{name} in the environment is no option of mifuse{did_you_mean(name, known)}" for name in unknown
    ]


def _config_option(name: str) -> Any:
    def read(ctx: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            try:
                ctx.default_map = configs.read_yaml(path, name, _CONFIGS)
            except MifuseError as error:
                console.error(str(error), as_json=ctx.meta[_AS_JSON])
                raise typer.Exit(error.exit_code) from None
        return path

    help = "YAML file of options, also under names of commands; unknown ones are an error."
    return typer.Option(
        "--config",
        "-c",
        is_eager=True,
        callback=read,
        help=help,
        envvar=_variables(name, "config"),
        show_envvar=False,
        show_default=False,
    )
