import pytest
import torch

from startsparse.training import build, recipe

RAW = {
    "data": {"name": "digits", "batch_size": 32},
    "model": "lenet-300-100",
    "method": {"name": "rigl", "density": 0.1, "update_interval": 20},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"epochs": 3},
}


def test_steps_of_a_run():
    assert build.total_steps(recipe.parse(RAW), 1293) == 3 * 40
    assert build.total_steps(recipe.parse(RAW | {"train": {"epochs": 3, "accumulate": 7}}), 1293) == 3 * 5
    assert build.total_steps(recipe.parse(RAW | {"train": {"steps": 11}}), 1293) == 11


def test_plan_and_run_agree():
    chosen = recipe.parse(RAW)
    bench = build.bench_of(chosen)
    plan = build.plan_of(chosen)
    assert plan.num_final == bench.sparsifier.target_count == round(0.1 * 50_200)
    assert bench.job.settings.total_steps == 120
    assert plan.flops.batch == 32 and plan.flops.dense_training == 6 * 50_200
    with pytest.raises(ValueError, match="nothing to plan"):
        build.plan_of(recipe.parse(RAW | {"method": None}))


def test_plan_and_run_agree_about_the_execution():
    chosen = recipe.parse(RAW | {"train": {"epochs": 3, "execution": "auto"}})
    bench, plan = build.bench_of(chosen), build.plan_of(chosen)
    decided = {name: choice.execution for name, choice in bench.sparsifier.execution.items()}
    assert {row.name: row.execution for row in plan.layers} == decided
    assert set(decided.values()) == {"masked", "sparse"}, "fc3 is dense under ERK"
    assert plan.reasons.keys() == decided.keys() and "density" in plan.reasons["fc1.weight"]
    masked = build.plan_of(recipe.parse(RAW))
    assert plan.flops == masked.flops and plan.warnings == masked.warnings
    assert [row.inference_flops for row in plan.layers] == [row.inference_flops for row in masked.layers]


def test_the_seed_decides_everything():
    first, again, other = (build.bench_of(recipe.parse(RAW | {"seed": seed})) for seed in (0, 0, 1))
    for a, b, equal in ((first, again, True), (first, other, False)):
        assert torch.equal(a.job.model.fc1.weight, b.job.model.fc1.weight) is equal
        assert torch.equal(a.sparsifier.masks["fc1.weight"], b.sparsifier.masks["fc1.weight"]) is equal
        assert torch.equal(a.job.batches.get(0, 0)[1], b.job.batches.get(0, 0)[1]) is equal


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    chosen = recipe.parse(RAW | {"train": {"epochs": 1, "device": "cuda"}})
    with pytest.raises(ValueError, match=r"train\.device: cuda was asked for"):
        build.bench_of(chosen)


def test_a_method_gets_the_passes_it_declares():
    bench = build.bench_of(recipe.parse(RAW))

    class Needs:
        needs = ("data", "loss_fn", "example_input")

    passes = build.passes(Needs(), bench.job)
    inputs, labels = next(iter(passes["data"]))
    assert inputs.shape == (32, 1, 8, 8) and inputs.is_floating_point() and len(passes["data"]) == 40
    assert passes["loss_fn"](bench.job.model(inputs), labels).ndim == 0
    assert passes["example_input"].shape == (1, 1, 8, 8)
    assert build.passes(object(), bench.job) == {}
