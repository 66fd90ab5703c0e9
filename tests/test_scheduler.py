"""Who is worked on next: room, turns, overtaking, and a full queue, in plain numbers."""

from __future__ import annotations

import random

import pytest

from unmask.serving.limits import Full, Limits
from unmask.serving.scheduler import Scheduler


def scheduler(**limits: float) -> Scheduler:
    return Scheduler(Limits(**limits))  # pyright: ignore[reportArgumentType]


def test_a_pass_is_its_rows_times_the_longest():
    one = scheduler(rows=3, tokens=100)
    one.submit("a", [(0, 40), (1, 40), (2, 10)], now=0.0)
    assert one.admit() == [0, 1]  # a third row would make it 120
    assert (one.waiting, one.running) == (1, {0: 40, 1: 40})
    one.finish(0, now=1.0)
    assert one.admit() == [2]
    one.submit("b", [(3, 33), (4, 5)], now=1.0)
    one.finish(1, now=2.0)
    assert one.admit() == [3, 4]
    assert one.admit() == []


def test_a_request_for_many_answers_does_not_hold_up_one_for_a_single_answer():
    one = scheduler(rows=4)
    one.submit("many", [(number, 8) for number in range(10)], now=0.0)
    assert one.admit() == [0, 1, 2, 3]
    one.submit("single", [(10, 8)], now=0.1)
    one.submit("other", [(11, 8)], now=0.2)
    one.finish(2, now=1.0)
    assert one.admit() == [10]
    one.finish(10, now=1.0)
    assert one.admit() == [11]
    one.finish(11, now=1.0)
    assert one.admit() == [4]


def test_many_single_requests_do_not_starve_a_request_for_many_answers():
    one, admitted = scheduler(rows=2), []
    one.submit("many", [(number, 8) for number in range(3)], now=0.0)
    for number in range(100, 120):
        one.submit(str(number), [(number, 8)], now=0.1)
    while one.busy:
        admitted += one.admit()
        one.finish(next(iter(one.running)), now=1.0)
    assert max(admitted.index(number) for number in range(3)) <= 6
    assert len(admitted) == 23


def test_who_does_not_fit_in_is_overtaken_only_so_often():
    one = scheduler(rows=8, tokens=100, overtaking=3)
    one.submit("short", [(0, 10)], now=0.0)
    assert one.admit() == [0]
    one.submit("long", [(1, 90)], now=0.0)
    for number in range(2, 8):
        one.submit(str(number), [(number, 10)], now=0.1)
    assert one.admit() == [2, 3, 4]
    for number in (0, 2, 3):
        one.finish(number, now=1.0)
        assert one.admit() == []  # room is left free
    one.finish(4, now=1.0)
    assert one.admit() == [1]
    one.finish(1, now=2.0)
    assert one.admit() == [5, 6, 7]


def test_a_full_queue_says_when_to_ask_again():
    one = scheduler(rows=1, queue=3)
    one.submit("a", [(0, 8)], now=0.0)
    one.admit()
    one.submit("b", [(1, 8), (2, 8)], now=0.0)
    with pytest.raises(Full, match="2 sequences are waiting") as full:
        one.submit("c", [(3, 8), (4, 8)], now=0.0)
    assert full.value.seconds == 1.0
    one.submit("c", [(3, 8)], now=0.0)
    for number, now in ((0, 10.0), (1, 40.0), (2, 70.0)):
        one.finish(number, now)
        one.admit()
    one.submit("d", [(4, 8), (5, 8), (6, 8)], now=70.0)
    with pytest.raises(Full) as full:
        one.submit("e", [(7, 8)], now=70.0)
    assert 3 < full.value.seconds <= 60  # three wait, and lately one was finished every 30 s


def test_what_could_never_be_worked_on_is_refused():
    one = scheduler(tokens=100, answers=2)
    with pytest.raises(ValueError, match="101 tokens; this server takes 100"):
        one.submit("a", [(0, 101)], now=0.0)
    with pytest.raises(ValueError, match="at most 2 answers, got 3"):
        one.submit("a", [(0, 1), (1, 1), (2, 1)], now=0.0)
    assert not one.busy


def test_a_cancelled_request_leaves_the_queue_at_once_and_its_rows_when_they_are_free():
    one = scheduler(rows=2)
    one.submit("a", [(0, 8), (1, 8), (2, 8)], now=0.0)
    one.submit("b", [(3, 8)], now=0.0)
    assert one.admit() == [0, 3]
    assert one.cancel("a") == [0]
    assert (one.waiting, one.admit()) == (0, [])
    one.finish(0, now=1.0)
    assert one.cancel("a") == one.cancel("nobody") == []
    one.submit("c", [(4, 8)], now=1.0)
    assert one.admit() == [4]


def test_time_is_over_when_the_limit_says():
    one = scheduler(seconds=10.0)
    one.submit("a", [(0, 8)], now=5.0)
    one.submit("b", [(1, 8)], now=9.0)
    assert one.expired(14.9) == []
    assert one.expired(15.0) == ["a"]


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_and_goes_everybody_has_a_turn_and_no_limit_is_broken(seed):
    draw = random.Random(seed)
    one = scheduler(rows=6, tokens=120, overtaking=4, queue=10_000)
    numbers, came, worked = 0, set(), set()
    for round in range(400):
        if round < 200:
            lengths = [draw.choice((5, 10, 20, 60, 120)) for _ in range(draw.choice((1, 1, 1, 4)))]
            sequences = list(enumerate(lengths, numbers))
            numbers += len(lengths)
            one.submit(str(round), sequences, float(round))
            came |= {number for number, _ in sequences}
        worked |= set(one.admit())
        assert len(one.running) <= 6
        assert len(one.running) * max(one.running.values(), default=0) <= 120
        for number in [number for number in one.running if draw.random() < 0.7]:
            one.finish(number, float(round))
    while one.busy:
        worked |= set(one.admit())
        for number in list(one.running):
            one.finish(number, 500.0)
    assert worked == came
    assert one.waiting == 0
