"""The child process that holds one model: ``python -m providers.huggingface.worker SOCKET``.

The main thread reads what the server says, so that a stop is seen at once; the inference thread does the
work in order and writes its results itself. The process ends when the server hangs up, however it died.
"""

import logging
import os
import queue
import socket
import sys
import threading
import warnings

from transformers.utils import logging as transformers_logging

from providers.huggingface.engine import Cancelled, Engine
from providers.huggingface.protocol import (
    VERSION,
    Cancel,
    Failed,
    FromWorker,
    Generate,
    Hello,
    Load,
    Started,
    Status,
    StatusRequest,
    encode,
    read,
)
from providers.huggingface.refusal import Refusal, explain_load, explain_reply

logger = logging.getLogger(__name__)


class Worker:
    """The server limits how many requests it has open here, and so the length of the queue."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._jobs: queue.SimpleQueue[Load | Generate] = queue.SimpleQueue()
        self._cancelled: dict[int, threading.Event] = {}
        self._running: int | None = None
        self._engine: Engine | None = None

    def serve(self) -> None:
        """Returns when the server has hung up; the inference thread may still be in the middle of a step."""
        self._send(Hello(VERSION, os.getpid()))
        threading.Thread(target=self._infer, name="inference", daemon=True).start()
        with self._connection.makefile("rb") as stream:
            while (message := read(stream)) is not None:
                match message:
                    case Load():
                        self._jobs.put(message)
                    case Generate():
                        self._cancelled[message.id] = threading.Event()
                        self._jobs.put(message)
                    case Cancel():
                        if (cancelled := self._cancelled.get(message.id)) is not None:
                            cancelled.set()
                    case StatusRequest():
                        self._send(self._status())

    def _infer(self) -> None:
        try:
            while True:
                job = self._jobs.get()
                if isinstance(job, Load):
                    self._load(job)
                else:
                    self._reply(job)
        except ConnectionError:
            pass  # the server is gone
        except BaseException:
            logger.exception("The inference thread ended")
        os._exit(1)  # without this thread the worker would accept requests and never answer them

    def _load(self, load: Load) -> None:
        try:
            self._engine = Engine.load(load, self._send)
        except Exception as error:
            logger.exception("The model cannot be loaded")
            self._send(_failed(None, explain_load(error)))
        else:
            self._send(self._engine.loaded)

    def _reply(self, request: Generate) -> None:
        if self._engine is None:
            raise RuntimeError("a request before the model was loaded")
        cancelled = self._cancelled[request.id]
        ending: tuple[FromWorker, ...] = ()
        try:
            if not cancelled.is_set():
                self._running = request.id
                self._send(Started(request.id))
                ending = self._engine.generate(request, self._send, cancelled)
        except Cancelled:
            pass
        except ConnectionError:
            raise
        except Exception as error:
            logger.exception("A reply failed")
            ending = (_failed(request.id, explain_reply(error)),)
        self._running = None
        del self._cancelled[request.id]
        for message in ending:
            self._send(message)

    def _status(self) -> Status:
        steps = self._engine.steps if self._engine else 0
        return Status(os.getpid(), steps, self._running, self._jobs.qsize())

    def _send(self, message: FromWorker) -> None:
        with self._sending:
            self._connection.sendall(encode(message))


def _failed(request_id: int | None, refusal: Refusal) -> Failed:
    return Failed(request_id, refusal.kind, refusal.message)


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(sys.argv[1])
    Worker(connection).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
