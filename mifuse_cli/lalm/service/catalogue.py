"""The models that a service lists, which costs nothing to ask."""

from __future__ import annotations

import asyncio

from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import RequestFailed
from mifuse_cli.lalm.service.service_options import ServiceOptions


def listed_models(service: ServiceOptions) -> list[str]:
    """Names of the models that a service lists.

    Raises:
        RemoteError: it cannot be reached, or gives no list.
        InputError: a proxy or a certificate of this machine is at fault.
        UsageError: the address is none, or the key cannot be sent.
    """

    async def names() -> list[str]:
        async with Client(service) as client:
            return await client.models()

    try:
        return asyncio.run(names())
    except RequestFailed as failure:
        status = f" (status {failure.http_status})" if failure.http_status else ""
        raise failure.error(f"{service.host} does not list its models{status}: {failure.sentence}") from None
