"""What a running generation has said and the database does not have yet."""

from uuid import UUID

from server.events import Delta, LoggedEvent, ModelSwitched, PhaseChanged, StreamEvent, Terminal, clean


class Pending:
    """Events wait unnumbered, neighbouring deltas of a kind joined, until ``take`` numbers them.

    Invariant: what has a number never changes, and stays in ``take``'s answer until it is known to be
    stored, so that a commit whose fate is unknown is repeated with the very same rows.
    """

    def __init__(self, generation_id: UUID, last_seq: int) -> None:
        self._generation_id = generation_id
        self._last_seq = last_seq
        self._waiting: list[StreamEvent] = []
        self._taken: list[LoggedEvent] = []
        self.characters = 0

    def add(self, event: PhaseChanged | ModelSwitched | Terminal) -> None:
        self._waiting.append(event)

    def add_delta(self, event: Delta) -> None:
        text = clean(event.text)
        self.characters += len(text)
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, Delta) and type(last) is type(event):
            self._waiting[-1] = type(event)(last.text + text)
        else:
            self._waiting.append(type(event)(text))

    def take(self) -> list[LoggedEvent]:
        for event in self._waiting:
            self._last_seq += 1
            self._taken.append(LoggedEvent(self._generation_id, self._last_seq, self._last_seq, event))
        self._waiting.clear()
        return self._taken

    def stored(self) -> None:
        """What was taken is in the database."""
        self._taken = []
        self.characters = sum(len(event.text) for event in self._waiting if isinstance(event, Delta))

    def discard(self) -> None:
        """Forget what is not stored; none of it is."""
        self._last_seq -= len(self._taken)
        self._taken = []
        self._waiting = []
        self.characters = 0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._taken)
