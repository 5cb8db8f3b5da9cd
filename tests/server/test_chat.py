"""The chat engine on a real Postgres, with models that do what their scripts say."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from uuid import uuid4

import pytest

from db import conversations, generations
from db.bell import Bell
from db.conversations import Message
from db.database import Conflict, Database
from db.generations import Generation
from providers.base import ChatRequest, FinishReason, GenerationOptions, Phase, ProviderEvent
from providers.errors import ModelNotFound
from providers.registry import Registration, Registry
from providers.reply import ReplyLimits
from providers.router import Router
from providers.scripted import Scripted
from server.chat import ChatEngine
from server.draft import Draft
from server.errors import ChatError, ErrorCode
from server.events import Completed, Failed, LoggedEvent, PhaseChanged, Started, Stopped, TextDelta
from server.stream_log import LogTiming, StreamLog
from tests.server.begin import VIEWER

QUICK = LogTiming(flush_seconds=0.005, poll_seconds=0.05, retry_seconds=0.02)


PATIENT = ReplyLimits(first_token_seconds=60, silence_seconds=60)


class House:
    """A chat engine and all that it stands on."""

    def __init__(
        self, database: Database, bell: Bell, timing: LogTiming = QUICK, provider: Scripted | None = None
    ) -> None:
        self.database = database
        self.scripted = provider or Scripted(PATIENT)
        registry = Registry([Registration(self.scripted, "scripted")])
        self.log = StreamLog(database, bell, uuid4(), timing)
        self.engine = ChatEngine(database, Router(registry, default_provider="scripted"), self.log)

    async def send(self, script: str, text: str = "hello", **more: object) -> Generation:
        draft = replace(Draft(text, model=f"scripted:{script}"), **more)  # type: ignore[arg-type]
        return await self.engine.send(VIEWER, draft)

    async def events(self, generation: Generation) -> list[LoggedEvent]:
        async with asyncio.timeout(20), aclosing(self.log.read(generation.id)) as events:
            return [event async for event in events]

    async def until_text(self, generation: Generation) -> str:
        """Wait for the first text, and return it."""
        async with asyncio.timeout(20), aclosing(self.log.read(generation.id)) as events:
            async for event in events:
                if isinstance(event.event, TextDelta):
                    return event.event.text
        raise AssertionError("the reply ended without a text")

    async def reply(self, generation: Generation) -> Message:
        (message,) = await conversations.messages(self.database, VIEWER, [generation.message_id])
        return message

    async def say(self, script: str, text: str = "hello", **more: object) -> Message:
        """Send, and wait for the whole reply."""
        generation = await self.send(script, text, **more)
        await self.events(generation)
        return await self.reply(generation)


@pytest.fixture
async def house(database: Database, bell: Bell) -> AsyncIterator[House]:
    house = House(database, bell)
    async with house.log.running(), house.engine.running(grace_seconds=0):
        yield house


async def test_a_message_is_stored_answered_and_accounted_for(house: House) -> None:
    """C1, D1, D2."""
    generation = await house.send("words 5", "What is the capital of France?\nPlease.")
    seen = await house.events(generation)
    started = seen[0].event
    assert isinstance(started, Started)
    assert started.model == "scripted:words 5"
    assert seen[-1].event == Completed(FinishReason.STOP)

    conversation = await conversations.get(house.database, VIEWER, generation.conversation_id)
    assert conversation is not None
    assert conversation.title == "What is the capital of France?"
    assert (conversation.head_id, conversation.model) == (generation.message_id, "scripted:words 5")
    question, answer = await conversations.branch(house.database, VIEWER, generation.message_id)
    assert (question.role, question.content) == ("user", "What is the capital of France?\nPlease.")
    assert (answer.role, answer.status, answer.parent_id) == ("assistant", "completed", question.id)
    assert answer.content == "w1 w2 w3 w4 w5"
    assert (answer.model, answer.provider) == ("scripted:words 5", "scripted")
    assert (answer.completion_tokens, answer.usage_source) == (5, "provider")
    assert answer.first_token_ms is not None
    assert answer.duration_ms is not None
    assert answer.first_token_ms <= answer.duration_ms

    (attempt,) = await house.database.fetch("SELECT * FROM generation_attempts")
    assert (attempt["generation_id"], attempt["outcome"]) == (generation.id, "completed")
    (usage,) = await house.database.fetch("SELECT * FROM model_usage_stats")
    assert (usage["viewer_id"], usage["completion_tokens"]) == (VIEWER, 5)


async def test_the_next_message_brings_the_whole_conversation(house: House) -> None:
    first = await house.say("text Blue.", "My favourite colour?", system_prompt="Be brief.")
    again = await house.say("history", "Why?", conversation_id=first.conversation_id)
    assert json.loads(again.content) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My favourite colour?"},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Why?"},
    ]


async def test_a_conversation_keeps_its_model(house: House) -> None:
    """C2: no model named: the conversation's."""
    first = await house.say("text one")
    generation = await house.engine.send(VIEWER, Draft("and?", conversation_id=first.conversation_id))
    assert generation.model == "scripted:text one"


