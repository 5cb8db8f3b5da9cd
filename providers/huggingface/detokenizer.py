"""Text out of tokens, as they come: what was given out is never taken back, and no character is split."""

from collections.abc import Callable

from providers.huggingface.protocol import clean


class Detokenizer:
    """``decode`` is the tokenizer's own. The pieces together equal its decoding of all tokens at once, but
    for what ``clean`` replaces, and for tokenizers that take back good bytes when a bad one follows.

    A token is decoded together with those before it back to the last but one piece, since what a token says
    can depend on its neighbour (a leading space, the other bytes of a character).
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._given = 0  # how many of the tokens have been given out as text

    def push(self, token: int) -> str:
        """The text that this token completes; often a word, empty within a character."""
        self._tokens.append(token)
        given, text = self._decode(self._tokens[: self._given]), self._decode(self._tokens)
        if len(text) <= len(given) or text.endswith("\ufffd"):
            return ""
        del self._tokens[: self._given]
        self._given = len(self._tokens)
        return clean(text[len(given) :])

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was cut off."""
        return clean(self._decode(self._tokens)[len(self._decode(self._tokens[: self._given])) :])
