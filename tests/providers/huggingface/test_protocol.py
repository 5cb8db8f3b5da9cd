"""Messages arrive as they were sent, and nothing else passes for one."""

import asyncio
import io

import pytest

from providers.base import ChatMessage, FinishReason, GenerationOptions, Role
from providers.huggingface import protocol
from providers.huggingface.mailbox import Letter, Mailbox
from providers.huggingface.protocol import Delta, Done, Failed, FailureKind, Generate, Started, Usage


def _reader(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_what_the_worker_says_arrives_in_order_and_ends_with_none() -> None:
    said: list[protocol.FromWorker] = [
        protocol.Hello(protocol.VERSION, 7),
        protocol.Converting("tokenizer", 0.5),
        Delta(1, "é😀"),
        Done(1, FinishReason.LENGTH),
        Failed(None, FailureKind.LOAD_FAILED, "no"),
    ]
    reader = _reader(b"".join(protocol.encode(message) for message in said))
    assert [await protocol.receive(reader) for _ in range(6)] == [*said, None]


def test_what_the_server_says_arrives() -> None:
    options = GenerationOptions(temperature=0.5, seed=2**63 - 1, stop=("a", "b"))
    order = Generate(3, (ChatMessage(Role.SYSTEM, "Be brief."),), options)
    stream = io.BytesIO(protocol.encode(order) + protocol.encode(protocol.Cancel(3)))
    assert [protocol.read(stream) for _ in range(3)] == [order, protocol.Cancel(3), None]


@pytest.mark.parametrize("cut", [0, 3, 5])
async def test_a_message_cut_off_is_the_end(cut: int) -> None:
    assert await protocol.receive(_reader(protocol.encode(Started(1))[:cut])) is None


@pytest.mark.parametrize("data", [b"\0\0\0\1x", b"\xff\xff\xff\xffx", b"\0\0\0\2\x80\x80"])
async def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        await protocol.receive(_reader(data))


def test_text_that_utf8_or_postgres_cannot_hold_is_replaced() -> None:
    assert protocol.clean("a\0b\ud83dc😀") == "a\ufffdb\ufffdc😀"


async def test_a_mailbox_gives_a_reader_that_lags_neighbouring_deltas_as_one() -> None:
    mailbox = Mailbox()
    letters: list[Letter] = [Started(1), Delta(1, "a"), Delta(1, "b"), Delta(1, "c"), Usage(1, 2, 3)]
    for letter in letters:
        mailbox.put(letter)
    assert [mailbox.take() for _ in range(4)] == [Started(1), Delta(1, "abc"), Usage(1, 2, 3), None]
    mailbox.put(Delta(1, "d"))
    await mailbox.wait()
    assert mailbox.take() == Delta(1, "d")
    mailbox.put(Delta(1, "e"))
    assert mailbox.take() == Delta(1, "e")