async def test_a_message_can_hang_on_an_earlier_reply(house: House) -> None:
    first = await house.say("text first")
    await house.say("text second", "left", conversation_id=first.conversation_id)
    branch = await house.say("history", "right", conversation_id=first.conversation_id, parent_id=first.id)
    assert [turn["content"] for turn in json.loads(branch.content)] == ["hello", "first", "right"]


async def test_while_the_reply_is_written_the_next_message_conflicts(house: House) -> None:
    generation = await house.send("text a;stall")
    await house.until_text(generation)
    with pytest.raises(Conflict):
        await house.send("words 1", conversation_id=generation.conversation_id)
    await house.engine.stop(VIEWER, generation.id)
    assert len(await house.database.fetch("SELECT FROM messages")) == 2


async def test_an_unknown_model_is_named_and_nothing_is_stored(house: House) -> None:
    """C3."""
    with pytest.raises(ModelNotFound, match="no-such-model"):
        await house.engine.send(VIEWER, Draft("hello", model="no-such-model"))
    assert await house.database.fetch("SELECT FROM conversations") == []


@pytest.mark.parametrize(
    ("draft", "complaint"),
    [
        (Draft(""), "message is empty"),
        (Draft(" \0\n"), "message is empty"),
        (Draft("x" * 400_001), "400001 characters"),
        (Draft("x", parent_id=uuid4()), "parentId needs its conversationId"),
        (Draft("x", options=GenerationOptions(temperature=2.5)), "temperature is 2.5"),
        (Draft("x", options=GenerationOptions(temperature=float("nan"))), "temperature is nan"),
        (Draft("x", options=GenerationOptions(top_p=0)), "topP is 0"),
        (Draft("x", options=GenerationOptions(top_k=0)), "topK is 0"),
        (Draft("x", options=GenerationOptions(max_tokens=0)), "maxTokens is 0"),
        (Draft("x", options=GenerationOptions(max_tokens=10**9)), "it must be from 1 to 32768"),
        (Draft("x", options=GenerationOptions(seed=-1)), "seed is -1"),
        (Draft("x", options=GenerationOptions(stop=("",))), "empty string"),
        (Draft("x", options=GenerationOptions(stop=("a",) * 9)), "8 is the most"),
    ],
)
async def test_bad_input_is_refused_with_what_would_be_right(
    house: House, draft: Draft, complaint: str
) -> None:
    with pytest.raises(ChatError, match=complaint) as refused:
        await house.engine.send(VIEWER, replace(draft, model="scripted:words 1"))
    assert refused.value.code is ErrorCode.BAD_INPUT
    assert await house.database.fetch("SELECT FROM conversations") == []


