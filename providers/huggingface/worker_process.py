"""The server's side of one worker: starts the child, talks to it, and sees that it ends."""

import asyncio
import itertools
import logging
import signal
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_never

from providers.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    Phase,
    PhaseChanged,
    ProviderEvent,
    TextDelta,
    UsageReport,
)
from providers.errors import (
    BadRequest,
    ContextTooLong,
    LoadFailed,
    OutOfMemory,
    Overloaded,
    ProviderError,
    StreamBroken,
    TimedOut,
    Unavailable,
)
from providers.huggingface import protocol
from providers.huggingface.catalog import ModelFiles
from providers.huggingface.child import Child
from providers.huggingface.mailbox import Letter, Mailbox
from providers.huggingface.protocol import FailureKind
from providers.huggingface.pulse import Pulse
from providers.huggingface.rendezvous import Connection, rendezvous
from providers.huggingface.settings import HuggingFaceSettings

_ERRORS: dict[FailureKind, type[ProviderError]] = {
    FailureKind.LOAD_FAILED: LoadFailed,
    FailureKind.OUT_OF_MEMORY: OutOfMemory,
    FailureKind.CONTEXT_TOO_LONG: ContextTooLong,
    FailureKind.BAD_REQUEST: BadRequest,
    FailureKind.INTERNAL: Unavailable,
}

logger = logging.getLogger(__name__)


class WorkerEnded(Unavailable):
    """What the worker was asked for may be what ended it: it is not asked for again."""

    retries = False


class NotStarted(WorkerEnded):
    """The worker ended before it came to this request, which is therefore not what ended it."""


