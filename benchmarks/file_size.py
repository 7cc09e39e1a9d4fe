"""Claim: bytes of the compact file over the dense float32 safetensors file of the same net, at 95 % sparsity.

    python benchmarks/file_size.py            # sizes against their bars; exit status 1 if one is missed
    python benchmarks/file_size.py --speed    # and seconds to save and load a net of 25 million weights

Every file is read back and compared with the net before its size counts. "searched" masks are those of SET
after a few updates: as random as drawn ones, and no seed is known for them, the hardest case for a code.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import startsparse as ss
from startsparse.artifact import load, save
from startsparse.training.models.resnet import resnet20

BARS = {  # net, masks known by seed -> most bytes over dense
    ("ResNet-20", False): 0.075,
    ("ResNet-20", True): 0.065,
    ("4 x Linear(1024)", False): 0.065,
    ("4 x Linear(1024)", True): 0.053,
}


def mlp(width: int = 1024, depth: int = 4) -> nn.Module:
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])


NETS = {"ResNet-20": lambda: resnet20("B"), "4 x Linear(1024)": mlp}


def attach(model: nn.Module, distribution: str, drawn: bool) -> ss.Sparsifier:
    """A sparsifier with drawn masks, or with masks that moved in every sparse layer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if drawn:
        return ss.attach(model, optimizer, ss.Static(density=0.05, distribution=distribution, seed=1))
    method = ss.SET(density=0.05, distribution=distribution, seed=1, update_interval=1, update_end=1.0)
    sparse = ss.attach(model, optimizer, method, total_steps=4)
    for _ in range(2):  # SET drops by magnitude and grows at random: any gradient will do
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return sparse


def sizes(model: nn.Module, distribution: str, drawn: bool, folder: Path) -> tuple[int, int]:
    """Bytes of the dense and of the compact file."""
    dense, compact = folder / "dense.safetensors", folder / "net.sparse.safetensors"
    sparse = attach(model, distribution, drawn)
    save_file(model.state_dict(), dense)
    save(sparse, compact)
    back = load(compact)
    assert all(torch.equal(value, back[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(mask, back.masks[name]) for name, mask in sparse.masks.items())
    assert bool(back.drawn) == drawn
    return dense.stat().st_size, compact.stat().st_size


def speed(folder: Path) -> None:
    model = mlp(2500, 4)
    sparse = attach(model, "uniform", drawn=True)
    for what, thing in (("drawn", sparse), ("searched", model)):
        start = time.perf_counter()
        save(thing, folder / "large")
        middle = time.perf_counter()
        load(folder / "large")
        end = time.perf_counter()
        print(f"25.0M weights, {what:8}: save {middle - start:.2f} s, load {end - middle:.2f} s")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speed", action="store_true", help="also time a net of 25 million weights")
    arguments = parser.parse_args()
    missed = 0
    print(f"{'net':18}{'masks':10}{'ratios':10}{'dense':>12}{'compact':>12}{'over dense':>12}{'bar':>8}")
    with tempfile.TemporaryDirectory() as name:
        for (net, drawn), bar in BARS.items():
            for distribution in ("uniform", "erk", "balanced"):
                torch.manual_seed(0)
                before, after = sizes(NETS[net](), distribution, drawn, Path(name))
                missed += after > bar * before
                masks = "drawn" if drawn else "searched"
                shares = f"{after / before:>12.2%}{bar:>8.1%}"
                print(f"{net:18}{masks:10}{distribution:10}{before:>12,}{after:>12,}{shares}")
        if arguments.speed:
            speed(Path(name))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