async def test_everything_wrong_is_said_at_once(house: House) -> None:
    with pytest.raises(ChatError) as refused:
        await house.engine.send(VIEWER, Draft("", options=GenerationOptions(top_k=0, seed=-1)))
    assert all(name in refused.value.message for name in ("message", "topK", "seed"))


@pytest.mark.parametrize("missing", ["conversation", "parent"])
async def test_what_is_not_there_is_not_found(house: House, missing: str) -> None:
    known = await house.say("text one")
    conversation_id, parent_id = {
        "conversation": (uuid4(), None),
        "parent": (known.conversation_id, uuid4()),
    }[missing]
    with pytest.raises(ChatError, match=missing) as refused:
        await house.send("words 1", conversation_id=conversation_id, parent_id=parent_id)
    assert refused.value.code is ErrorCode.NOT_FOUND


async def test_somebody_elses_conversation_is_not_found(house: House) -> None:
    first = await house.say("text one")
    with pytest.raises(ChatError) as refused:
        await house.engine.send("somebody else", Draft("hi", conversation_id=first.conversation_id))
    assert refused.value.code is ErrorCode.NOT_FOUND
    generation = await house.send("words 1")
    with pytest.raises(ChatError):
        await house.engine.stop("somebody else", generation.id)


@pytest.mark.parametrize("script", ["queue 60s", "load 60s", "wait 60s", "stall", "words 1000000 every 1ms"])
async def test_stop_ends_a_reply_in_every_phase(house: House, script: str) -> None:
    """C7."""
    generation = await house.send(f"text so;{script}" if script.startswith(("stall", "words")) else script)
    async with asyncio.timeout(5), aclosing(house.log.read(generation.id, after=1)) as events:
        await anext(events)
    stopped = await house.engine.stop(VIEWER, generation.id)
    assert stopped.status == "stopped"
    assert house.scripted.open_streams == 0
    assert house.scripted.opened_streams == 1
    assert (await house.events(generation))[-1].event == Stopped()


async def test_a_stopped_reply_keeps_its_text_and_its_usage(house: House) -> None:
    generation = await house.send("words 2;stall")
    async with aclosing(house.log.read(generation.id)) as events:
        text = ""
        while text != "w1 w2":
            event = (await anext(events)).event
            text += event.text if isinstance(event, TextDelta) else ""
    await house.engine.stop(VIEWER, generation.id)
    reply = await house.reply(generation)
    assert (reply.status, reply.content) == ("stopped", "w1 w2")
    assert (reply.completion_tokens, reply.usage_source) == (2, "estimated")
    (usage,) = await house.database.fetch("SELECT * FROM model_usage_stats")
    assert usage["outcome"] == "stopped"


async def test_stopping_twice_or_too_late_changes_nothing(house: House) -> None:
    generation = await house.send("words 2")
    await house.events(generation)
    assert (await house.engine.stop(VIEWER, generation.id)).status == "completed"
    stalled = await house.send("stall")
    first, second = await asyncio.gather(*(house.engine.stop(VIEWER, stalled.id) for _ in range(2)))
    assert (first.status, second.status) == ("stopped", "stopped")
    assert isinstance((await house.events(stalled))[-1].event, Stopped)


async def test_a_reply_of_another_replica_can_be_stopped(database: Database, bell: Bell) -> None:
    here, there = (
        House(database, bell),
        House(database, bell, LogTiming(lease_seconds=0.4, poll_seconds=0.05)),
    )
    async with AsyncExitStack() as stack:
        for house in (here, there):
            await stack.enter_async_context(house.log.running())
            await stack.enter_async_context(house.engine.running(grace_seconds=0))
        generation = await there.send("text half;stall")
        await there.until_text(generation)
        assert (await here.engine.stop(VIEWER, generation.id)).status == "stopped"
        assert (await here.reply(generation)).content == "half"
        assert there.scripted.open_streams == 0


