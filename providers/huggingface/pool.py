"""Which models have a worker now: one each, as many as are allowed, the least recently used goes first."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from providers.errors import InUse, ProviderError, Unavailable
from providers.huggingface.catalog import ModelFiles
from providers.huggingface.pulse import Pulse
from providers.huggingface.settings import HuggingFaceSettings
from providers.huggingface.worker_process import WorkerProcess

logger = logging.getLogger(__name__)


class WorkerPool:
    """A worker counts until its process is gone: a model is never loaded into memory that is still taken.

    ``failures`` has the models whose last load failed, and why.
    """

    def __init__(self, settings: HuggingFaceSettings) -> None:
        self.failures: dict[str, ProviderError] = {}
        self._settings = settings
        self._workers: dict[str, WorkerProcess] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = Pulse()
        self._is_closed = False

    def get(self, name: str) -> WorkerProcess | None:
        """The model's worker, loaded or loading."""
        worker = self._workers.get(name)
        return worker if worker is not None and worker.error is None else None

    def has_room(self, name: str) -> bool:
        return self.get(name) is not None or len(self._workers) < self._settings.max_loaded_models

    @asynccontextmanager
    async def lease(self, model: ModelFiles) -> AsyncGenerator[WorkerProcess, None]:
        """The model's worker, which stays as long as somebody has it. Waits for room. Raises Unavailable.

        A load that nobody waits for any more is given up: who stopped it wants the machine back.
        """
        worker = await self._admit(model)
        worker.leases += 1
        try:
            yield worker
        finally:
            worker.leases -= 1
            worker.last_used = time.monotonic()
            if worker.leases == 0 and worker.loaded is None:
                self._end(worker, "nobody waits for it any more")
            self._changed.beat()

    def loaded(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if worker.loaded and worker.error is None]

    async def unload(self, name: str) -> None:
        """Returns when the model's process is gone, or there is none. Raises InUse."""
        worker = self.get(name)
        if worker is not None:
            if worker.leases:
                raise InUse(f"The model {name} is in use; stop its replies first, or wait for their end.")
            self._end(worker, "somebody asked for that")
        if (task := self._tasks.get(name)) is not None:
            await asyncio.wait({task})

    async def aclose(self) -> None:
        """Returns when every process is gone."""
        self._is_closed = True
        self._changed.beat()
        tasks = list(self._tasks.values())
        for worker in list(self._workers.values()):
            self._end(worker, "the server is shutting down")
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _admit(self, model: ModelFiles) -> WorkerProcess:
        while not self._is_closed:
            if (worker := self.get(model.name)) is not None:
                return worker
            if self.has_room(model.name) and model.name not in self._workers:
                return self._start(model)
            self._make_room()
            await self._changed.wait()
        raise Unavailable("The server is shutting down.")

    def _start(self, model: ModelFiles) -> WorkerProcess:
        worker = self._workers[model.name] = WorkerProcess(model, self._settings)
        task = asyncio.create_task(worker.run(), name=f"worker of {model.name}")
        self._tasks[model.name] = task
        task.add_done_callback(partial(self._forget, worker))
        return worker

    def _forget(self, worker: WorkerProcess, task: asyncio.Task[None]) -> None:
        name = worker.model.name
        del self._workers[name], self._tasks[name]
        if not task.cancelled() and (bug := task.exception()) is not None:
            logger.error("The worker of %s failed", name, exc_info=bug)
        if worker.loaded is not None:
            self.failures.pop(name, None)
        elif worker.error is not None and not task.cancelled():
            self.failures[name] = worker.error
        self._changed.beat()

    def _make_room(self) -> None:
        """Ends the least recently used model that is idle, unless one is ending already."""
        workers = self._workers.values()
        idle = [worker for worker in workers if worker.leases == 0 and worker.loaded is not None]
        if idle and all(worker.error is None for worker in workers):
            self._end(min(idle, key=lambda worker: worker.last_used), "another model needs its room")

    def _end(self, worker: WorkerProcess, reason: str) -> None:
        """Cancels at most once: a second time would cut short the wait for the process."""
        if worker.error is None:
            worker.retire(Unavailable(f"The model {worker.model.name} was unloaded: {reason}."))
            self._tasks[worker.model.name].cancel()
