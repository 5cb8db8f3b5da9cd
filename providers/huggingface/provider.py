"""Local Hugging Face models as a provider; torch and transformers are only in the workers."""

import asyncio
import math
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from providers.base import (
    ChatRequest,
    GenerationOptions,
    LoadedModel,
    ModelInfo,
    ModelState,
    Phase,
    PhaseChanged,
    ProviderEvent,
)
from providers.errors import BadRequest, LoadFailed, ModelNotFound, Unavailable
from providers.huggingface.catalog import Catalog, ModelFiles
from providers.huggingface.pool import WorkerPool
from providers.huggingface.protocol import Status
from providers.huggingface.settings import HuggingFaceSettings
from providers.huggingface.worker_process import NotStarted, WorkerProcess

_MAX_NAME_CHARACTERS = 200
_SEED_RANGE = range(-(2**63), 2**63)


class HuggingFace:
    name = "huggingface"

    def __init__(self, settings: HuggingFaceSettings) -> None:
        self._settings = settings
        self._catalog = Catalog(settings.models_path)
        self._pool = WorkerPool(settings)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        """A request that was still queued when its worker died gets one more worker; one that had been
        started does not, since it may be what killed it."""
        _check(request.options)
        try:
            async with aclosing(self._attempt(request)) as events:
                async for event in events:
                    yield event
            return
        except NotStarted as error:
            yield PhaseChanged(Phase.RETRYING, error.message)
        async with aclosing(self._attempt(request)) as events:
            async for event in events:
                yield event

    async def load(self, model: str) -> AsyncGenerator[PhaseChanged, None]:
        """Have the model ready in memory, and its weights converted before if that is needed."""
        files = await self._find(model)
        if not await self._pool.has_room(files):
            yield PhaseChanged(Phase.QUEUED, "waiting for room in memory")
        async with self._pool.lease(files) as worker, aclosing(worker.loading()) as phases:
            async for phase in phases:
                yield phase

    async def unload(self, model: str) -> None:
        """Returns when its memory is free. Raises InUse."""
        await self._pool.unload(model)

    async def loaded(self) -> list[LoadedModel]:
        await self._pool.measure()
        return [_residency(worker) for worker in self._pool.loaded()]

    async def models(self) -> list[ModelInfo]:
        found = await self._scan()
        await self._pool.measure()
        return [self._with_state(files) for files in found.values()]

    async def check(self) -> None:
        try:
            await asyncio.to_thread(os.listdir, self._settings.models_path)
        except OSError as error:
            raise _unreadable(error) from error

    async def status(self, model: str) -> Status:
        """What the model's worker says about itself. Raises ModelNotFound if there is none."""
        worker = self._pool.get(model)
        if worker is None or worker.loaded is None:
            raise ModelNotFound(f"The model {model} is not loaded.")
        return await worker.status()

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def _attempt(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        files = await self._find(request.model)
        if not await self._pool.has_room(files):
            yield PhaseChanged(Phase.QUEUED, "waiting for room in memory")
        async with self._pool.lease(files) as worker:
            async with aclosing(worker.loading()) as phases:
                async for phase in phases:
                    yield phase
            async with aclosing(worker.generate(request)) as events:
                async for event in events:
                    yield event

    async def _find(self, name: str) -> ModelFiles:
        """Raises ModelNotFound, LoadFailed for files that are known to be unusable, and Unavailable."""
        if (worker := self._pool.get(name)) is not None:
            return worker.model
        files = (await self._scan()).get(name)
        if files is None:
            raise ModelNotFound(f"There is no model {name[:_MAX_NAME_CHARACTERS]!r} in the models path.")
        if files.problem is not None:
            raise LoadFailed(f"The model {name} cannot be used: {files.problem}.")
        return files

    async def _scan(self) -> dict[str, ModelFiles]:
        """Raises Unavailable when the models path cannot be read."""
        try:
            return await asyncio.to_thread(self._catalog.scan)
        except OSError as error:
            raise _unreadable(error) from error

    def _with_state(self, files: ModelFiles) -> ModelInfo:
        if files.problem is not None:
            return files.info
        if (worker := self._pool.get(files.name)) is not None:
            if worker.loaded is None:
                return replace(files.info, state=ModelState.LOADING)
            return replace(files.info, state=ModelState.READY, residency=_residency(worker))
        if (failure := self._pool.failures.get(files.name)) is not None:
            return replace(files.info, state=ModelState.FAILED, description=failure.message)
        return files.info


def _residency(worker: WorkerProcess) -> LoadedModel:
    return LoadedModel(worker.model.name, worker.measured_bytes, worker.leases, worker.loaded_at)


def _unreadable(error: OSError) -> Unavailable:
    return Unavailable(f"The models path {error.filename} cannot be read: {error.strerror}.")


def _check(options: GenerationOptions) -> None:
    """Refuses what torch would refuse in the middle of its work."""
    problems = {
        "temperature is a number from 0": options.temperature is None
        or (math.isfinite(options.temperature) and options.temperature >= 0),
        "top_p is above 0 and at most 1": options.top_p is None or 0 < options.top_p <= 1,
        "top_k is at least 1": options.top_k is None or options.top_k >= 1,
        "max_tokens is at least 1": options.max_tokens is None or options.max_tokens >= 1,
        "seed has 64 bits": options.seed is None or options.seed in _SEED_RANGE,
        "stop strings are not empty": all(options.stop),
    }
    wrong = [rule for rule, holds in problems.items() if not holds]
    if wrong:
        raise BadRequest(f"Options out of range: {'; '.join(wrong)}.")
