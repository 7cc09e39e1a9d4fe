"""The table and the graph that come with scikit-learn."""

from pathlib import Path

import numpy as np
import torch

from startsparse.training import data, loop, models, optim, recipe, runs, seeds
from startsparse.training.data.bundled import neighbours

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


def test_the_table_has_a_fixed_test_part():
    one, other = (data.load("breast-cancer", seed=seed) for seed in (0, 1))
    assert torch.equal(one.test.inputs, other.test.inputs) and len(one.test) == 114
    assert not torch.equal(one.validation.inputs, other.validation.inputs)
    entry = data.describe("breast-cancer")
    assert (one.input_shape, one.classes) == (entry.shape, entry.classes) == ((30,), 2)
    rows = one.normalise(one.train.inputs)
    assert rows.mean(0).abs().max() < 1e-4 and (rows.std(0) - 1).abs().max() < 1e-2


def test_the_entry_of_the_graph_is_true():
    entry, whole = data.describe("digits-graph"), data.load("digits-graph", validation=0)
    assert (len(whole.train), whole.input_shape, whole.classes) == (
        entry.examples,
        entry.shape,
        entry.classes,
    )
    assert len(whole.test) == 1797 - 400
    assert whole.train.labels.bincount().tolist() == [40] * 10
    normal = whole.normalise(torch.cat([whole.train.inputs, whole.test.inputs]))
    assert abs(float(normal.mean())) < 0.02 and abs(float(normal.std()) - 1) < 0.02


def test_neighbours_by_hand():
    points = np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [5.0, 5.0]])
    assert neighbours(points, 2).tolist() == [
        [0, 1, 2],
        [1, 0, 2],
        [2, 0, 1],
        [3, 1, 2],
    ]  # ties: the lower index


def test_twins_are_their_own_first_neighbour():
    assert neighbours(np.array([[1.0], [1.0], [1.0]]), 1).tolist() == [[0, 1], [1, 0], [2, 0]]


def test_a_node_comes_with_its_neighbours_and_theirs():
    whole = data.load("digits-graph", validation=0)
    node = whole.train.inputs
    assert torch.equal(node[:, 0, 0], node[:, 0, :][:, 0])
    far = (node[:, :1, :1].int() - node[:, 0].int()[:, None]).square().sum(-1).squeeze(1)
    assert (far.diff(dim=1) >= 0).all() and (far[:, 0] == 0).all()  # nearest first, itself before all
    assert torch.equal(node[:, :, 0], node[:, 0])  # each neighbour's first neighbour is itself


def test_the_net_computes_what_layers_on_the_whole_graph_compute():
    seeds.seed_all(0)
    model = models.make("gcn", widths=[7], input_shape=(4, 4, 5), classes=3).double()
    features = torch.randn(20, 5, dtype=torch.float64)
    near = torch.from_numpy(neighbours(features.numpy().round(1), 3))
    mean = torch.zeros(20, 20, dtype=torch.float64).scatter_(1, near, 0.25)
    first, second = model.layers
    expected = second(mean @ torch.relu(first(mean @ features)))
    torch.testing.assert_close(model(features[near[near]]), expected)


def test_the_graph_helps():
    """The same layers on the node alone know less from the same two hundred labels."""
    dataset = data.load("digits-graph", validation=0.5)
    found = {}
    for name, cut in (("graph", slice(None)), ("node", slice(1))):
        seeds.seed_all(0)
        parts = [data.Split(part.inputs[:, cut, cut], part.labels) for part in (dataset.train, dataset.test)]
        model = models.make("gcn", input_shape=parts[0].inputs.shape[1:])
        optimizer = optim.make("adam", model.parameters(), lr=0.01, weight_decay=5e-4)
        for _ in range(60):
            loss = loop.loss_of(model(dataset.normalise(parts[0].inputs)), parts[0].labels)
            optimizer.zero_grad()
            loss.backward()
            _ = optimizer.step()
        found[name] = loop.evaluate(model, dataset, parts[1])["accuracy"]
    assert found["graph"] > found["node"] + 0.01 and found["graph"] > 0.9


def test_both_recipes_train(tmp_path):
    for name, epochs, least in (("breast_cancer_static", 6, 0.9), ("digits_graph_static", 30, 0.8)):
        chosen = recipe.load(RECIPES / f"{name}.yaml", [f"train.epochs={epochs}", f"out={tmp_path}"])
        result = runs.run(chosen, progress=False)
        assert result["test_accuracy"] > least, name
        assert chosen.method is not None
        assert abs(result["density"] - chosen.method.options["density"]) < 1e-3
