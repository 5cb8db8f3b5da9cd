"""The workers of a provider, and waiting for processes to end."""

import asyncio
import os

import psutil

from providers.huggingface.settings import HuggingFaceSettings


def workers(settings: HuggingFaceSettings) -> list[psutil.Process]:
    """Those running now that were started with these settings: their command names the socket."""
    socket = f"{settings.runtime_dir}{os.sep}"
    return [
        child
        for child in psutil.Process().children()
        if any(argument.startswith(socket) for argument in child.cmdline())
    ]


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
