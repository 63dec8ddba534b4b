"""Whom to ask and in which form: what the options say, else the profile of the service, else the environment."""

from __future__ import annotations

import os
from dataclasses import replace

from mifuse_cli import lalm
from mifuse_cli.config import words
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.files import read_text
from mifuse_cli.steps.query_lalm.config import QueryLalmConfig, json_object


def profile_of(config: QueryLalmConfig) -> lalm.Profile:
    """The profile that the options name, with what they say otherwise.

    Raises:
        UsageError: no such profile.
        InputError: the file of a profile is not as it should be.
    """
    profile = lalm.read_profile(config.service)
    dialect = profile.dialect
    dialect = replace(
        dialect,
        token_limit=config.token_limit or dialect.token_limit,
        audio_part=config.audio_part or dialect.audio_part,
        temperature=dialect.temperature and not config.omit_temperature,
        modalities=tuple(words(config.modalities)) or dialect.modalities,
        extra_body={**dialect.extra_body, **(json_object(config.extra_body) or {})},
    )
    headers = {**profile.extra_headers, **(json_object(config.extra_headers) or {})}
    return replace(profile, dialect=dialect, stream=profile.stream or config.stream, extra_headers=headers)


def address(config: QueryLalmConfig, profile: lalm.Profile) -> str:
    """Address of the service.

    Raises:
        UsageError: every account of the service has its own, and none is given.
    """
    given = config.base_url or profile.base_url or os.environ.get("OPENAI_BASE_URL")
    if given or not profile.name:
        return given or "https://api.openai.com/v1"
    raise UsageError(f"--service {profile.name}: needs --base-url, such as {profile.example}")


def api_key(config: QueryLalmConfig, profile: lalm.Profile) -> str:
    """The key of the account.

    Raises:
        InputError: there is none, or its file cannot be read.
    """
    if config.api_key_file is not None:
        try:
            return read_text(config.api_key_file).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {config.api_key_file}: cannot be read ({error}).") from None
    names = list(dict.fromkeys(name for name in (profile.key_variable, "OPENAI_API_KEY") if name))
    key = next(filter(None, (os.environ.get(name) for name in names)), "")
    if not key:
        raise InputError(
            f"there is no API key: set {' or '.join(names)} or give --api-key-file. "
            "For a local server that needs none, any word will do."
        )
    return key
