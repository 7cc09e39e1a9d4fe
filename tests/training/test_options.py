import pytest

import startsparse as ss
from startsparse.training import models, optim, options


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("model", models.names()),
        ("method", ss.methods.names("attach")),
        ("source", ss.sources.names()),
        ("optimizer", sorted(optim.OPTIMIZERS)),
        ("schedule", sorted(optim.SCHEDULES)),
    ],
)
def test_defaults_of_everything_pass(section, names):
    for name in names:
        given = {"density": 0.5} if section == "method" or name in ("locked", "random") else {}
        assert options.problems(section, name, given) == []
        resolved = options.resolve(section, name, given, {})
        assert options.problems(section, name, {k: v for k, v in resolved.items() if k != "name"}) == []
        again = {k: v for k, v in resolved.items() if k != "name"}
        assert options.non_default(section, name, again, {}) == {"name": name} | given


@pytest.mark.parametrize(
    ("section", "name", "given", "says"),
    [
        ("method", "rigel", {}, "method.name: unknown method 'rigel': did you mean 'rigl'"),
        ("method", "rigl", {}, "method.density: rigl needs it"),
        (
            "method",
            "rigl",
            {"density": 0.1, "drop_fracton": 1},
            "method.drop_fracton: rigl has no such option",
        ),
        ("method", "rigl", {"density": "low"}, "method.density:"),
        ("method", "rigl", {"density": 0.1, "drop_fraction": 2}, "method.drop_fraction:"),
        ("source", "random", {"density": 0}, "source.density:"),
        ("source", "rand", {}, "source.name: unknown source 'rand': did you mean 'random'"),
        ("model", "resnet20", {"shortcut": "C"}, "model.shortcut: shortcut is 'A' or 'B'"),
        ("model", "mlp", {"widths": 3}, "model.widths: "),
        ("optimizer", "sgd", {"lr": -1}, "optimizer.lr: Invalid learning rate"),
        ("optimizer", "sgd", {"lr": True}, "optimizer.lr: "),
        ("optimizer", "sgd", {"params": []}, "optimizer.params: sgd has no such option"),
        ("optimizer", "sgd", {"nesterov": True}, "optimizer.nesterov: Nesterov"),
        ("schedule", "cosine", {"warmup": 3.5}, "schedule.warmup:"),
    ],
)
def test_mistakes_are_named_by_path(section, name, given, says):
    (line,) = options.problems(section, name, given)
    assert line.startswith(says)


def test_context_wins_over_the_signature():
    resolved = options.resolve("model", "mlp", {}, {"classes": 3, "seed": 9})
    assert resolved["classes"] == 3 and "seed" not in resolved
    assert options.non_default("model", "mlp", {"classes": 10}, {"classes": 3}) == {
        "name": "mlp",
        "classes": 10,
    }
