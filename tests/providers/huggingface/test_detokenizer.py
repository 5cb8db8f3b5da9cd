"""The pieces of a text are never broken and together exactly the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from providers.huggingface.detokenizer import Detokenizer
from tests.providers.huggingface.tiny_models import byte_tokenizer

_BYTES = byte_tokenizer(None)


def _sentencepiece() -> Tokenizer:
    """The other kind of vocabulary: words with their space before them, single bytes as fallback."""
    words = ["<unk>", "▁Hello", "▁world", "▁", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


_WORDS = _sentencepiece()


def _fallback(character: str) -> list[int]:
    return [5 + byte for byte in character.encode()]


def _pieces(decode: Detokenizer, tokens: list[int]) -> list[str]:
    return [*(decode.push(token) for token in tokens), decode.flush()]


@given(st.text())
def test_a_text_comes_back_whole_and_no_piece_is_broken(text: str) -> None:
    tokens = _BYTES(text, add_special_tokens=False).input_ids
    pieces = _pieces(Detokenizer(_decode_bytes), tokens)
    assert "".join(pieces) == text.replace("\0", "\ufffd")
    if "\ufffd" not in text and "\0" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 255)))
def test_any_bytes_come_out_as_the_tokenizer_decodes_them_at_once(tokens: list[int]) -> None:
    expected = _decode_bytes(tokens).replace("\0", "\ufffd")
    assert "".join(_pieces(Detokenizer(_decode_bytes), tokens)) == expected


@given(
    st.lists(st.one_of(st.sampled_from([[1], [2], [3], [4]]), st.characters(codec="utf-8").map(_fallback)))
)
def test_leading_spaces_and_byte_fallback_come_out_as_decoded_at_once(words: list[list[int]]) -> None:
    tokens = [token for word in words for token in word]
    pieces = _pieces(Detokenizer(_WORDS.decode), tokens)
    assert "".join(pieces) == _WORDS.decode(tokens).replace("\0", "\ufffd")


def test_a_character_comes_with_its_last_byte() -> None:
    tokens = _BYTES("é😀", add_special_tokens=False).input_ids
    assert _pieces(Detokenizer(_decode_bytes), tokens) == ["", "é", "", "", "", "😀", ""]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_character_cut_off_at_the_end_is_shown_as_such(kept: int) -> None:
    tokens = _BYTES("a😀", add_special_tokens=False).input_ids[: 1 + kept]
    assert _pieces(Detokenizer(_decode_bytes), tokens) == ["a", *[""] * kept, "\ufffd"]


def _decode_bytes(tokens: list[int]) -> str:
    return str(_BYTES.decode(tokens, skip_special_tokens=True))
