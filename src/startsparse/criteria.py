"""Signals -> scores: one number a weight, higher = keep (or: grow first). Pure, elementwise, in float32 or better."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """abs(weight). Han et al. 2015, https://arxiv.org/abs/1506.02626"""
    return exact(weight).abs()


def gradient(gradient: Tensor) -> Tensor:
    """abs(dense gradient of the effective weight). Evci et al. 2020, https://arxiv.org/abs/1911.11134"""
    return exact(gradient).abs()


def saliency(weight: Tensor, gradient: Tensor) -> Tensor:
    """abs(weight * gradient), the loss' first-order change when the weight goes (SNIP).

    References:
        Lee et al., SNIP, ICLR 2019, section 4, https://arxiv.org/abs/1810.02340
    """
    return (exact(weight) * exact(gradient)).abs()


def exact(signal: Tensor) -> Tensor:
    """A signal as it is ranked. Half precision has too few distinct values to rank by: rank in float32."""
    return signal if signal.dtype in (torch.float32, torch.float64) or signal.is_complex() else signal.float()
