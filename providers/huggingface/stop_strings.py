"""Ends a text before the first stop string, however the text is cut into pieces."""

from collections.abc import Sequence


class StopStrings:
    """Holds back only what could be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        """What may be shown now. Once a stop string was met, nothing more may."""
        if self.met:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.met, self._held = True, ""
            return text[: min(ends)[1]]
        shown = len(text) - self._possible_beginning(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """The length of the longest end of ``text`` that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
