"""Mixture of experts against a token-by-token twin; causal, dropless, even in what it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinito.attention import KINDS
from infinito.config.model_config import ModelConfig
from infinito.config.training_config import TrainingConfig
from infinito.model.experts import MixtureOfExperts, collecting, mixtures
from infinito.model.layers import FeedForward, initialise
from infinito.model.packed import packable
from infinito.model.transformer import Transformer
from infinito.optim.optimizers import Optimizers


def config_of(n_experts: int = 4, top_k: int = 2, **changes: Any) -> ModelConfig:
    moe = {"n_experts": n_experts, "top_k": top_k, **changes.pop("moe", {})}
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 48}
    return ModelConfig(**{**sizes, **changes, "moe": moe})


def layer_of(n_experts: int = 4, top_k: int = 2, **changes: Any) -> MixtureOfExperts:
    torch.manual_seed(1)
    layer = MixtureOfExperts(config_of(n_experts, top_k, **changes), 48)
    initialise(layer)
    with torch.no_grad():
        layer.router.weight.mul_(20)  # so that gates differ
    return layer


def model_of(*sizes: int, **changes: Any) -> Transformer:
    torch.manual_seed(2)
    return Transformer(config_of(*sizes, **changes), 60, 200)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def twin(layer: MixtureOfExperts, x: Tensor) -> Tensor:
    """One token after the other, each through its experts: what the definition says."""
    outputs = []
    for token in x.flatten(0, 1):
        logits = layer.router.weight @ token
        ranked = sorted(range(len(layer.experts)), key=lambda e: -float(logits[e].detach()))
        chosen = ranked[: layer.top_k]
        among = chosen if layer.top_k > 1 else ranked
        total = sum(logits[e].exp() for e in among)
        mixed = sum(logits[e].exp() / total * layer.experts[e](token) for e in chosen)
        outputs.append(mixed if layer.shared is None else mixed + layer.shared(token))
    return torch.stack(outputs).view_as(x)


@pytest.mark.parametrize("activation", ["relu2", "gelu", "swiglu"])
@pytest.mark.parametrize(
    ("n_experts", "top_k", "n_shared"), [(4, 2, 0), (5, 1, 0), (6, 3, 2), (3, 3, 0)]
)
def test_values_and_gradients_equal_those_of_the_twin(
    n_experts: int, top_k: int, n_shared: int, activation: str
) -> None:
    layer = layer_of(n_experts, top_k, moe={"n_shared": n_shared}, activation=activation)
    x, slope = torch.randn(2, 37, 32), torch.randn(2, 37, 32)
    found = []
    for way in (layer, lambda x: twin(layer, x)):
        layer.zero_grad()
        entry = x.clone().requires_grad_()
        output = way(entry)
        output.backward(slope)
        found.append({"output": output.detach(), "x": entry.grad, **gradients(layer)})
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-5, msg=name)


def test_a_layer_of_one_expert_says_what_that_expert_says_to_the_bit() -> None:
    layer = layer_of(1, 1)
    x = torch.randn(2, 40, 32)
    assert torch.equal(layer(x), layer.experts[0](x))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_expert_is_the_dense_model_to_the_bit(optimizer: str) -> None:
    tokens = torch.randint(60, (3, 20))
    found = []
    for config in (config_of(1, 1), ModelConfig(d_model=32, n_layers=2, n_heads=2, d_ff=48)):
        torch.manual_seed(3)
        model = Transformer(config, 60, 20)
        parts = Optimizers(model, TrainingConfig(optimizer=optimizer))  # type: ignore[arg-type]
        losses = []
        for _ in range(3):
            parts.zero_grad()
            loss = model(tokens, tokens).objective
            loss.backward()
            losses.append(loss.detach())
            for part in parts.parts:
                part.optimizer.step()
        found.append([*losses, *gradients(model).values(), *model.parameters()])
        assert all(type(block.feed_forward) is FeedForward for block in model.blocks)
    for ours, dense in zip(*found, strict=True):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [15, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200])
def test_no_later_token_changes_a_bit_before_it(length: int, dtype: torch.dtype) -> None:
    layer = layer_of(4, 2)
    x = torch.randn(1, length, 32)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        before = layer(x)
        for position in {1, 16, 31, 32, 33, 64, length - 1} & set(range(length)):
            changed = x.clone()
            changed[:, position:] = torch.randn(1, length - position, 32)
            assert torch.equal(layer(changed)[:, :position], before[:, :position])


def with_capacity(layer: MixtureOfExperts, x: Tensor, capacity: int) -> Tensor:
    """Twin of Switch's layer: an expert serves its likeliest tokens, as batches prioritise them."""
    flat = x.flatten(0, 1)
    gates = F.linear(flat, layer.router.weight).softmax(-1)
    best, chosen = gates.max(-1)
    output = torch.zeros_like(flat)
    for number, expert in enumerate(layer.experts):
        mine = torch.where(chosen == number, best, -1.0)
        served = mine.topk(min(capacity, len(flat))).indices
        served = served[mine[served] >= 0]
        output[served] = best[served, None] * expert(flat[served])
    return output.view_as(x)


