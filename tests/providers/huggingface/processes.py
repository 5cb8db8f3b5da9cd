"""Waiting for the end of processes that are not our children."""

import asyncio
import os


async def ended(pid: int, within_seconds: float) -> bool:
    """Whether the process is gone, or goes within that time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, over.set)
    try:
        async with asyncio.timeout(within_seconds):
            await over.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return True
