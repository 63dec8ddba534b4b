"""What to do about what a service says or does, in the words of the command line."""

from __future__ import annotations

import os
import re

THINKING = (
    "A model that thinks first needs more tokens than its answer: raise --max-tokens, or let it think less, for "
    """example with --extra-body '{"reasoning_effort": "low"}'."""
)
"""For answers that the token limit cut off before a word of them was there."""

_ADDRESS = "Check the address: --base-url usually ends with /v1."
_OF_STATUS = {
    401: "Check the API key.",
    402: "Check the credit of the account.",
    403: "Check the API key and what it is allowed to do.",
    404: f"{_ADDRESS} Or check the name of the model.",
    405: _ADDRESS,
    407: "The proxy wants a user and a password: give them in the variable that names it.",
    429: "Check the credit of the account.",
}
_OTHERWISE = "Check the address, the model and the parameters of the request."

# By what a message names; the first that fits counts.
_OF_WORDS = [
    (
        r"max_completion_tokens|max_tokens|max_output_tokens",
        "Name the field that the service takes: --token-limit max_tokens, max_completion_tokens or none.",
    ),
    (r"temperature", "Leave the temperature to the service: --omit-temperature."),
    (r"reasoning|thinking", "Change or leave out the field in --extra-body."),
    (r"modalit", "Ask for text alone, or change the outputs: --modalities text."),
    (r"\bstream", "Pass --stream if the service wants streams, else leave it out."),
    (r"response_format|json_schema|structured output", "Leave out --json-schema."),
    (r"logprobs", "Ask in another way than --elicit logprob."),
    (r"\bseed\b", "Leave out --send-seed."),
    (
        r"\bcandidate|\bn\b.{0,40}(?:support|permit|must|allow|only)|parameter.{0,3}\bn\b",
        "Pass --choices-per-request 1.",
    ),
    (
        r"input_audio|audio_url|audio url|data.?uri|base64|\burl\b|content type|image_url"
        r"|content.{0,30}(?:valid string|type|part)|audio.{0,40}(?:format|decod|invalid|support)",
        "Send the audio in another form: --audio-part data-uri, audio-url, string or object; or --upload mp3.",
    ),
    (r"extra (?:fields|inputs)|unknown (?:field|name|parameter)", "Leave out or change --extra-body."),
]  # fmt: skip
_REFUSED = (400, 406, 415, 422, 500, 501)
"""Statuses with which services refuse a field."""


def option_for(status: int | None, message: str) -> str:
    """The option that would help where a service refuses a part of the request, "" if none is known.

    Args:
        status: of the response, or the one that it carries.
        message: what the service said.
    """
    if status not in _REFUSED:
        return ""
    for words, what in _OF_WORDS:
        if re.search(words, message, re.IGNORECASE):
            return f"{what} A named profile sets what a service expects: --service."
    return ""


def advice(status: int | None, message: str) -> str:
    """What to do about a request that would fail again."""
    if re.search(r"organi[sz]ation|project", message, re.IGNORECASE):
        names = [name for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID") if os.environ.get(name)]
        if names:
            return f"Check {' and '.join(names)}, or unset what does not belong to the key."
    return option_for(status, message) or _OF_STATUS.get(status or 0, _OTHERWISE)
