"""Listeners of all optimizers come and go without disturbing a step."""

from __future__ import annotations

import gc
import threading
import weakref

import torch
from torch import nn

from startsparse.execution.every_step import listen, stop_listening
from startsparse.execution.hooks import collect_garbage


class Count:
    def __init__(self):
        self.befores = self.afters = 0

    def before(self, optimizer, args, kwargs):
        self.befores += 1

    def after(self, optimizer, args, kwargs):
        self.afters += 1


def step(hook=None):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if hook is not None:
        _ = optimizer.register_step_post_hook(hook)
    model(torch.ones(1, 2)).sum().backward()
    _ = optimizer.step()


def test_a_listener_hears_every_step_until_it_stops():
    count = Count()
    number = listen(count)
    step()
    step()
    stop_listening(number)
    stop_listening(number)
    step()
    assert (count.befores, count.afters) == (2, 2)


def test_a_listener_may_die_or_stop_in_the_middle_of_a_step():
    held = {"dies": Count(), "stops": Count(), "stays": Count()}
    numbers = {name: listen(count) for name, count in held.items()}
    stays = held["stays"]

    def hook(*_):
        held.clear()
        _ = gc.collect()
        stop_listening(numbers["stops"])
        _ = listen(newcomer)

    newcomer = Count()
    step(hook)
    step()
    assert (stays.befores, stays.afters) == (2, 2)
    assert newcomer.befores == 1


def test_nobody_is_kept_alive():
    count = Count()
    _ = listen(count)
    alive = weakref.ref(count)
    del count
    collect_garbage()
    assert alive() is None
    step()


class Knot:
    """Garbage for the collector alone."""

    def __init__(self):
        self.itself = self


def test_garbage_is_collected_while_another_thread_collects():
    """As that of pytest-xdist may: a plain ``gc.collect()`` returns at once then, and has done nothing."""
    busy, go_on = threading.Event(), threading.Event()
    held = Knot()
    weakref.finalize(held, lambda: (busy.set(), go_on.wait(10)))
    del held
    other = threading.Thread(target=gc.collect)
    other.start()
    assert busy.wait(10)
    garbage = weakref.ref(Knot())
    assert gc.collect() == 0 and garbage() is not None
    threading.Timer(0.05, go_on.set).start()
    collect_garbage()
    assert garbage() is None
    other.join()
