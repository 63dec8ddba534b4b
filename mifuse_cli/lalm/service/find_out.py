"""Making sure, before much is paid, that a service does what a run relies on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import audio
from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.answers.response import content_of
from mifuse_cli.lalm.cost.budget import Budget, Meter
from mifuse_cli.lalm.service.client import Client, Reply
from mifuse_cli.lalm.service.failures import RequestFailed
from mifuse_cli.lalm.service.live import BudgetReached
from mifuse_cli.lalm.service.probe import probe, unsupported
from mifuse_cli.lalm.service.survey import Survey


async def find_out(
    survey: Survey,
    client: Client,
    needed: frozenset[str],
    wanted: frozenset[str],
    budget: Budget,
    meter: Meter | None,
) -> None:
    """Probe what this model is not known to do, and stop if it cannot do what is needed.

    What it did not do in an earlier run it may have learnt since.

    Args:
        survey: its clips; the shortest is the one that is sent.
        client: whom to ask.
        needed: features that the run relies on.
        wanted: features to find out about.
        budget: pays for the requests.
        meter: prices them as what they are, live requests; None if the price is not known.

    Raises:
        UsageError: a needed feature is refused or ignored.
        RequestFailed: no request succeeds.
    """
    journal, host, model = survey.journal, client.host, client.model
    found = journal.probed(host, model) or {}
    extremes = survey.extremes()
    if extremes is None:
        return
    shortest, longest = extremes
    unknown = wanted - {name for name, facts in found.items() if facts["value"] in ("honoured", "accepted")}
    # What was heard says nothing of clips that are longer still.
    if "long_audio" in wanted and longest > found.get("long_audio", {}).get("seconds", 0.0) + 0.5:
        unknown |= {"long_audio"}
    if unknown:
        ask = next(survey.plan.asks([shortest]))
        fields = {name: value for name, value in survey.plan.form.fields().items() if name == "temperature"}

        def messages(samples: np.ndarray) -> list[dict[str, Any]]:
            return survey.messages_about(samples, ask)

        async def send(sent: list[dict[str, Any]], extra: Mapping[str, Any]) -> Reply:
            about = longest, survey.plan.form.text_bytes(), extra.get("n", 1)
            cost = meter.worst(*about) if meter else 0.0
            if not budget.reserve(cost):
                raise BudgetReached.after(budget, 0)
            name = f"probe of {', '.join(sorted(unknown))}"
            intent = await asyncio.wrap_future(journal.begin("probe", 1, asked=name, cost=cost))
            try:
                reply = await client.ask(sent, extra, request_key=f"probe-{intent}")
            except RequestFailed as failure:
                await asyncio.wrap_future(journal.fail(intent, failure.http_status, failure.message))
                budget.settle(cost, cost if failure.http_status is None else 0.0)
                raise
            usage = content_of(reply.raw, 0)[1]
            spent = meter.observe(usage, *about) if meter else cost
            await asyncio.wrap_future(journal.note(intent, reply.http_status, spent))
            budget.settle(cost, spent)
            return reply

        clip = audio.read(Path(shortest.path))
        found |= await probe(send, messages, clip, wanted=unknown, fields=fields, longest=longest)
        journal.add_probe(host, model, found)
    if problems := unsupported(found, sorted(needed)):
        raise UsageError(
            f"{model} at {host} cannot do what the options ask for: {' '.join(problems)} "
            "Choose other options, or pass --probe off to try nevertheless."
        )
