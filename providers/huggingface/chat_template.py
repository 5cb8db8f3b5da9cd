"""A conversation as the tokens that the model was trained to see."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from providers.base import ChatMessage, Role
from providers.huggingface.protocol import FailureKind
from providers.huggingface.refusal import Refusal

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"  # jinja drops a newline at the very end
)
_PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n"
    "{% endfor %}Assistant:"
)
_PLAIN_STOPS = ("\nUser:", "\nSystem:")
_PROBE = (ChatMessage(Role.USER, "Hello"),)


class ChatTemplate:
    """The tokenizer's own template, ChatML where only its tokens are there, else plain text with roles.

    ``stops`` are the stop strings without which a reply in plain text would go on as the user.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises Refusal if the tokenizer's template cannot be used at all."""
        self._tokenizer = tokenizer
        self._template: str | None = None
        self._add_special_tokens = False
        self.stops: tuple[str, ...] = ()
        if not tokenizer.chat_template:
            if "<|im_start|>" in tokenizer.get_vocab():
                self._template = _CHATML
            else:
                self._template, self.stops, self._add_special_tokens = _PLAIN, _PLAIN_STOPS, True
        try:
            self._render(_PROBE)
        except Exception as error:  # a template is a foreign program and may raise anything
            raise Refusal(FailureKind.LOAD_FAILED, f"Its chat template cannot be used ({error}).") from error

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt's tokens. Raises Refusal if the template takes this conversation in no form."""
        tokens: list[int] = self._tokenizer(
            self._text(messages), add_special_tokens=self._add_special_tokens
        ).input_ids
        return tokens

    def _text(self, messages: Sequence[ChatMessage]) -> str:
        """Templates that know no system role refuse it or leave it out; some insist on alternating turns."""
        try:
            text = self._render(messages)
        except Exception:  # a template is a foreign program and may raise anything
            text = None
        if text is not None and all(
            message.content.strip() in text for message in messages if message.role is Role.SYSTEM
        ):
            return text
        try:
            return self._render(_alternating(messages))
        except Exception as error:  # as above
            raise Refusal(
                FailureKind.BAD_REQUEST, f"The model's chat template refuses this conversation ({error})."
            ) from error

    def _render(self, messages: Sequence[ChatMessage]) -> str:
        text = self._tokenizer.apply_chat_template(
            [{"role": message.role.value, "content": message.content} for message in messages],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return str(text)


def _alternating(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """System text joins the user's turn that follows; neighbours of one role become one turn."""
    turns: list[ChatMessage] = []
    for message in messages:
        role = Role.USER if message.role is Role.SYSTEM else message.role
        if turns and turns[-1].role is role:
            turns[-1] = ChatMessage(role, f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(ChatMessage(role, message.content))
    return turns