class WorkerProcess:
    """One model in one child. ``run`` is its whole life and belongs to one task.

    ``loaded`` is set once requests are taken, ``error`` once that is over or will never be. The numbers are
    the pool's: who has it, since when nobody has, and what it takes of the memory. It is expected to take
    ``expected_bytes`` until it was measured with its model in it, for which ``on_loaded`` is the time.
    """

    def __init__(
        self, model: ModelFiles, settings: HuggingFaceSettings, on_loaded: Callable[[], None]
    ) -> None:
        self.model = model
        self.loaded: protocol.Loaded | None = None
        self.error: ProviderError | None = None
        self.pid: int | None = None
        self.loaded_at: datetime | None = None
        self.leases = 0
        self.last_used = 0.0
        self.expected_bytes = 0
        self.measured_bytes = 0
        self._settings = settings
        self._on_loaded = on_loaded
        self._phase = PhaseChanged(Phase.LOADING_MODEL, "starting a process")
        self._changed = Pulse()
        self._ids = itertools.count(1)
        self._mailboxes: dict[int, Mailbox] = {}
        self._status_requests: list[asyncio.Future[protocol.Status]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._last_heard = 0.0
        self._is_retired = False

    @property
    def is_idle(self) -> bool:
        """Whether nobody would miss it: neither in use nor loading nor ending."""
        return self.leases == 0 and self.loaded is not None and self.error is None

    async def run(self) -> None:
        """Start the child, have it load the model, deliver what it says until it ends. Cancelled, it ends it.

        However this returns, the child is gone and everybody who waits for it has been told.
        """
        try:
            async with rendezvous(self._settings.runtime_dir.resolve()) as (path, connected):
                child = await self._start(path)
                self.pid = child.pid
                try:
                    await self._converse(child, connected)
                    await child.fade()
                finally:
                    return_code = await child.end()
                self._end_with(self._death(return_code, child.last_words))
        except ProviderError as error:
            self._end_with(error)
        finally:
            self._end_with(Unavailable(f"The process of the model {self.model.name} could not be kept."))

    async def loading(self) -> AsyncGenerator[PhaseChanged, None]:
        """What the load is at, until it is done. Raises what it failed with."""
        shown = None
        while self.loaded is None:
            if self.error is not None:
                raise _again(self.error)
            if self._phase != shown:
                shown = self._phase
                yield shown
            else:
                await self._changed.wait()

    async def generate(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        """One reply, after those asked for before. Closed early, it has the worker stop.

        Raises NotStarted, TimedOut, StreamBroken once there was text, Unavailable after ``retire``, and what
        the request itself is refused with.
        """
        ahead = len(self._mailboxes)
        request_id, mailbox = self._ask(request)
        is_started = is_answered = is_over = False
        try:
            if ahead:
                yield PhaseChanged(Phase.QUEUED, f"{ahead} before this one")
            while not is_over:
                letter = await self._next(mailbox)
                is_started = True
                is_answered = is_answered or isinstance(letter, protocol.Delta)
                is_over = isinstance(letter, protocol.Done | protocol.Failed)
                yield _event(letter)
        except ProviderError as error:
            if not is_started and not isinstance(error, TimedOut):
                raise NotStarted(error.message) from error
            if is_answered and not self._is_retired:
                raise StreamBroken(error.message) from error
            raise
        finally:
            del self._mailboxes[request_id]
            if not is_over:
                self._send(protocol.Cancel(request_id))

    def retire(self, reason: Unavailable) -> None:
        """Take no more requests and end those there are. The owner of ``run`` cancels it then."""
        self._is_retired = True
        self._end_with(reason)

    async def status(self) -> protocol.Status:
        """What the worker says about itself now. Raises Unavailable."""
        if self.error is not None:
            raise _again(self.error)
        answer: asyncio.Future[protocol.Status] = asyncio.get_running_loop().create_future()
        self._status_requests.append(answer)
        self._send(protocol.StatusRequest())
        return await answer

    def _ask(self, request: ChatRequest) -> tuple[int, Mailbox]:
        if len(self._mailboxes) >= self._settings.max_queued_requests:
            raise Overloaded(f"{len(self._mailboxes)} requests wait for the model {self.model.name} already.")
        request_id = next(self._ids)
        mailbox = self._mailboxes[request_id] = Mailbox()
        messages = tuple(ChatMessage(m.role, protocol.clean(m.content)) for m in request.messages)
        options = replace(request.options, stop=tuple(protocol.clean(stop) for stop in request.options.stop))
        self._send(protocol.Generate(request_id, messages, options))
        return request_id, mailbox

    async def _next(self, mailbox: Mailbox) -> Letter:
        """Raises what the worker ended with, and ends it itself if it is silent for too long."""
        since = time.monotonic()
        while (letter := mailbox.take()) is None:
            if self.error is not None:
                raise _again(self.error)
            heard = max(since, self._last_heard)
            limit = self._settings.stream_timeout_seconds
            try:
                async with asyncio.timeout(heard + limit - time.monotonic()):
                    await mailbox.wait()
            except TimeoutError:
                if heard == max(since, self._last_heard) and self._writer is not None:
                    silence = f"The model {self.model.name} was silent for {limit:g} s."
                    self._end_with(WorkerEnded(silence))
                    self._writer.transport.abort()
                    raise TimedOut(silence) from None
        return letter

    async def _start(self, socket: Path) -> Child:
        environment = {
            **self._settings.environment,
            "HF_HOME": str(self._settings.cache_dir.resolve()),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self._settings.threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        try:
            return await Child.start((*self._settings.worker_command, str(socket)), environment)
        except OSError as error:
            raise Unavailable(
                f"No process for the model {self.model.name} can be started: {error}."
            ) from error

    async def _converse(self, child: Child, connected: asyncio.Future[Connection]) -> None:
        """Returns when the child has hung up. Raises ProviderError."""
        try:
            async with asyncio.timeout(self._settings.load_timeout_seconds) as limit:
                await asyncio.wait((child.silenced, connected), return_when=asyncio.FIRST_COMPLETED)
                if not connected.done():
                    return  # it ended before it could connect
                reader, self._writer = connected.result()
                await self._load(reader, limit)
        except TimeoutError:
            raise LoadFailed(
                f"The model {self.model.name} did not load within {self._settings.load_timeout_seconds:g} s."
            ) from None
        while (message := await self._receive(reader)) is not None:
            self._deliver(message)

    async def _load(self, reader: asyncio.StreamReader, limit: asyncio.Timeout) -> None:
        """Returns when the model is loaded or the child has hung up."""
        loop = asyncio.get_running_loop()
        while (message := await self._receive(reader)) is not None:
            match message:
                case protocol.Hello(version=protocol.VERSION):
                    self._send(self._load_order())
                case protocol.Hello():
                    raise Unavailable(
                        f"The model worker speaks version {message.version} of the protocol and the server"
                        f" version {protocol.VERSION}: the server was updated while it ran; restart it."
                    )
                case protocol.Converting():
                    limit.reschedule(loop.time() + self._settings.load_timeout_seconds)
                    self._show(PhaseChanged(Phase.LOADING_MODEL, message.detail, message.progress))
                case protocol.Loading():
                    self._show(PhaseChanged(Phase.LOADING_MODEL, message.detail))
                case protocol.Failed():
                    raise _ERRORS[message.kind](
                        f"The model {self.model.name} cannot be loaded. {message.message}"
                    )
                case protocol.Loaded():
                    self._be_loaded(message)
                    return
                case _:
                    raise Unavailable(f"The worker of {self.model.name} spoke out of turn.")

    def _be_loaded(self, loaded: protocol.Loaded) -> None:
        self.loaded = loaded
        self.loaded_at = datetime.now(UTC)
        self._changed.beat()
        self._on_loaded()
        logger.info("The model %s runs on %s in %s", self.model.name, loaded.device, loaded.precision)
        if self._settings.precision not in ("auto", loaded.precision):
            logger.warning(
                "The model %s runs in %s: %s is slow on %s",
                self.model.name,
                loaded.precision,
                self._settings.precision,
                loaded.device,
            )

    async def _receive(self, reader: asyncio.StreamReader) -> protocol.FromWorker | None:
        try:
            message = await protocol.receive(reader)
        except protocol.ProtocolError as error:
            raise Unavailable(
                f"The worker of {self.model.name} sent what cannot be read: {error}."
            ) from error
        self._last_heard = time.monotonic()
        return message

    def _deliver(self, message: protocol.FromWorker) -> None:
        match message:
            case protocol.Status():
                answer = self._status_requests.pop(0)
                if not answer.done():
                    answer.set_result(message)
            case protocol.Started() | protocol.Delta() | protocol.Usage() | protocol.Done():
                if (mailbox := self._mailboxes.get(message.id)) is not None:
                    mailbox.put(message)
            case protocol.Failed(id=int(request_id)):
                if (mailbox := self._mailboxes.get(request_id)) is not None:
                    mailbox.put(message)
            case _:
                raise Unavailable(f"The worker of {self.model.name} spoke out of turn.")

    def _send(self, message: protocol.ToWorker) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(protocol.encode(message))

    def _show(self, phase: PhaseChanged) -> None:
        self._phase = phase
        self._changed.beat()

    def _load_order(self) -> protocol.Load:
        return protocol.Load(
            folder=str(self.model.folder),
            gguf_file=self.model.gguf_file,
            cache_dir=str(self._settings.cache_dir.resolve()),
            device=self._settings.device,
            precision=self._settings.precision,
            threads=self._settings.threads,
        )

    def _end_with(self, error: ProviderError) -> None:
        """The first error counts. Wakes everybody who waits for this worker."""
        self.error = self.error or error
        self._changed.beat()
        for mailbox in self._mailboxes.values():
            mailbox.wake()
        for answer in self._status_requests:
            if not answer.done():
                answer.set_exception(_again(self.error))
        self._status_requests.clear()

    def _death(self, return_code: int, last_words: str) -> ProviderError:
        name = self.model.name
        logger.error("The process of the model %s ended (%d): %s", name, return_code, last_words)
        if return_code == -signal.SIGKILL:
            return OutOfMemory(f"The process of the model {name} was killed, most likely for want of memory.")
        cause = signal.Signals(-return_code).name if return_code < 0 else f"exit code {return_code}"
        reason = f": {last_words.splitlines()[-1]}" if last_words else "."
        return WorkerEnded(f"The process of the model {name} ended ({cause}){reason}")


def _event(letter: Letter) -> ProviderEvent:
    match letter:
        case protocol.Started():
            return PhaseChanged(Phase.WAITING)
        case protocol.Delta():
            return TextDelta(letter.text)
        case protocol.Usage():
            return UsageReport(letter.prompt_tokens, letter.completion_tokens)
        case protocol.Done():
            return Finished(letter.reason)
        case protocol.Failed():
            raise _ERRORS[letter.kind](letter.message)
        case _:
            assert_never(letter)


def _again(error: ProviderError) -> ProviderError:
    """A copy for one more reader: a raised exception carries its reader's traceback."""
    return type(error)(error.message)
