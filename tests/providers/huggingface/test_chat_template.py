"""Every conversation becomes a prompt, whatever the template thinks of roles."""

import pytest

from providers.base import ChatMessage, Role
from providers.huggingface.chat_template import ChatTemplate
from providers.huggingface.refusal import Refusal
from tests.providers.huggingface.tiny_models import TEMPLATE, byte_tokenizer

_SYSTEM = ChatMessage(Role.SYSTEM, "Be brief.")
_HELLO = ChatMessage(Role.USER, "Hello")
_ANSWER = ChatMessage(Role.ASSISTANT, "Hi")
_REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
_DROPS_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
_ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)


def _prompt(template: str | None, *messages: ChatMessage) -> str:
    tokenizer = byte_tokenizer(template)
    return str(tokenizer.decode(ChatTemplate(tokenizer).encode(messages)))


def test_the_models_own_template_is_used_as_it_is() -> None:
    tokenizer = byte_tokenizer(TEMPLATE)
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    expected = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert ChatTemplate(tokenizer).encode([_SYSTEM, _HELLO]) == expected


@pytest.mark.parametrize("template", [_REFUSES_SYSTEM, _DROPS_SYSTEM])
def test_a_template_without_a_system_role_gets_it_in_the_users_turn(template: str) -> None:
    assert _prompt(template, _SYSTEM, _HELLO, _ANSWER) == "[user]Be brief.\n\nHello[assistant]Hi"


def test_a_template_that_insists_on_alternating_turns_gets_neighbours_as_one() -> None:
    prompt = _prompt(_ALTERNATES, _SYSTEM, _HELLO, ChatMessage(Role.USER, "Again"), _ANSWER)
    assert prompt == "[user]Be brief.\n\nHello\n\nAgain[assistant]Hi"


def test_without_a_template_a_conversation_is_plain_text_that_ends_before_the_next_user() -> None:
    template = ChatTemplate(byte_tokenizer(None))
    prompt = _prompt(None, _SYSTEM, _HELLO, _ANSWER, _HELLO)
    assert prompt == "System: Be brief.\nUser: Hello\nAssistant: Hi\nUser: Hello\nAssistant:"
    assert "\nUser:" in template.stops


def test_without_a_template_but_with_its_tokens_a_conversation_is_chatml() -> None:
    tokenizer = byte_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    prompt = tokenizer.decode(ChatTemplate(tokenizer).encode([_HELLO]))
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", ["{% for %}", "{{ 1 / 0 }}", "{{ messages[0].nothing.at_all }}"])
def test_a_template_that_cannot_be_used_is_told_at_load(template: str) -> None:
    with pytest.raises(Refusal, match="chat template cannot be used"):
        ChatTemplate(byte_tokenizer(template))


def test_a_conversation_that_the_template_takes_in_no_form_is_refused() -> None:
    with pytest.raises(Refusal, match="roles must alternate"):
        _prompt(_ALTERNATES, _ANSWER, _HELLO)
