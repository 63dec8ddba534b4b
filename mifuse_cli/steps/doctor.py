"""``mifuse doctor``: what this machine has for mifuse, and the command that mends what is missing."""

from __future__ import annotations

import io
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mifuse_cli import cores, lalm, provenance
from mifuse_cli.config import Config, Progress, option
from mifuse_cli.errors import DependencyError, MifuseError, RemoteError, UsageError, number_of, size_of

_EXTRAS = {
    "report": "mifuse report and evaluate --plot",
    "onnx": "mifuse export --to onnx",
    "audformat": "mifuse prepare audformat",
    "ray": "--engine ray",
    "demo": "make demo",
}
_TIGHT = 2e9
"""Bytes of free disk below which an encoder or a cache hardly fits."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
    """Say what this machine has for mifuse: versions, devices, audio formats, cache, disk and, if asked, the service of
    an audio-language model; and how to mend what is missing.
    """

    cache_dir: Path | None = option(
        None, "Directory of the feature cache; default: MIFUSE_CACHE_DIR or the user's cache."
    )
    base_url: str = option("", "Address of a service to look at; default: by --service.")
    service: str = option("", "Named profile of the service, as of query-lalm, or a YAML file.")
    model: str = option("", "Model that is to be there.")
    ask: bool = option(
        False, "Ask the model about a second of a tone, to see that it takes audio; all else costs nothing."
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        if self.model and not (self.base_url or self.service):
            yield "--model: is that of a service, give --base-url or --service"
        if self.ask and not self.model:
            yield "--ask: needs a --model"
        yield from super().problems()


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: "ok"; "missing", if only some commands need it; "bad", if it has to be mended.
        found: what there is.
        advice: what mends it, "" if it is ok.
    """

    name: str
    state: Literal["ok", "missing", "bad"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class DoctorResult:
    """What was found, thing by thing."""

    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """6 if something on this machine is bad, 5 if the service alone is, else 0."""
        bad = [one for one in self.checks if one.state == "bad"]
        if not bad:
            return 0
        service = all(one.name in ("service", "answer") for one in bad)
        return RemoteError.exit_code if service else DependencyError.exit_code


def doctor(config: DoctorConfig, *, progress: Progress | None = None) -> DoctorResult:
    """Look at everything; what is bad is told, not raised."""
    found = [*_packages(), *_extras(), *_devices(), *_audio(), *_cache(config.cache_dir)]
    if config.base_url or config.service:
        found += _service(config)
    return DoctorResult(tuple(found))


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    versions = provenance.versions()
    yield Check("python", "ok", f"{versions.pop('python')} on {versions.pop('platform')}")
    yield Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))
    for text in metadata.requires("mifuse") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        if version == "not installed" or not wanted.specifier.contains(version, prereleases=True):
            yield Check(
                wanted.name,
                "bad",
                f"{version}, expected {wanted.specifier}",
                f"pip install '{wanted.name}{wanted.specifier}'",
            )


def _extras() -> Iterator[Check]:
    """Packages that some commands need."""
    from packaging.requirements import Requirement

    for extra, use in _EXTRAS.items():
        names = [
            wanted.name
            for wanted in map(Requirement, metadata.requires("mifuse") or ())
            if wanted.marker is not None and wanted.marker.evaluate({"extra": extra})
        ]
        absent = [name for name in names if not _installed(name)]
        if not names:  # an installation from before there was this extra
            continue
        if absent:
            advice = f"pip install 'mifuse[{extra}]', for {use}"
            yield Check(f"extra {extra}", "missing", f"without {', '.join(absent)}", advice)
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(names))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _devices() -> Iterator[Check]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    yield Check(
        "cpu",
        "ok",
        f"{cores.free_cores()} of {os.cpu_count()} cores may be used, {memory / 2**30:.1f} GiB of memory",
    )
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            yield Check(
                f"cuda:{number}", "ok", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
            )
    elif shutil.which("nvidia-smi"):
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield Check(
            "gpu",
            "bad",
            f"there is nvidia-smi, but torch {torch.__version__} ({built}) finds no GPU",
            "install a build of torch for the driver's CUDA, see pytorch.org, or look at CUDA_VISIBLE_DEVICES",
        )
    elif torch.backends.mps.is_available():
        yield Check("mps", "ok", "Apple GPU, with --device mps")
    else:
        yield Check("gpu", "ok", "none: the CPU is used")


