"""What happens in a conversation, as the difference between what a watcher knows and what is the case."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from db.conversations import Conversation
from db.generations import Generation


@dataclass(frozen=True, slots=True)
class ConversationChanged:
    """What it is now; always the first thing that is told."""

    conversation: Conversation


@dataclass(frozen=True, slots=True)
class GenerationBegan:
    generation: Generation


@dataclass(frozen=True, slots=True)
class GenerationEnded:
    """``generation`` is None where it was deleted, with its messages, before anybody could look."""

    generation_id: UUID
    conversation_id: UUID
    generation: Generation | None


@dataclass(frozen=True, slots=True)
class ConversationDeleted:
    """Nothing follows."""

    conversation_id: UUID


ConversationEvent: TypeAlias = ConversationChanged | GenerationBegan | GenerationEnded | ConversationDeleted


class Known:
    """What one watcher of a conversation was told. However much it missed, it is told what that comes to:
    of every generation that began that it did, and of every one of these that it ended."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation_id = conversation.id
        self.updated_at = conversation.updated_at
        self._newest = 0
        self._running: dict[UUID, int] = {}  # with their numbers

    @property
    def number(self) -> int:
        """Everything new is about generations that follow this number."""
        return min(self._running.values()) - 1 if self._running else self._newest

    def begin(self, conversation: Conversation, current: Sequence[Generation]) -> list[ConversationEvent]:
        """What to tell first. ``current`` are the newest generation and all that run."""
        running = [generation for generation in current if generation.finished_at is None]
        self._running = {generation.id: generation.number for generation in running}
        self._newest = max((generation.number for generation in current), default=0)
        return [ConversationChanged(conversation), *map(GenerationBegan, running)]

    def catch_up(
        self, conversation: Conversation | None, generations: Sequence[Generation]
    ) -> list[ConversationEvent]:
        """What to tell next: ``conversation`` has changed or, if None, was deleted. ``generations`` are all
        that follow ``number``, in their order."""
        events: list[ConversationEvent] = []
        if conversation:
            self.updated_at = conversation.updated_at
            events.append(ConversationChanged(conversation))
        for generation in generations:
            events += self._news_of(generation)
        for id_ in self._running.keys() - {generation.id for generation in generations}:
            del self._running[id_]
            events.append(GenerationEnded(id_, self.conversation_id, None))
        if conversation is None:
            events.append(ConversationDeleted(self.conversation_id))
        return events

    def _news_of(self, generation: Generation) -> list[ConversationEvent]:
        events: list[ConversationEvent] = []
        if generation.number > self._newest:
            self._newest = generation.number
            self._running[generation.id] = generation.number
            events.append(GenerationBegan(generation))
        if generation.finished_at and self._running.pop(generation.id, None):
            events.append(GenerationEnded(generation.id, generation.conversation_id, generation))
        return events
