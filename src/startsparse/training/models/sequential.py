"""A Sequential whose runs of convolution, batch norm and ReLU are one operation where they are executed sparsely."""

from __future__ import annotations

from torch import Tensor, nn

from startsparse.execution import fused


class ConvNet(nn.Sequential):
    """``nn.Sequential`` in all but speed."""

    def forward(self, input: Tensor) -> Tensor:
        """What the modules give, one after the other."""
        x, modules, i = input, list(self), 0
        while i < len(modules):
            run = _run(modules[i:])
            inside = fused.enter(x, [conv for conv, _, _ in run], [relu for _, _, relu in run]) if run else x
            y = fused.chain(inside, [(conv, norm) for conv, norm, _ in run]) if run else None
            x = modules[i](x) if y is None else fused.rows(y)
            i += 1 if y is None else 3 * len(run)
        return x


def _run(modules: list[nn.Module]) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
    """The convolutions, norms and ReLUs that modules begin with."""
    found = []
    for conv, norm, relu in zip(modules[::3], modules[1::3], modules[2::3], strict=False):
        if not (type(norm) is nn.BatchNorm2d and type(relu) is nn.ReLU):
            break
        found.append((conv, norm, relu))
    return found
