"""The model card: what a model is, how it was made and scored, what it is for, and where it must not be used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mifuse_cli import __version__
from mifuse_cli.artifacts import Evaluation
from mifuse_cli.model.shape import Shape
from mifuse_cli.steps.export.history import History
from mifuse_cli.steps.export.register import licence_of, trained_on

_PAPER = "https://arxiv.org/abs/2509.20706"
_UNKNOWN = "not recorded"


def card(
    shape: Shape,
    history: History,
    scores: Sequence[Evaluation],
    *,
    license: str,
    transformers: bool,
    onnx: bool,
    longest_s: float | None,
) -> str:
    """README.md of a model on the hub: YAML metadata and text.

    Args:
        shape: of the classifier.
        history: how it was made.
        scores: none, or its scores.
        license: of the exported weights by the hub's name for it, "" if none was given.
        transformers: whether the directory is one that transformers loads.
        onnx: whether ``model.onnx`` is in it.
        longest_s: seconds of the longest clip that the ONNX model takes, None for any.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=license or None,
        library_name="transformers" if transformers else "onnx",
        pipeline_tag="audio-classification",
        tags=["speech-emotion-recognition", "mifuse", *(["domain-adaptation"] if history.method else [])],
        base_model=shape.encoder if _on_hub(shape.encoder) else None,
        metrics=["recall", "accuracy", "f1"],
        model_name="Speech emotion classifier" if scores else None,
        eval_results=_results(history, scores) or None,
    )
    parts = [
        "# Speech emotion classifier",
        _what(shape, history),
        "## Use\n\n" + _use(shape, transformers, onnx, longest_s),
        "## Scores\n\n" + _scores(scores),
        "## Data\n\n" + _data(history),
        "## Audio-language model\n\n" + _lalms(history),
        "## Intended use and limits\n\n" + _limits(shape, history),
        f"Made with mifuse {__version__}. MI-Fuse, the method whose setting it follows: {_PAPER}.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _on_hub(encoder: str) -> bool:
    """Whether the encoder was given by a name on the hub, not by a path of the machine that it was trained on."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", encoder) is not None


def _what(shape: Shape, history: History) -> str:
    classes = ", ".join(shape.classes)
    encoder = shape.encoder if _on_hub(shape.encoder) or shape.encoder == "logmel" else "a local encoder"
    text = (
        f"Tells which of the emotions {classes} a voice expresses in a clip of speech (16 kHz, mono). "
        f"Encoder: {encoder}."
    )
    if not history.method:
        return f"{text} Trained on labelled clips; not adapted to any target."
    labels = f", with {history.labels} labels," if history.labels else ""
    taught = (
        "true classes of the target (an oracle: an upper bound, not a result of adaptation)"
        if history.method == "oracle"
        else "no label of the target"
        + (f" but the true classes of {history.gold} clips (few-gold)" if history.gold else "")
    )
    return (
        f"{text} A source model, adapted by the method `{history.method}`{labels} to {history.clips} clips of the "
        f"target domain, with {taught}."
    )


def _use(shape: Shape, transformers: bool, onnx: bool, longest_s: float | None) -> str:
    parts = []
    if transformers:
        parts.append(
            "Needs transformers 5 or newer. `modeling_mifuse.py` defines the model, since no class of transformers for "
            "audio classification has a nonlinear layer after the mean over time; read it before you trust it.\n\n"
            "```python\nfrom transformers import pipeline\n\n"
            'classify = pipeline("audio-classification", model="THIS DIRECTORY", trust_remote_code=True)\n'
            'classify("clip.wav", top_k=None)  # needs ffmpeg; takes {"raw": samples, "sampling_rate": rate} too\n'
            "```"
        )
    if onnx:
        limit = "" if longest_s is None else f" and at most {longest_s:g} s"
        parts.append(
            f"`model.onnx` takes one clip, `waveform` (1, samples) float32 at 16 kHz of at least 0.1 s{limit}, and "
            f"gives `probabilities` (1, {len(shape.classes)}):\n\n"
            "```python\nimport onnxruntime\nimport soundfile\n\n"
            'samples, _ = soundfile.read("clip.wav", dtype="float32")\n'
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            'session.run(None, {"waveform": samples[None]})\n```'
        )
    parts.append(f"Order of the classes: {', '.join(shape.classes)}.")
    if shape.normalize == "speaker":
        parts.append(
            "The model was trained on input standardised by speaker. Here it is standardised by stored statistics, as "
            "with `mifuse predict --normalize source`."
        )
    elif shape.normalize == "target" and shape.statistics_of != "target":
        parts.append("Input is standardised by the stored statistics of the source.")
    return "\n\n".join(parts)


def _scores(scores: Sequence[Evaluation]) -> str:
    if not scores:
        return "No score was given when this model was exported."
    rows = ["| protocol | UA % | 95 % interval | WA % | macro F1 % | clips |", "|---|---|---|---|---|---|"]
    lines = []
    for number, score in enumerate(scores, start=1):
        m = score.header.parameters["metrics"]
        ua, low, high, wa, f1 = (
            f"{100 * m[key]:.1f}" for key in ("ua", "ua_low", "ua_high", "wa", "macro_f1")
        )
        rows.append(f"| {number} | {ua} | [{low}, {high}] | {wa} | {f1} | {m['n']} |")
        lines.append(f"{number}. `{score.header.parameters['signature']}`")
    over = sorted({score.header.parameters["metrics"]["interval"] for score in scores})
    return (
        "\n".join(rows)
        + "\n\nUA: unweighted accuracy, the mean recall of the classes; WA: share of correct clips. Intervals: "
        f"bootstrap over {' or '.join(over)}. Protocols:\n\n" + "\n".join(lines)
    )


def _results(history: History, scores: Sequence[Evaluation]) -> list[Any]:
    from huggingface_hub import EvalResult

    name = history.target or history.source or "not named"
    names = {"ua": "unweighted accuracy (UA)", "wa": "weighted accuracy (WA)", "macro_f1": "macro F1"}
    types = {"ua": "recall", "wa": "accuracy", "macro_f1": "f1"}
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="Speech emotion recognition",
            dataset_type=re.sub(r"[^\w-]+", "-", name).strip("-").lower(),
            dataset_name=name,
            metric_type=types[key],
            metric_name=f"{long}, protocol {number}" if len(scores) > 1 else long,
            metric_value=round(float(score.header.parameters["metrics"][key]), 4),
        )
        for number, score in enumerate(scores, start=1)
        for key, long in names.items()
    ]


def _data(history: History) -> str:
    rows = ["| role | corpus | licence |", "|---|---|---|"]
    roles = {"source, with labels": history.source}
    if history.method:
        roles["target, without labels" if history.method != "oracle" else "target, with labels"] = (
            history.target
        )
    for role, name in roles.items():
        known = licence_of(name) if name else None
        licence = f"{known[0]} ([source]({known[1]}))" if known else "unknown; see the corpus's terms"
        rows.append(f"| {role} | {name or _UNKNOWN} | {licence} |")
    return (
        "\n".join(rows)
        + "\n\nLicences of corpora bind what is made from them too; whether these weights may be passed on or used "
        "commercially is for whoever does so to find out. No audio and no name of a clip is in this directory."
    )


def _lalms(history: History) -> str:
    if not history.method:
        return "None was used."
    if not history.lalms:
        return "None was used, or its answers were no longer in place when this model was exported."
    lines = []
    for name in history.lalms:
        if not history.target:
            known = "whether it was trained on the target corpus cannot be told, since that is not named"
        else:
            found, source = trained_on(name, history.target)
            known = {
                True: f"it was trained on {history.target} ({source}), so scores there are not of unseen data",
                False: f"{history.target} is not among its training data ({source})",
                None: f"whether it was trained on {history.target} is unknown",
            }[found]
        lines.append(f"- `{name}` answered about the clips of the target: {known}.")
    return "\n".join(lines)


def _limits(shape: Shape, history: History) -> str:
    where = (
        f"clips like those of {history.target}" if history.target else "clips like those it was adapted to"
    )
    domain = where if history.method else "clips like those of its source"
    return "\n".join(
        [
            f"- For research, and for sorting {domain}. On other recordings, languages, ages or microphones it does "
            "worse, by how much is unknown until it is scored there.",
            f"- It tells what a voice expresses by the judgement of listeners or actors, in {len(shape.classes)} "
            "classes, not what a person feels. Other states are forced into these classes. Probabilities may be off.",
            "- Errors can differ by gender, age, language and culture. It was not tested for that.",
            "- Not for decisions about people: hiring, grading, insurance, policing, health, credit.",
            "- People whose voices are analysed should know and have consented; recordings of voices are personal "
            "data.",
            "- European Union, Regulation (EU) 2024/1689 (AI Act): inferring emotions of people at work or in "
            "education is prohibited but for medical or safety reasons, Article 5(1)(f); whoever deploys an emotion "
            "recognition system has to inform the people exposed to it, Article 50(3). This is no legal advice.",
        ]
    )
