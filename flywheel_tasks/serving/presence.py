"""Work for a client who may give up before it is done."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

_Found = TypeVar("_Found")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def while_there(request: Request, work: Awaitable[_Found]) -> _Found:
    """What the work gives; it is cancelled if the client goes away before.

    Nothing else may read from the request meanwhile.

    Args:
        request: whose body has been read.
        work: what is done for it.

    Raises:
        ClientDisconnect: the client went away; the work has ended. What it raises itself comes through.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
