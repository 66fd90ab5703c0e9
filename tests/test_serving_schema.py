"""Requests that schemathesis makes of the interface that the server describes: none of them may break it."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import serving

from unmask.rules.named import FAMILIES
from unmask.serving.limits import Limits

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def interface(models: Any) -> Any:
    """The interface of a server that takes on little at once, so that what can be answered is answered soon."""
    with serving(models, Limits(rows=16, answers=2, slow=2.0)) as server:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")


KNOWN = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 8)},
    optional={
        "model": st.sampled_from(["chat", "sudoku"]),
        "rule": st.sampled_from(
            [*(name for name, family in FAMILIES.items() if family.setting is None), "topk:k=2", None]
        ),
        "settings": st.none(),
        "n": st.integers(1, 2),
    },
)
"""Values that the interface does not tell of, so that some requests are answered."""


def asked(operation: Any, mode: GenerationMode, examples: int) -> set[int]:
    """Asks for an operation in many ways, checks the responses, and returns their statuses."""
    statuses = set()

    @settings(max_examples=examples, phases=[Phase.generate])
    @given(case=operation.as_strategy(generation_mode=mode), known=KNOWN)
    def ask(case: schemathesis.Case, known: dict[str, Any]) -> None:
        if operation.method == "post" and mode is GenerationMode.POSITIVE:
            body: Any = case.body
            case.body = {**body, **known}
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    ask()
    return statuses


@pytest.mark.parametrize("examples", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_request_that_follows_the_interface_breaks_it(interface, examples):
    operations = [found.ok() for found in interface.get_all_operations()]
    found = {one.path: asked(one, GenerationMode.POSITIVE, examples) for one in operations}
    assert any(200 in found[one.path] for one in operations if one.method == "post")


@pytest.mark.parametrize("examples", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_other_request_breaks_it_or_is_answered(interface, examples):
    operations = [found.ok() for found in interface.get_all_operations()]
    for one in operations:
        if one.method == "post":  # nothing can be done wrong with the others
            assert asked(one, GenerationMode.NEGATIVE, examples) == {400}
