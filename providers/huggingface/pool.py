"""Which models have a worker now: one each, while there is room; the least recently used goes first."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

from providers.errors import InUse, OutOfMemory, ProviderError, Unavailable
from providers.huggingface.catalog import ModelFiles
from providers.huggingface.footprint import estimated_bytes
from providers.huggingface.memory import MIB, process_bytes
from providers.huggingface.memory_alarm import MemoryAlarm
from providers.huggingface.pulse import Pulse
from providers.huggingface.settings import HuggingFaceSettings
from providers.huggingface.worker_process import WorkerProcess

logger = logging.getLogger(__name__)


class WorkerPool:
    """A worker counts until its process is gone: a model is never loaded into memory that is still taken.

    There is room for so many models, and for so much memory: of a model that is loaded what its process was
    last measured to take, of one that is not what its files make expect. ``failures`` has the models whose
    last load failed, and why.
    """

    def __init__(self, settings: HuggingFaceSettings) -> None:
        self.failures: dict[str, ProviderError] = {}
        self._settings = settings
        self._limit_bytes = settings.max_memory_bytes
        self._alarm = MemoryAlarm(settings.max_memory_bytes, settings.memory_marks)
        self._workers: dict[str, WorkerProcess] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._measuring: asyncio.Task[None] | None = None
        self._cleaning: asyncio.Task[None] | None = None
        self._changed = Pulse()
        self._is_closed = False

    def get(self, name: str) -> WorkerProcess | None:
        """The model's worker, loaded or loading."""
        worker = self._workers.get(name)
        return worker if worker is not None and worker.error is None else None

    async def has_room(self, model: ModelFiles) -> bool:
        """Whether a lease would not have to wait. Raises OutOfMemory for a model that is too big even if no
        other is loaded."""
        if self.get(model.name) is not None:
            return True
        needed = await self._needed_bytes(model)
        await self.measure()
        return self._fits(needed, self._workers.values())

    @asynccontextmanager
    async def lease(self, model: ModelFiles) -> AsyncGenerator[WorkerProcess, None]:
        """The model's worker, which stays as long as somebody has it. Waits for room. Raises Unavailable, and
        OutOfMemory as ``has_room`` does.

        A load that nobody waits for any more is given up: who stopped it wants the machine back.
        """
        worker = self.get(model.name) or await self._admit(model)
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

    async def measure(self) -> None:
        """Have every worker's ``measured_bytes`` tell what its process takes. Callers of one moment share the
        work, which is not the event loop's."""
        if not self._workers:
            return
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measure(), name="measure the workers")
        await asyncio.shield(self._measuring)

    async def clean_up(self) -> None:
        """End idle models, the least recently used first, until the workers are below the clean-up mark."""
        while True:
            await self.measure()
            taken = sum(worker.measured_bytes for worker in self._workers.values())
            self._alarm.note(taken, ", ".join(map(_state, self._workers.values())))
            if taken <= self._settings.memory_marks.cleanup * self._limit_bytes:
                return
            if (ending := self._end_least_recently_used("memory is short")) is None:
                return
            await asyncio.wait({ending})

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
        if self._cleaning is not None:
            self._cleaning.cancel()
        tasks = [*self._tasks.values(), *filter(None, (self._cleaning, self._measuring))]
        for worker in list(self._workers.values()):
            self._end(worker, "the server is shutting down")
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _admit(self, model: ModelFiles) -> WorkerProcess:
        needed = await self._needed_bytes(model)
        while not self._is_closed:
            await self.measure()
            # From here to the next wait nothing else runs, so that what is found holds.
            if self._is_closed:
                break
            if (worker := self.get(model.name)) is not None:
                return worker
            if model.name not in self._workers and self._fits(needed, self._workers.values()):
                return self._start(model, needed)
            self._make_room(needed)
            await self._changed.wait()
        raise Unavailable("The server is shutting down.")

    async def _needed_bytes(self, model: ModelFiles) -> int:
        """Raises OutOfMemory."""
        needed, limit = await asyncio.to_thread(estimated_bytes, model, self._settings), self._limit_bytes
        if needed > limit:
            raise OutOfMemory(
                f"The model {model.name} needs about {needed / MIB:.0f} MiB of memory; all loaded models"
                f" together may take {limit / MIB:.0f} MiB. Set HUGGINGFACE_MAX_MEMORY higher, or take a"
                " smaller model."
            )
        return needed

    def _fits(self, needed_bytes: int, beside: Collection[WorkerProcess]) -> bool:
        taken = sum(max(worker.expected_bytes, worker.measured_bytes) for worker in beside)
        return len(beside) < self._settings.max_loaded_models and taken + needed_bytes <= self._limit_bytes

    def _start(self, model: ModelFiles, expected_bytes: int) -> WorkerProcess:
        worker = self._workers[model.name] = WorkerProcess(model, self._settings, self._changed.beat)
        worker.expected_bytes = expected_bytes
        task = asyncio.create_task(worker.run(), name=f"worker of {model.name}")
        self._tasks[model.name] = task
        task.add_done_callback(partial(self._forget, worker))
        if self._cleaning is None and (interval_seconds := self._settings.cleanup_interval_seconds):
            self._cleaning = asyncio.create_task(self._clean_for_ever(interval_seconds), name="clean-up")
            self._cleaning.add_done_callback(_log_bug)
        return worker

    def _forget(self, worker: WorkerProcess, task: asyncio.Task[None]) -> None:
        name = worker.model.name
        del self._workers[name], self._tasks[name]
        _log_bug(task)
        if worker.loaded is not None:
            self.failures.pop(name, None)
        elif worker.error is not None and not task.cancelled():
            self.failures[name] = worker.error
        self._changed.beat()

    async def _measure(self) -> None:
        workers = [worker for worker in self._workers.values() if worker.pid is not None]
        loaded = [worker for worker in workers if worker.loaded is not None]
        pids = [worker.pid for worker in workers if worker.pid is not None]
        for worker, size in zip(workers, await asyncio.to_thread(_process_sizes, pids), strict=True):
            worker.measured_bytes = size
        for worker in loaded:  # what its files made expect is out of date
            worker.expected_bytes = 0

    async def _clean_for_ever(self, interval_seconds: float) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            await self.clean_up()

    def _make_room(self, needed_bytes: int) -> None:
        """Ends the least recently used idle model, unless one is ending already, or what is in use leaves too
        little room anyway."""
        busy = [worker for worker in self._workers.values() if not worker.is_idle]
        if self._fits(needed_bytes, busy) and all(worker.error is None for worker in busy):
            self._end_least_recently_used("another model needs its room")

    def _end_least_recently_used(self, reason: str) -> asyncio.Task[None] | None:
        """The task that is over when its process is gone; ``None`` where no model is idle."""
        idle = [worker for worker in self._workers.values() if worker.is_idle]
        if not idle:
            return None
        worker = min(idle, key=lambda worker: worker.last_used)
        self._end(worker, reason)
        return self._tasks[worker.model.name]

    def _end(self, worker: WorkerProcess, reason: str) -> None:
        """Cancels at most once: a second time would cut short the wait for the process."""
        if worker.error is None:
            logger.info("The model %s is unloaded: %s", worker.model.name, reason)
            worker.retire(Unavailable(f"The model {worker.model.name} was unloaded: {reason}."))
            self._tasks[worker.model.name].cancel()


def _process_sizes(pids: Sequence[int]) -> list[int]:
    return [process_bytes(pid) for pid in pids]


def _state(worker: WorkerProcess) -> str:
    state = "idle" if worker.is_idle else "in use" if worker.leases else "ending"
    return f"{worker.model.name} {worker.measured_bytes / MIB:.0f} MiB ({state})"


def _log_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (bug := task.exception()) is not None:
        logger.error("The task %r failed", task.get_name(), exc_info=bug)
