"""What to do about what a service says or does, in the words of the command line."""

from __future__ import annotations

import re

THINKING = (
    "A model that thinks first needs more tokens than its answer: raise --max-tokens, or let it think less, for "
    """example with --extra-body '{"reasoning_effort": "low"}'."""
)
"""For answers that the token limit cut off before a word of them was there."""

OF_STATUS = {
    401: "Check the API key.",
    402: "Check the credit of the account.",
    403: "Check the API key and what it is allowed to do.",
    404: "Check the address and the name of the model.",
    429: "Check the credit of the account.",
}
OTHERWISE = "Check the address, the model and the parameters of the request."


def advice(status: int | None, message: str) -> str:
    """What to do about a request that would fail again: by the field that the service names, else by status."""
    return OF_STATUS.get(status or 0, OTHERWISE)
