"""When dispatch rests, and when a run gives up."""

from __future__ import annotations

import time

import pytest

from qiaoban.teacher.breaker import Breaker


def fail(breaker: Breaker, *keys: str) -> list[float]:
    return [breaker.failed(key) for key in keys]


def after_window(breaker: Breaker) -> None:
    time.sleep(breaker.window + 0.01)


def small(**more: float) -> Breaker:
    return Breaker(window=0.05, least=3, rest=1, longest_rest=3, **more)  # type: ignore[arg-type]


def test_many_failures_within_seconds_prove_nothing() -> None:
    breaker = Breaker()
    assert not any(fail(breaker, *(f"call {n}" for n in range(500))))


def test_enough_distinct_failures_over_a_window_make_it_rest() -> None:
    breaker = small()
    assert not any(fail(breaker, "a", "b"))
    after_window(breaker)
    assert fail(breaker, "c") == [1]
    assert not any(fail(breaker, "d", "e", "f")), "a new window has begun"


def test_one_request_that_fails_again_and_again_does_not_make_it_rest() -> None:
    breaker = small()
    fail(breaker, *["a"] * 50, "b")
    after_window(breaker)
    assert fail(breaker, "a") == [0]


def test_it_goes_on_while_more_are_answered_than_fail() -> None:
    breaker = small()
    fail(breaker, "a", "b", "c")
    for _ in range(5):
        breaker.succeeded()
    after_window(breaker)
    assert fail(breaker, "d") == [0]


def test_failures_of_a_window_that_ended_well_are_forgotten() -> None:
    breaker = small()
    fail(breaker, "a", "b", "c")
    after_window(breaker)
    breaker.succeeded()
    assert not any(fail(breaker, "d"))
    after_window(breaker)
    assert fail(breaker, "e") == [0]


def test_rests_double_up_to_the_longest_and_an_answer_resets_them() -> None:
    breaker, rests = small(), []
    for n in range(4):
        fail(breaker, "a", "b")
        after_window(breaker)
        rests += fail(breaker, "c")
        if n == 2:
            breaker.succeeded()
    assert rests == [1, 2, 3, 1]


def test_an_address_that_never_spoke_is_given_up_early() -> None:
    breaker = Breaker(first_patience=0.05, patience=60)
    assert not breaker.hopeless(there=False)
    time.sleep(0.06)
    assert breaker.hopeless(there=False)
    assert not breaker.hopeless(there=True), "an endpoint that says 503 is there"
    breaker.succeeded()
    assert not breaker.hopeless(there=False)
    time.sleep(0.06)
    assert not breaker.hopeless(there=False), "it answered once: the long patience counts"


@pytest.mark.parametrize("there", [True, False])
def test_an_endpoint_that_stopped_answering_is_given_up_late(there: bool) -> None:
    breaker = Breaker(first_patience=0, patience=0.05)
    breaker.succeeded()
    assert not breaker.hopeless(there=there)
    time.sleep(0.06)
    assert breaker.hopeless(there=there)
    breaker.succeeded()
    assert not breaker.hopeless(there=there)


def test_it_knows_whether_anything_was_answered_since() -> None:
    breaker = Breaker()
    before = time.monotonic()
    assert not breaker.answered_since(before - 60), "nothing was ever answered"
    breaker.succeeded()
    assert breaker.answered_since(before)
    time.sleep(0.01)
    assert not breaker.answered_since(time.monotonic())
