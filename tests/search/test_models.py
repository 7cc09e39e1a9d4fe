"""Searches over real architectures: our GPT and ViT, and models of transformers where it is installed; 2:4 and 50 %."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.layouts import parse
from startsparse.training import models

from .nets import copies, same_bits

HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
SCOPES = {
    "2:4": ss.JackpotNM(restriction="none", gap=1e-4),
    "half": ss.JackpotReleased(0.5, distribution="uniform", scope="row", gap=1e-4),
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def searched(
    model: nn.Module, scope: str, inputs: dict[str, Any], layers: Any = None
) -> tuple[ss.Search, dict]:
    """A few steps that also ask the dense net; all else stays as it was, bit for bit."""
    before = copies(model)
    search = ss.search(model, SCOPES[scope], total_steps=3, layers=layers)
    optimizer = torch.optim.Adam(search.scores(), lr=0.01)
    distill = ss.Distillation(search)
    for _ in range(3):
        outputs = model(**inputs)
        logits = getattr(outputs, "logits", outputs)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, -2), torch.zeros(len(logits.flatten(0, -2))).long()
        )
        distill(loss, outputs, **inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert search.num_active == search.target_count
    assert search.num_swaps > 0
    masks = search.finish()
    for name, parameter in model.named_parameters():
        expected = torch.where(masks[name], before[name], 0) if name in masks else before[name]
        assert same_bits(parameter.detach(), expected)
    for mask in masks.values():
        assert int(mask.sum()) == mask.numel() // 2
        assert scope != "2:4" or parse("2:4").legal(mask)
    return search, masks


@pytest.mark.parametrize("scope", SCOPES)
def test_gpt(scope):
    """Embeddings are no layer, the head is left out; every projection is searched."""
    torch.manual_seed(0)
    model = models.make("gpt", input_shape=(8,), classes=20, width=16, depth=2, heads=2)
    tokens = torch.randint(20, (4, 8))
    search, masks = searched(model, scope, {_first_argument(model): tokens})
    linear = [f"{n}.weight" for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(masks) == sorted(linear[:-1])
    assert linear[-1] in search.report().excluded


@pytest.mark.parametrize("scope", SCOPES)
def test_vit(scope):
    torch.manual_seed(0)
    model = models.make("vit-tiny", input_shape=(3, 16, 16), classes=5)
    _, masks = searched(model, scope, {_first_argument(model): torch.randn(4, 3, 16, 16)})
    linear = [f"{n}.weight" for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(masks) == sorted(linear[:-1])


def _first_argument(model: nn.Module) -> str:
    return next(iter(inspect.signature(model.forward).parameters))


def test_all_layers_that_do_not_divide_are_named_at_once():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 4), nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match=r"0\.weight of shape \(8, 6\), 2\.weight .*layers=\['!0\.weight', '!2\.weight'\]"
    ):
        ss.search(model, ss.JackpotNM())
    with pytest.raises(ValueError, match=r"'!0\.weight', '!2\.weight'"):
        ss.search(model, ss.MaskLLM(), total_steps=3)


@pytest.mark.parametrize("method", [ss.JackpotNM(), ss.MaskLLM(), SCOPES["half"]])
def test_weights_that_have_their_inputs_first_are_not_grouped(method):
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    with pytest.raises(ValueError, match=r"0\.weight has its inputs first"):
        ss.search(model, method, total_steps=3)
    assert ss.search(model, ss.Jackpot(0.5), total_steps=3).restore() is model


needs_transformers = pytest.mark.skipif(
    not HAS_TRANSFORMERS, reason="transformers is not installed: its models were not searched"
)


@needs_transformers
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("tied", [False, True])
def test_llama_of_transformers(scope, tied):
    """Grouped queries; the head is left out, whether it is tied to the embedding or not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=tied))
    search, masks = searched(model, scope, {"input_ids": torch.randint(64, (4, 8))})
    assert len(masks) == 14 and all(".layers." in name for name in masks)
    assert ("lm_head.weight" in search.report().excluded) != tied


@needs_transformers
@pytest.mark.parametrize("scope", SCOPES)
def test_fused_queries_keys_and_values_of_transformers(scope):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL))
    _, masks = searched(model, scope, {"input_ids": torch.randint(64, (4, 8))})
    assert masks["gpt_neox.layers.0.attention.query_key_value.weight"].shape == (96, 32)


@needs_transformers
def test_conv1d_of_transformers_is_searched_by_layer_alone():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=64, n_positions=8, bos_token_id=1, eos_token_id=2
    )
    model = GPT2LMHeadModel(config)
    with pytest.raises(ValueError, match="Conv1D of transformers"):
        ss.search(model, ss.JackpotNM(), layers="transformer.h.*")
    search = ss.search(model, ss.JackpotReleased(0.5), layers="transformer.h.*")
    assert search.density == 0.5 and len(search.masks) == 4
    search.restore()
