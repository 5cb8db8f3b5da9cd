"""A message that somebody wants to send, and what makes one acceptable."""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

import msgspec

from providers.base import GenerationOptions
from server.errors import ChatError, ErrorCode
from server.events import clean


@dataclass(frozen=True, slots=True)
class Draft:
    """``model`` is a name as a client writes it. Without ``conversation_id`` a conversation begins; without
    ``parent_id`` the message hangs on the conversation's newest one. A ``system_prompt`` replaces the
    conversation's from this message on. ``client_key`` is what the same message has when it is sent again.
    ``stops_without_readers`` ends the reply when nobody reads it any more."""

    text: str
    model: str | None = None
    conversation_id: UUID | None = None
    parent_id: UUID | None = None
    system_prompt: str | None = None
    options: GenerationOptions = GenerationOptions()
    client_key: str | None = None
    stops_without_readers: bool = False

    def digest(self) -> bytes:
        """The same for the same message, whoever computes it: what was left out has no part in it, nor how
        it is read."""
        sent = given(replace(self, client_key=None)) | {"options": given(self.options)}
        del sent["stops_without_readers"]
        return hashlib.sha256(msgspec.json.encode(sent, order="sorted")).digest()


@dataclass(frozen=True, slots=True)
class DraftLimits:
    message_characters: int = 400_000
    client_key_characters: int = 200
    default_max_tokens: int = 1024
    max_tokens: int = 32_768
    stop_strings: int = 8

    def checked(self, draft: Draft) -> Draft:
        """The draft cleaned. Raises ChatError that names everything wrong."""
        draft = _cleaned(draft)
        if problems := [*self._text_problems(draft), *self._option_problems(draft.options)]:
            raise ChatError(ErrorCode.BAD_INPUT, "; ".join(problems))
        return draft

    def completed(self, options: GenerationOptions) -> GenerationOptions:
        """The options with their defaults filled in."""
        return options if options.max_tokens else replace(options, max_tokens=self.default_max_tokens)

    def _text_problems(self, draft: Draft) -> list[str]:
        problems = []
        if not draft.text.strip():
            problems.append("message is empty")
        for name, text in (("message", draft.text), ("systemPrompt", draft.system_prompt or "")):
            if len(text) > self.message_characters:
                problems.append(f"{name} has {len(text)} characters; {self.message_characters} is the most")
        if draft.client_key is not None and not 1 <= len(draft.client_key) <= self.client_key_characters:
            most = self.client_key_characters
            problems.append(f"clientKey has {len(draft.client_key)} characters; it must have 1 to {most}")
        if draft.parent_id and not draft.conversation_id:
            problems.append("parentId needs its conversationId beside it")
        return problems

    def _option_problems(self, options: GenerationOptions) -> list[str]:
        ranges = (
            ("temperature", options.temperature, 0, 2),
            ("topP", options.top_p, 0.001, 1),
            ("topK", options.top_k, 1, 1_000_000),
            ("maxTokens", options.max_tokens, 1, self.max_tokens),
            ("seed", options.seed, 0, 2**31 - 1),
        )
        problems = [
            f"{name} is {value}; it must be from {low} to {high}"
            for name, value, low, high in ranges
            if value is not None and not low <= value <= high
        ]
        if len(options.stop) > self.stop_strings:
            problems.append(f"stop has {len(options.stop)} strings; {self.stop_strings} is the most")
        if not all(options.stop):
            problems.append("stop has an empty string; it would end every reply before it began")
        return problems


def _cleaned(draft: Draft) -> Draft:
    return replace(
        draft,
        text=clean(draft.text),
        model=draft.model and clean(draft.model),
        system_prompt=draft.system_prompt and clean(draft.system_prompt),
        options=replace(draft.options, stop=tuple(map(clean, draft.options.stop))),
        client_key=draft.client_key and clean(draft.client_key),
    )


def given(fields: Draft | GenerationOptions) -> dict[str, Any]:
    """What was not left out."""
    return {name: value for name, value in asdict(fields).items() if value not in (None, ())}
