"""Chats whose template refuses them, in every way that templates do, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

from decoders import byte_level
from torch import nn

from unmask.language import LanguageModel
from unmask.language.chats import chat_text, system_in_user

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role\nnot supported') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
TWICE = [{"role": "user", "content": "hi"}, {"role": "user", "content": "you"}]


def tokenizer(template: str | None) -> Any:
    made = byte_level()
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "chat", "words"),
    [
        (
            NO_SYSTEM,
            CHAT,
            r"refuses messages of system, user \(System role not supported\); it takes user \| user, assis",
        ),
        (ALTERNATING, TWICE, r"refuses messages of user, user \(roles must alternate\); it takes user \| user, assist"),
        (ALTERNATING, CHAT, r"refuses messages of system, user"),
        ("{{ messages[0].content + 1 }}", CHAT, r"refuses .* it takes none of the usual chats"),  # TypeError
        ("{{ messages[0].nothing.more }}", CHAT, "refuses"),  # UndefinedError
        ("{{ messages[7]['content'] }}", CHAT, "refuses"),
        ("{% if %}", CHAT, "refuses"),  # TemplateSyntaxError
        (None, CHAT, "no chat template; give texts"),
        (NO_SYSTEM, [{"role": "user"}], "a message of a chat is"),
        (NO_SYSTEM, [{"role": "user", "content": None}], "a message of a chat is"),
        (NO_SYSTEM, [{"role": 3, "content": "x"}], "a message of a chat is"),
        (NO_SYSTEM, [{"content": "x"}], "a message of a chat is"),
        (NO_SYSTEM, [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}], "a message of a chat is"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_is_taken(template: str | None, chat: Any, words: str):
    model = LanguageModel(nn.Linear(1, 1), 262, 2, tokenizer(template))
    with pytest.raises(ValueError, match=words) as caught:
        model.encode([[{"role": "user", "content": "hi"}], chat] if template in (NO_SYSTEM, ALTERNATING) else [chat])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("prompt 1: " if template in (NO_SYSTEM, ALTERNATING) else "prompt 0: ")


def test_what_is_taken_is_written():
    assert chat_text(tokenizer(NO_SYSTEM), TWICE) == "[user]hi[user]you[assistant]"
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert chat_text(tokenizer(NO_SYSTEM), parts) == "[user]hi[assistant]"
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    assert chat_text(tokenizer("{{ messages[0].tool_calls[0].name }}"), calls) == "f"
    assert chat_text(tokenizer(NO_SYSTEM), TWICE, add_generation_prompt=False) == "[user]hi[user]you"


def test_a_system_message_goes_before_the_users_first():
    merged = system_in_user([*CHAT, {"role": "assistant", "content": "ho"}])
    assert merged == [{"role": "user", "content": "be brief\n\nhi"}, {"role": "assistant", "content": "ho"}]
    assert system_in_user(TWICE) is None
    assert system_in_user(CHAT[:1]) is None
    assert CHAT[1]["content"] == "hi"
