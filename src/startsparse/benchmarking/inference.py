"""Inference latency at 95 % sparsity: truly sparse against dense torch and, where installed, onnxruntime.

python benchmarks/inference.py [--threads 2] [--seconds 5] [--json benchmarks/logs/inference.jsonl]
"""

from __future__ import annotations

import io
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import nn

import startsparse as ss
from startsparse.training import models

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
import timing
from training_steps import mlp

CASES = {"mlp 784-1024-1024-10": (mlp, (784,)), "resnet20": (lambda: models.make("resnet20"), (3, 32, 32))}


def sparse_model(make, density: float) -> nn.Module:
    """A net whose weights are zero but for a random share, run sparse."""
    model = make().eval()
    sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(density))
    _ = sparse.detach()
    _ = ss.sparsify_execution(model)
    return model


def onnx(model: nn.Module, x: torch.Tensor, threads: int):
    """A call of the dense net in onnxruntime, or None where that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), buffer, dynamo=False, input_names=["x"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    given = {"x": x.numpy()}
    return lambda: session.run(None, given)


def main() -> None:
    """Measure every net at every batch size."""
    options = timing.arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, (make, shape) in CASES.items():
        torch.manual_seed(0)
        dense, sparse = make().eval(), sparse_model(make, 0.05)
        for batch in (1, 16, 128):
            x = torch.randn(batch, *shape)
            calls = {"dense": partial(dense, x), "sparse": partial(sparse, x)}
            if (session := onnx(dense, x, options.threads)) is not None:
                calls["onnxruntime"] = session
            with torch.inference_mode():
                medians = timing.medians(calls, options.seconds, options.cold)
            row = {"net": name, "batch": batch} | {f"{key} ms": 1e3 * t for key, t in medians.items()}
            rows.append(row | {"dense / sparse": medians["dense"] / medians["sparse"]})
    timing.report(rows, options.json)


if __name__ == "__main__":
    main()
