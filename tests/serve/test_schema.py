"""Every operation with values that its schema allows and some that it does not: no 500."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from tests.serve.conftest import PLANNED, Opened

ENDLESS = ("/api/v1/events", "/api/v1/jobs/{job}/events")
"""Streams, which test_events reads."""


def test_no_operation_answers_with_a_500(folder, monkeypatch):
    check_all(folder, monkeypatch, 3)


@pytest.mark.fuzz
def test_no_operation_answers_with_a_500_in_a_long_run(folder, monkeypatch):
    check_all(folder, monkeypatch, 150)


def check_all(folder, monkeypatch, examples):
    monkeypatch.setattr("iclora.serve.planning._counted", lambda told: PLANNED)
    with Opened(folder) as opened:
        schema = schemathesis.openapi.from_asgi(
            "/openapi.json", opened.app, headers={**opened.client.headers, "Host": "localhost"}
        )
        seen = []
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.path in ENDLESS:
                continue
            seen.append(operation.label)
            check_operation(operation, opened, examples)
    assert len(seen) > 30
    assert "POST /api/v1/jobs" in seen


def check_operation(operation, opened, examples):
    modes = st.one_of(
        operation.as_strategy(), operation.as_strategy(schemathesis.GenerationMode.NEGATIVE)
    )

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=modes)
    def check(case):
        headers = {"Authorization": f"Bearer {opened.token}", "Host": "localhost"}
        response = case.call(headers=headers)
        case.validate_response(response, checks=[not_a_server_error, status_code_conformance])

    check()
