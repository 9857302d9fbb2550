"""Objects that are opened on first use: once, by one thread, and again after pickling."""

from __future__ import annotations

import copy
import pickle
import threading
import time

import pytest

from pyterrier_hypencoder.identity import ByArguments


class Opened(ByArguments):
    """An object that counts how often it opens something."""

    def __init__(self, name: str = "a") -> None:
        self.name = name

    def get(self, opener, key=0):
        return self._open("thing", key, opener)


def run_threads(work, count=6):
    errors = []

    def guarded():
        try:
            work()
        except Exception as err:
            errors.append(err)

    threads = [threading.Thread(target=guarded, daemon=True) for _ in range(count)]
    [thread.start() for thread in threads]
    [thread.join(10) for thread in threads]
    assert not any(thread.is_alive() for thread in threads), "a thread waits forever"
    return errors


def test_threads_open_a_thing_once():
    opened, calls, found = Opened(), [], []

    def open_slowly():
        calls.append(1)
        time.sleep(0.05)
        return object()

    assert run_threads(lambda: found.append(opened.get(open_slowly))) == []
    assert len(calls) == 1 and len(set(map(id, found))) == 1


def test_things_are_opened_again_if_their_key_changes():
    opened = Opened()
    assert [opened.get(lambda: "old"), opened.get(lambda: "new"), opened.get(lambda: "new", key=1)] == ["old", "old", "new"]


def test_openers_may_open_other_things_also_of_each_other():
    """Two objects that open things of each other, in opposite order, do not wait for each other."""
    first, second = Opened("1"), Opened("2")

    def chain(a, b):
        def outer():
            time.sleep(0.02)
            return b._open("inner", 0, lambda: "inner")

        return a._open("outer", 0, outer)

    orders = [(first, second), (second, first)] * 3
    assert run_threads(lambda: chain(*orders.pop())) == []
    assert first._open("nested", 0, lambda: first._open("nested", 1, lambda: 5)) == 5


def test_failed_opening_is_tried_again():
    opened = Opened()

    def fail():
        raise OSError("no")

    errors = run_threads(lambda: opened.get(fail))
    assert len(errors) == 6
    assert opened.get(lambda: "now") == "now"


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_equal_and_open_for_themselves(clone):
    opened = Opened("b")
    opened.get(lambda: "first")
    again = clone(opened)
    assert again == opened and hash(again) == hash(opened)
    assert again.get(lambda: "second") == "second"
    assert run_threads(lambda: again.get(lambda: "third")) == []


def test_six_threads_load_a_model_once(golden, monkeypatch):
    from pyterrier_hypencoder import Hypencoder
    from pyterrier_hypencoder.encoders import checkpoint

    model, calls, load = Hypencoder(golden / "tiny_6l_cls_shared", device="cpu"), [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *args, **options: calls.append(1) or load(*args, **options))
    assert run_threads(lambda: model.encode_docs(["planet"])) == []
    assert len(calls) == 1
