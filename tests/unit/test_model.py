"""The transformer against slow plain twins, in all its shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from infinito.config.model_config import AttentionConfig, ModelConfig
from infinito.model.transformer import Transformer

SHAPES: list[dict[str, object]] = [
    {},
    {"position": "alibi"},
    {"position": "learned", "n_kv_heads": 2, "activation": "swiglu"},
    {"activation": "gelu", "tie_embeddings": False, "qk_norm": False, "n_kv_heads": 1},
    {"attention": AttentionConfig(kind="l1")},
    {"attention": AttentionConfig(kind="l2", lambda_init=0.5), "n_kv_heads": 2},
    {"attention": AttentionConfig(kind="l2sq", learnable_lambda=False)},
    {"attention": AttentionConfig(kind="cosine", backend="chunked"), "position": "learned"},
    {"attention": AttentionConfig(kind="dot", learnable_lambda=True)},
]


def build(**options: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(d_model=64, n_layers=2, **options), 300, 32).eval()  # type: ignore[arg-type]


def predict(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    return model.logits(model.hidden(tokens))


@pytest.mark.parametrize("options", SHAPES)
def test_cached_decoding_equals_the_full_pass(options: dict[str, object]) -> None:
    model = build(**options)
    tokens = torch.randint(0, 300, (2, 32))
    cache = model.new_cache(2, 32)
    pieces = [tokens[:, :10], tokens[:, 10:13], *tokens[:, 13:].split(1, dim=1)]
    cached = torch.cat([model.logits(model.hidden(piece, cache)) for piece in pieces], dim=1)
    torch.testing.assert_close(cached, predict(model, tokens), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("options", SHAPES)
def test_a_token_changes_nothing_before_it(options: dict[str, object]) -> None:
    model = build(**options)
    tokens = torch.randint(0, 300, (1, 32))
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 300
    before, after = predict(model, tokens), predict(model, changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


@pytest.mark.parametrize("options", SHAPES)
def test_loss_and_gradients_equal_plain_cross_entropy(options: dict[str, object]) -> None:
    model = build(**options)
    tokens, targets = torch.randint(0, 300, (2, 3, 32)).unbind()
    targets[0, :5] = -100
    parameters = list(model.parameters())
    plain = F.cross_entropy(
        predict(model, tokens).flatten(0, 1), targets.flatten(), reduction="sum"
    )
    expected = torch.autograd.grad(plain, parameters)
    loss = model(tokens, targets).nats
    torch.testing.assert_close(loss, plain)
    for ours, theirs in zip(torch.autograd.grad(loss * 0.5, parameters), expected, strict=True):
        torch.testing.assert_close(ours, theirs * 0.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.token_losses(tokens, targets).sum(), plain.detach())


def test_activation_checkpointing_changes_no_bit_even_with_dropout() -> None:
    model = build(dropout=0.2).train()
    tokens, targets = torch.randint(0, 300, (2, 2, 32)).unbind()
    gradients = []
    for checkpointing in (False, True):
        model.checkpoint_activations = checkpointing
        torch.manual_seed(5)
        loss = model(tokens, targets).nats
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_rope_scores_depend_on_relative_position_only() -> None:
    model = build()
    attention = model.blocks[0].attention
    x = torch.randn(1, 1, 16)
    from infinito.kernels.plain import rotate

    def score(query_at: int, key_at: int) -> torch.Tensor:
        rotary = attention.rotary
        query = rotate(x[None], *rotary.rows(query_at, query_at + 1, x.device))
        key = rotate(x[None].flip(-1), *rotary.rows(key_at, key_at + 1, x.device))
        return (query * key).sum()

    torch.testing.assert_close(score(7, 2), score(27, 22), atol=1e-4, rtol=1e-4)
    assert abs(score(7, 2) - score(7, 3)) > 1e-3


def test_parameters_of_a_tied_model_have_one_embedding() -> None:
    tied, untied = build(), build(tie_embeddings=False)
    difference = sum(p.numel() for p in untied.parameters()) - sum(
        p.numel() for p in tied.parameters()
    )
    assert difference == 300 * 64


def test_bfloat16_autocast_stays_near_float32() -> None:
    model = build()
    tokens, targets = torch.randint(0, 300, (2, 2, 32)).unbind()
    exact = model(tokens, targets).nats
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(tokens, targets).nats
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=5e-3, atol=0)


@pytest.mark.parametrize("kind", ["l1", "l2", "l2sq", "cosine"])
def test_lambda_is_positive_trained_and_one_a_head(kind: str) -> None:
    model = build(attention=AttentionConfig(kind=kind, lambda_init=0.7))  # type: ignore[arg-type]
    attention = model.blocks[1].attention
    assert attention.log_lambda.shape == (4,)
    torch.testing.assert_close(attention.lam.detach(), torch.full((4,), 0.7))
    tokens, targets = torch.randint(0, 300, (2, 3, 32)).unbind()
    model(tokens, targets).nats.backward()
    assert attention.log_lambda.grad.abs().min() > 0


def test_a_fixed_lambda_changes_the_logits_and_is_no_parameter() -> None:
    def logits(value: float) -> torch.Tensor:
        options = AttentionConfig(kind="l2", learnable_lambda=False, lambda_init=value)
        model = build(attention=options)
        assert not any("lambda" in name for name, _ in model.named_parameters())
        return predict(model, torch.arange(32)[None])

    assert not torch.allclose(logits(1.0), logits(3.0))


def test_l1_takes_alibi_and_refuses_rotation() -> None:
    options = AttentionConfig(kind="l1")
    assert ModelConfig(attention=options).resolved_position == "alibi"
    with pytest.raises(ValueError, match="rope cannot go with attention kind l1"):
        ModelConfig(attention=options, position="rope")


@pytest.mark.parametrize("kind", ["dot", "l1", "l2sq"])
def test_attention_dropout_follows_the_seed(kind: str) -> None:
    model = build(attention=AttentionConfig(kind=kind), attention_dropout=0.5).train()  # type: ignore[arg-type]
    tokens = torch.arange(32)[None]

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return predict(model, tokens)

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    assert torch.equal(predict(model.eval(), tokens), predict(model, tokens))