def _audio() -> Iterator[Check]:
    """Formats that a tone comes back from."""
    import numpy as np
    import soundfile

    tone = 0.3 * np.sin(np.arange(8000) * 0.1).astype(np.float32)
    good, bad = list[str](), list[str]()
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        try:
            buffer = io.BytesIO()
            soundfile.write(buffer, tone, 16_000, format=kind)
            heard, _ = soundfile.read(io.BytesIO(buffer.getvalue()))
            (good if np.abs(heard).max() > 0.1 else bad).append(kind.lower())
        except (soundfile.SoundFileError, ValueError):
            bad.append(kind.lower())
    found = f"libsndfile {soundfile.__libsndfile_version__}: {', '.join(good)}"
    if bad:
        advice = "pip install --force-reinstall soundfile: its wheel brings libsndfile 1.1 or later"
        yield Check("audio", "bad", f"{found}; not {', '.join(bad)}", advice)
    else:
        yield Check("audio", "ok", found)


def _cache(directory: Path | None) -> Iterator[Check]:
    from mifuse_cli.model.store import default_cache

    place = directory or default_cache()
    files = list(place.glob("*.sqlite")) if place.is_dir() else []
    size = sum(file.stat().st_size for file in files)
    there = next(one for one in (place, *place.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    found = f"{place}: {size_of(size)} in {number_of(len(files), 'file')}, {size_of(free)} of disk are free"
    advice = "give another --cache-dir, or set MIFUSE_CACHE_DIR"
    if not there.is_dir() or not os.access(there, os.W_OK):
        yield Check("cache", "bad", f"{place}: cannot be written", advice)
    elif free < _TIGHT:
        yield Check(
            "cache",
            "bad",
            found,
            f"make room: rm {shlex.quote(str(place))}/*.sqlite deletes what can be computed anew; or {advice}",
        )
    else:
        yield Check("cache", "ok", found)


def _service(config: DoctorConfig) -> list[Check]:
    """Whether the service is there, lists the model and, if it is to be asked, answers about audio; and its price."""
    profile = lalm.read_profile(config.service)
    base_url = config.base_url or profile.base_url
    if not base_url:
        raise UsageError(f"--service {profile.name}: needs --base-url, such as {profile.example}")
    variable = profile.key_variable or "OPENAI_API_KEY"
    key = os.environ.get(variable) or os.environ.get("OPENAI_API_KEY", "")
    if not key:
        advice = f"export {variable}=...; a local server takes any word"
        return [Check("service", "bad", "there is no API key", advice)]
    host = lalm.host_of(base_url)
    service = lalm.ServiceOptions(
        base_url,
        config.model,
        key,
        timeout=60.0 if config.ask else 20.0,
        stream=profile.stream,
        headers=profile.extra_headers,
        key_header=profile.key_header,
    )
    try:
        listed = lalm.listed_models(service)
    except MifuseError as error:
        # Of a proxy or a certificate the error tells what to do.
        remote = isinstance(error, RemoteError)
        advice = f"check that {host} runs and that --base-url ends with /v1" if remote else ""
        return [Check("service", "bad", str(error), advice)]
    with_it = f", {config.model} among them" if config.model and len(listed) > 1 else ""
    checks = [Check("service", "ok", f"{host} lists {number_of(len(listed), 'model')}{with_it}")]
    if config.model:
        if listed and config.model not in listed:
            near = ", ".join(sorted(listed)[:10])
            checks = [
                Check("service", "bad", f"{host} does not list {config.model!r}", f"choose one of: {near}")
            ]
        if config.ask:
            checks.append(_answer(service, profile))
        price = lalm.price_of(config.model, lalm.read_prices())
        if price is None and not lalm.is_local(base_url):
            advice = "mifuse query-lalm --prices FILE, so that --budget and --dry-run can count"
            checks.append(Check("price", "missing", f"none is known of {config.model}", advice))
        elif price is not None:
            checks.append(Check("price", "ok", f"known of {config.model}"))
    return checks


def _answer(service: lalm.ServiceOptions, profile: lalm.Profile) -> Check:
    """What the model says about a tone."""
    try:
        response = lalm.ask_about_a_tone(service, profile.dialect)
    except MifuseError as error:
        advice = "if it is the tone that is refused, ask about a clip of yours: mifuse query-lalm --pilot 1"
        return Check("answer", "bad", str(error), advice)
    said, tokens = response.choices[0].text.strip()[:60], response.usage["prompt"]
    heard = f", {tokens} tokens of prompt" if tokens >= 0 else ""
    if not said:
        return Check("answer", "bad", f"none to a tone{heard}", f"mifuse query-lalm: {lalm.THINKING}")
    return Check("answer", "ok", f"{said!r} to a tone{heard}")
