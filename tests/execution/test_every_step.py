"""Listeners of all optimizers come and go without disturbing a step."""

from __future__ import annotations

import gc

import torch
from torch import nn

from startsparse.execution.every_step import listen, stop_listening


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
    import weakref

    count = Count()
    _ = listen(count)
    alive = weakref.ref(count)
    del count
    _ = gc.collect()
    assert alive() is None
    step()
