"""Inference latency: truly sparse against dense torch and, where installed, onnxruntime."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

import startsparse as ss

from .nets import Net, nets
from .timing import Options, Row, measure


def rows(options: Options) -> Iterator[Row]:
    """One row for each net, sparsity and batch: milliseconds of each, and dense over sparse."""
    for name, net in nets(options.sizes, options.quick).items():
        for sparsity in options.sparsities or (0.95,):
            torch.manual_seed(0)
            dense, sparse = net.make().eval(), sparse_net(net, sparsity)
            for batch in options.batches or (1, 16, 128):
                x = torch.randn(batch, *net.shape)
                calls: dict[str, Callable[[], object]] = {
                    "dense": partial(dense, x),
                    "sparse": partial(sparse, x),
                }
                if session := onnx(dense, x):
                    calls["onnxruntime"] = session
                with torch.inference_mode():
                    times = measure(calls, options)
                row: Row = {"net": name, "sparsity": sparsity, "batch": batch}
                row |= {f"{key} ms": 1e3 * taken for key, taken in times.seconds.items()}
                ratio = times.seconds["dense"] / times.seconds["sparse"]
                yield row | {"dense / sparse": ratio, "dropped": times.dropped}


def sparse_net(net: Net, sparsity: float) -> nn.Module:
    """The net with weights that are zero but for a random share, run sparse."""
    model = net.make().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _ = ss.attach(model, optimizer, ss.Static(1 - sparsity)).detach()
    _ = ss.sparsify_execution(model)
    return model


def onnx(model: nn.Module, x: Tensor) -> Callable[[], object] | None:
    """A call of the dense net in onnxruntime, or None where that is not installed."""
    if not (find_spec("onnxruntime") and find_spec("onnx")):
        return None
    import onnxruntime  # type: ignore[import-not-found]

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), buffer, dynamo=False, input_names=["x"])  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    given = {"x": x.numpy()}
    return lambda: session.run(None, given)