def with_expert_choice(layer: MixtureOfExperts, x: Tensor, capacity: int) -> Tensor:
    """Twin of expert choice (Zhou et al. 2022): each expert takes the tokens that fit it best."""
    flat = x.flatten(0, 1)
    gates = F.linear(flat, layer.router.weight).softmax(-1)
    output = torch.zeros_like(flat)
    for number, expert in enumerate(layer.experts):
        best, served = gates[:, number].topk(capacity)
        output[served] += best[:, None] * expert(flat[served])
    return output.view_as(x)


@torch.no_grad()
def test_a_capacity_and_experts_that_choose_would_leak_the_future() -> None:
    """A later token takes an earlier one's place, so that its own prediction tells of it."""
    layer, generator = layer_of(4, 1), torch.Generator().manual_seed(5)
    text = torch.randn(1, 48, 32, generator=generator)
    other = text.clone()
    other[:, 40:] = 4 * text[:, :1]  # all crowd to the expert of token 0

    def leak(output: Tensor, after: Tensor) -> float:
        return float((output - after)[:, :40].abs().max())

    assert leak(with_capacity(layer, text, 8), with_capacity(layer, other, 8)) > 0.1
    assert leak(with_expert_choice(layer, text, 12), with_expert_choice(layer, other, 12)) > 0.1
    assert leak(layer(text), layer(other)) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_is_causal_and_every_chosen_expert_learns(kind: str) -> None:
    model = model_of(3, 2, attention={"kind": kind}).train()
    tokens = torch.randint(60, (2, 66))
    loss = model(tokens, tokens)
    loss.objective.backward()
    for layer, mixture in enumerate(mixtures(model)):
        assert model.blocks[layer].feed_forward is mixture
        assert bool(mixture.router.weight.grad.abs().sum() > 0)
        for load, expert in zip(
            loss.measurements["expert_load"][layer], mixture.experts, strict=True
        ):
            assert (float(load) > 0) == bool(expert.up.weight.grad.any())
            assert (float(load) > 0) == bool(expert.down.weight.grad.any())
    model.eval()
    with torch.no_grad():
        before = model.hidden(tokens)
        tokens[:, 50:] = 0
        assert torch.equal(model.hidden(tokens)[:, :50], before[:, :50])


def test_an_expert_that_nobody_chose_has_gradients_of_zero() -> None:
    layer = layer_of(4, 1)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[2, 0] = 1.0
    layer(torch.rand(1, 10, 32) + 0.1).sum().backward()
    for number, expert in enumerate(layer.experts):
        assert expert.up.weight.grad is not None
        assert bool(expert.up.weight.grad.any()) == (number == 2)


