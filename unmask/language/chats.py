"""Chats as text: what the tokenizer's template makes of them, and what it takes if it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIED = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("user", "user"),
    ("user", "assistant", "tool"),
)
"""Chats that a template is tried with, by the roles of their messages, to say what it takes."""


def chat_text(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Returns a chat as the tokenizer's template writes it, up to where the answer begins.

    Args:
        tokenizer: The tokenizer.
        chat: Messages with a role and a text, or parts of `{"type": "text", "text": ...}`, which are joined.
        **options: Of `apply_chat_template`.

    Raises:
        ValueError: If there is no template, a message is malformed, or the template refuses the chat.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; give texts instead of chats")
    messages = [_message(message) for message in chat]
    try:
        return _written(tokenizer, messages, **options)
    except Exception as error:  # a template is a program, and raises what its author or the library chose
        roles = ", ".join(message["role"] for message in messages)
        said = " ".join(str(error).split())
        taken = " | ".join(", ".join(tried) for tried in _TRIED if _takes(tokenizer, tried))
        raise ValueError(
            f"the chat template refuses messages of {roles} ({said:.200});"
            f" it takes {taken or 'none of the usual chats'}"
        ) from None


def system_in_user(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Returns a chat whose system message is put before the user's first, for templates without a system role.

    Returns:
        The chat, or `None` if it does not begin with a system message that a user's follows.
    """
    if [message.get("role") for message in chat[:2]] != ["system", "user"]:
        return None
    system, user = (_message(message) for message in chat[:2])
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *map(dict, chat[2:])]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its content as one text."""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else None
    calls = content is None and message.get("content") is None and message.get("tool_calls")
    if not isinstance(message.get("role"), str) or not (isinstance(content, str) or calls):
        raise ValueError(
            f"a message of a chat is {{'role': ..., 'content': ...}}, both texts, got {dict(message)!r:.80}"
        )
    return {**message, "content": content}


def _written(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **options}))


def _takes(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> bool:
    try:
        _written(tokenizer, [{"role": role, "content": "text"} for role in roles])
    except Exception:  # as above
        return False
    return True
