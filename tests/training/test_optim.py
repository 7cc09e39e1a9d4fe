import math

import pytest
import torch
from torch import nn

from startsparse.training import optim


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_optimizer_steps_by_name(name):
    layer = nn.Linear(3, 2, bias=False)
    optimizer = optim.make(name, layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, layer.weight)


@pytest.mark.parametrize(
    ("name", "says"), [("sgdd", "did you mean 'sgd'"), ("lbfgs", "closure"), ("sparseadam", "sparse layout")]
)
def test_names_that_do_not_work_say_why(name, says):
    with pytest.raises(ValueError, match=says):
        optim.optimizer_class(name)


def factors(name, total=100, **options):
    schedule = optim.schedule(name, **options)
    return [schedule.factor(step, total) for step in range(total)]


def test_shapes():
    assert factors("constant") == [1.0] * 100
    assert factors("linear", final=0.5)[50] == 0.75
    assert factors("cosine")[50] == pytest.approx(0.5)
    assert factors("cosine", final=0.1)[99] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    steps = factors("multistep", at=[0.5, 0.75], gamma=0.1)
    assert [steps[i] for i in (49, 50, 74, 75)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert [factors("step", every=0.25, gamma=0.5)[i] for i in (24, 25, 99)] == [1, 0.5, 0.125]


@pytest.mark.parametrize("warmup", [10, 0.1])
def test_warmup_in_steps_and_shares(warmup):
    values = factors("cosine", warmup=warmup)
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10] == 1.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {"warmup": -1}),
        ("cosine", {"warmup": 1.5}),
        ("cosine", {"warmup": True}),
        ("multistep", {"at": [0.5, 2]}),
        ("step", {"every": 0}),
    ],
)
def test_bad_options(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        optim.schedule(name, **options)


def test_learning_rate_keeps_the_ratio_of_groups():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.01}], lr=0.1)
    rate = optim.LearningRate(optimizer, optim.schedule("linear"), 10)
    assert rate.set(5) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
    other = optim.LearningRate(optimizer, optim.schedule("cosine"), 10)
    with pytest.raises(ValueError, match=r"learning rate differs in schedule: Linear.*now Cosine"):
        other.load_state_dict(rate.state_dict())
