import gc
import time

from paperworks.analysis.timing import alternate


def test_works_take_turns_and_the_order_turns_around():
    calls: list[str] = []
    works = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = alternate(works, rounds=2, warmup=0, least=0.0)
    assert calls == [*"abc", *"abc", *"cba"]  # the first three set the repeats
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_short_work_is_repeated_within_a_timing():
    calls: list[int] = []
    alternate({"a": lambda: (calls.append(0), time.sleep(0.001))}, rounds=1, warmup=1, least=0.1)
    assert len(calls) > 3


def test_garbage_collection_is_switched_on_again():
    alternate({"a": lambda: None}, rounds=1, warmup=0, least=0.0)
    assert gc.isenabled()