def test_auxiliary_losses_follow_their_formulas() -> None:
    layer = layer_of(4, 2).train()
    x = torch.randn(1, 30, 32)
    with collecting(layer) as routings:
        layer(x)
    (routing,) = routings
    logits = (x[0] @ layer.router.weight.t()).detach().double()
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    share = torch.zeros(4, dtype=torch.float64)
    for token in logits:
        for expert in token.argsort(descending=True)[:2]:
            share[expert] += 1 / 60
    balance = 4 * sum(share[e] * probabilities[:, e].mean() for e in range(4))
    assert routing.balance.item() == pytest.approx(30 * balance.item(), rel=1e-5)
    squares = sum(float(token.exp().sum().log() ** 2) for token in logits)
    assert routing.router_z.item() == pytest.approx(squares, rel=1e-5)
    torch.testing.assert_close(routing.load.double(), 30 * share, rtol=1e-6, atol=0)
    entropy = float(-(probabilities * probabilities.log()).sum())
    assert routing.entropy.item() == pytest.approx(entropy, rel=1e-5)
    layer.eval()
    with collecting(layer) as routings:
        layer(x)
    assert routings == []


def test_an_even_router_costs_one_weight_a_layer() -> None:
    model = model_of(4, 2, moe={"balance_weight": 0.5, "z_weight": 0.0}).train()
    with torch.no_grad():
        for mixture in mixtures(model):
            mixture.router.weight.zero_()
    tokens = torch.randint(60, (2, 20))
    loss = model(tokens, tokens)
    assert loss.auxiliary["balance"].item() == pytest.approx(0.5 * 2 * 40, rel=1e-6)
    assert loss.auxiliary["router_z"].item() == 0.0
    assert (loss.objective - loss.nats).item() == pytest.approx(40.0, rel=1e-4)


def test_recomputing_blocks_changes_no_gradient_and_counts_nothing_twice() -> None:
    tokens, found = torch.randint(60, (2, 33)), []
    for recompute in (False, True):
        model = model_of(4, 2).train()
        model.checkpoint_activations = recompute
        loss = model(tokens, tokens)
        loss.objective.backward()
        assert loss.measurements["expert_load"].sum(1).tolist() == pytest.approx([66, 66])
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_muon_takes_each_expert_as_a_matrix_and_leaves_the_router() -> None:
    model = model_of(4, 2)
    muon, adamw = Optimizers(model, TrainingConfig(optimizer="muon")).parts
    experts = [name for name in muon.parameters if ".experts." in name]
    assert len(experts) == 2 * 4 * 2
    assert [name for name in adamw.parameters if "router" in name] == [
        f"blocks.{layer}.feed_forward.router.weight" for layer in range(2)
    ]


def test_the_router_stays_exact_in_an_export() -> None:
    names = packable(model_of(4, 2))
    assert "blocks.0.feed_forward.experts.3.down.weight" in names
    assert not [name for name in names if "router" in name]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_nothing(kind: str) -> None:
    model = model_of(4, 2, moe={"n_shared": 1}, attention={"kind": kind}).eval()
    tokens = torch.randint(60, (2, 40))
    cache = model.new_cache(2, 40)
    parts = [model.hidden(part, cache) for part in tokens.split([20, *[1] * 20], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model.hidden(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_grouped_products_equal_those_of_each_expert(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The road of a GPU, by torch's own grouped product of the CPU."""
    layer, found = layer_of(5, 2, activation=activation, moe={"n_shared": 1}), []
    x, slope = torch.randn(2, 37, 32), torch.randn(2, 37, 32)
    for grouped in (False, True):
        monkeypatch.setattr(layer, "_can_group", lambda _, grouped=grouped: grouped)
        layer.zero_grad()
        entry = x.clone().requires_grad_()
        output = layer(entry)
        output.backward(slope)
        found.append({"output": output.detach(), "x": entry.grad, **gradients(layer)})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-5, msg=name)