@pytest.mark.parametrize(
    ("script", "code", "text"),
    [
        ("error model-not-found", "MODEL_NOT_FOUND", ""),
        ("429 retry-after 2s", "OVERLOADED", ""),
        ("error out-of-memory", "OUT_OF_MEMORY", ""),
        ("error load-failed", "MODEL_LOAD_FAILED", ""),
        ("error context-too-long", "CONTEXT_TOO_LONG", ""),
        ("error content-filtered", "CONTENT_FILTERED", ""),
        ("garbage", "PROVIDER_UNAVAILABLE", ""),
        ("text par;cut", "STREAM_BROKEN", "par"),
        ("text par;garbage", "STREAM_BROKEN", "par"),
        ("text par;end", "STREAM_BROKEN", "par"),
        ("text par;error overloaded", "STREAM_BROKEN", "par"),
    ],
)
async def test_a_failed_reply_says_why_and_keeps_its_text(
    house: House, script: str, code: str, text: str
) -> None:
    """C8, C10."""
    generation = await house.send(script, "do you hear me?")
    end = (await house.events(generation))[-1].event
    assert isinstance(end, Failed)
    assert (end.outcome, end.code) == ("failed", code)
    question, answer = await conversations.branch(house.database, VIEWER, generation.message_id)
    assert question.content == "do you hear me?"
    assert (answer.status, answer.content, answer.error_code) == ("failed", text, code)
    (usage,) = await house.database.fetch("SELECT * FROM model_usage_stats")
    assert usage["outcome"] == "failed"
    again = await house.say("history", "and now?", conversation_id=generation.conversation_id)
    turns = [turn["content"] for turn in json.loads(again.content)]
    assert turns == ["do you hear me?", *([text] if text else []), "and now?"]


async def test_phases_are_told_and_kept_as_the_status(house: House) -> None:
    generation = await house.send("queue 1ms;load 1ms;wait 60s")
    phases = []
    async with aclosing(house.log.read(generation.id, after=1)) as events:
        while Phase.WAITING not in phases:
            event = (await anext(events)).event
            assert isinstance(event, PhaseChanged)
            phases.append(event.phase)
    assert phases == [Phase.QUEUED, Phase.LOADING_MODEL, Phase.WAITING]
    found = await generations.get(house.database, VIEWER, generation.id)
    assert found is not None
    assert found.status == "waiting"


async def test_shutting_down_lets_replies_end_and_interrupts_the_rest(database: Database, bell: Bell) -> None:
    house = House(database, bell)
    async with house.log.running():
        async with house.engine.running(grace_seconds=0.5):
            quick = await house.send("words 3 every 20ms")
            slow = await house.send("text half;stall")
            await house.until_text(slow)
        assert (await house.reply(quick)).status == "completed"
        reply = await house.reply(slow)
        assert (reply.status, reply.content, reply.error_code) == ("interrupted", "half", "INTERRUPTED")
        with pytest.raises(ChatError) as refused:
            await house.send("words 1")
        assert refused.value.code is ErrorCode.OVERLOADED


async def test_fifty_replies_at_once_are_each_their_own(house: House) -> None:
    sent = await asyncio.gather(
        *(house.send("echo every 1ms", " ".join(f"{n}-{word}" for word in range(20))) for n in range(50))
    )
    for n, generation in enumerate(sent):
        await house.events(generation)
        assert (await house.reply(generation)).content.split() == [f"{n}-{word}" for word in range(20)]


class Broken(Scripted):
    """A provider with a fault that its contract does not foresee."""

    def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        raise RuntimeError("password=hunter2")


async def test_an_unforeseen_failure_is_masked(
    database: Database, bell: Bell, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(database, bell, provider=Broken(PATIENT))
    async with house.log.running(), house.engine.running(grace_seconds=0):
        end = (await house.events(await house.send("words 1")))[-1].event
    assert isinstance(end, Failed)
    assert end.code == "INTERNAL"
    assert "hunter2" not in end.message
    incident = end.message.rsplit(" ", 1)[1]
    assert incident in caplog.text
