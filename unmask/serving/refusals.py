"""What a server refuses, in the words and the form that OpenAI's clients understand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import Response

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""The type of an error by its status; any other is a `server_error`, or an `invalid_request_error` below 500."""


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: The status of the response.
        message: Why.
        param: The field that is at fault.
        headers: The headers of the response.
    """

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}

    def response(self) -> Response:
        """The response that says so."""
        return Json(self.body, self.status, self.headers)


class Json(Response):
    """A response of JSON in ASCII, so that it holds whatever text a request did."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the bytes."""
        return dumps(content)


def dumps(value: Any) -> bytes:
    """Strict JSON in ASCII; numbers that are not finite become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


@contextlib.contextmanager
def blaming(param: str, **words: str) -> Iterator[None]:
    """Turns a `ValueError` into a refusal that names a field.

    Args:
        param: The field.
        **words: Fields that are named instead if the message holds a word.
    """
    try:
        yield
    except ValueError as error:
        message = " ".join(str(error).split())
        found = next((field for word, field in words.items() if word in message), param)
        raise Refused(message, found) from None
