"""Says when the loaded models come near their memory limit: a line at each mark that is passed, once."""

import logging
from dataclasses import dataclass

from providers.huggingface.memory import MIB

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryMarks:
    """Shares of the limit: from the first two on there is a line in the log, above the last one idle models
    go."""

    warning: float = 0.70
    critical: float = 0.85
    cleanup: float = 0.90


class MemoryAlarm:
    def __init__(self, limit_bytes: int, marks: MemoryMarks) -> None:
        self._limit_bytes = limit_bytes
        self._marks = (marks.warning, marks.critical)
        self._passed = 0

    def note(self, taken_bytes: int, models: str) -> None:
        """``models`` says who takes it."""
        share = taken_bytes / self._limit_bytes
        passed = sum(share >= mark for mark in self._marks)
        if passed > self._passed:
            _log.log(
                (logging.WARNING, logging.ERROR)[passed - 1],
                "The loaded models take %.0f of %.0f MiB, %.0f %% of HUGGINGFACE_MAX_MEMORY: %s",
                taken_bytes / MIB,
                self._limit_bytes / MIB,
                100 * share,
                models,
            )
        self._passed = passed
