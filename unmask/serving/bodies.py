"""The bodies of requests. A field either takes effect or is refused by its name; unknown fields are refused too."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, StrictBool
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

LARGEST = 2**63 - 1


class _Only:
    """Refuses a field of OpenAI's API that has no meaning here, except for the values that ask for nothing."""

    def __init__(self, *accepted: Any) -> None:
        self.accepted = accepted

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.accepted], "description": "Taken if it asks for nothing."}

    def _check(self, value: Any) -> Any:
        if value is not None and value not in self.accepted:
            told = " or ".join(repr(one) for one in self.accepted)
            raise ValueError(f"is not supported by this server{f': leave it out, or give {told}' if told else ''}")
        return value


Penalty = Annotated[float | None, _Only(0.0)]
Off = Annotated[StrictBool | None, _Only(False)]
Nothing = Annotated[Any, _Only()]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop = str | Annotated[list[str], Field(max_length=16)] | None
Number = Annotated[int | None, Field(ge=1, le=1 << 20)]


class Strict(BaseModel):
    """A strictly checked body: no unknown fields, and no numbers given as text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """What a stream contains besides text."""

    include_usage: bool | None = Field(None, description="Ends with a chunk that has the usage.")
    include_unmask: bool | None = Field(None, description="Also sends every evaluation: what it wrote and erased.")
    include_obfuscation: Off = None


class Extension(Strict):
    """What this server adds to OpenAI's requests."""

    events: bool | None = Field(None, description="The same as `stream_options.include_unmask`.")


class Choice(Strict):
    """The answer must be one of the given texts."""

    type: Literal["choice"]
    choices: list[Annotated[str, Field(min_length=1, max_length=4096)]] = Field(min_length=1, max_length=256)


class PlainText(Strict):
    """The answer may be any text."""

    type: Literal["text"]


class Draw(Strict):
    """How an answer is drawn."""

    model: str | None = Field(None, max_length=256, description="A name of `GET /v1/models`; default: the first.")
    rule: str | None = Field(
        None, max_length=1024, description="A rule with its settings, as `entropy-bound:gamma=0.1`."
    )
    settings: dict[str, str | int | float] | None = Field(None, max_length=32, description="More settings of the rule.")
    seed: Annotated[int | None, Field(ge=-LARGEST, le=LARGEST)] = None
    temperature: Annotated[float | None, Field(ge=0, le=100)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Number = None
    block_length: Number = Field(None, description="Tokens per block, from left to right; default: all as one.")
    end_last: bool | None = Field(None, description="Whether a text is written before it is ended, where the rule can.")
    max_tokens: Number = Field(None, description="Masks after the prompt.")
    stop: Stop = None


class Answer(Draw):
    """What completions and chats have in common."""

    n: Annotated[int | None, Field(ge=1, le=1024)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    unmask: Extension | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    response_format: Annotated[Choice | PlainText, Field(discriminator="type")] | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    user: Nothing = None

    @property
    def events(self) -> bool:
        """Whether the stream should report every evaluation."""
        options, own = self.stream_options, self.unmask
        return bool((options and options.include_unmask) or (own and own.events))


class CompletionBody(Answer):
    """`POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=1024)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=1024)]
    )
    suffix: str | None = Field(None, description="Text after the answer: the gap between is filled.")
    spans: list[Annotated[list[int], Field(min_length=3, max_length=3)]] | None = Field(
        None, max_length=1024, description="Replace characters `start` to `stop` of the prompt by `n` tokens, for each."
    )
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: Off = None
    best_of: Annotated[int | None, _Only(1)] = None


class Part(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A message of a chat."""

    role: Annotated[str, Field(max_length=64)]
    content: str | list[Part]
    name: Nothing = None


class ChatBody(Answer):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Number = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: Annotated[list[Any] | None, _Only([])] = None
    tool_choice: Annotated[Any, _Only("none")] = None
    functions: Annotated[list[Any] | None, _Only([])] = None
    function_call: Annotated[Any, _Only("none")] = None
    parallel_tool_calls: Nothing = None
    modalities: Annotated[list[str] | None, _Only(["text"])] = None
    store: Off = None
    metadata: Nothing = None
    service_tier: Annotated[str | None, _Only("auto", "default")] = None
    reasoning_effort: Nothing = None


class UnmaskBody(Draw):
    """`POST /v1/unmask`."""

    prompt: str | None = Field(None, description="A text that is continued.")
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096, description="Instead: a chat.")
    text: str | None = Field(None, description="Instead: a text with gaps, `[MASK:n]`; or a Sudoku, `.` where empty.")
