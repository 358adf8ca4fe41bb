"""Attention analysis of a model: its own weights, side effects, training, table and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import infinito
from infinito.analyze import collect
from infinito.analyze.attention_report import HEADERS, AttentionReport
from infinito.analyze.collect import analyze_attention, spread_windows
from infinito.analyze.plots import attention_figure, entropy_figure, lambda_figure
from infinito.errors import ConfigError, DataError, DivergedError
from infinito.model.attention import SelfAttention
from infinito.model.transformer import Transformer
from tests import analyze_reference as twin
from tests.attention_support import ALL_KINDS
from tests.evaluation_support import tiny_model


def random_tokens(windows: int = 3, length: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(257, (windows, length), generator=generator)


def change_lambdas(model: Transformer) -> Transformer:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_lambda"):
                parameter.copy_(torch.linspace(-0.5, 0.7, len(parameter)))
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_heads": 4, "n_kv_heads": 2, "qk_norm": False},
        {"position": "alibi"},
        {"position": "learned", "attention": {"kind": "dot", "learnable_lambda": True}},
        *({"attention": {"kind": kind}, "position": "alibi"} for kind in ALL_KINDS[1:]),
        {"attention": {"kind": "l2", "learnable_lambda": False, "lambda_init": 2.5}},
        {"block": "double", "second_d_ff": 32, "attention": {"kind": "l2sq"}},
    ],
)
def test_the_weights_are_those_the_model_uses(changes: dict[str, Any]) -> None:
    model = change_lambdas(tiny_model(context=12, **changes)).eval()
    tokens = random_tokens(length=12)
    report = analyze_attention(model, tokens)
    seen: list[tuple[SelfAttention, Tensor, Tensor]] = []

    def note(module: Any, arguments: tuple[Any, ...], output: Tensor) -> None:
        seen.append((module, arguments[0], output))

    for block in model.blocks:
        block.attention.register_forward_hook(note)
    with torch.no_grad():
        model.hidden(tokens)
        assert len(seen) == len(report.example) == 2
        for example, (module, x, output) in zip(report.example, seen, strict=True):
            value = module.project(x)[2][0]
            value = value.repeat_interleave(len(example) // len(value), dim=0)
            own = module.output((example @ value).transpose(0, 1).flatten(1))
            torch.testing.assert_close(own, output[0], rtol=1e-4, atol=1e-5)
    if changes.get("attention", {}).get("learnable_lambda") is False:
        assert report.lambdas == [[2.5, 2.5]] * 2
    elif changes.get("block") == "double":  # one lambda a layer
        assert report.lambdas == [[pytest.approx(math.exp(-0.5))] * 2] * 2
    elif report.lambda_is_trained:
        assert report.lambdas[1] == pytest.approx([math.exp(-0.5), math.exp(0.7)])
    else:
        assert report.lambdas == [[1.0] * model.config.n_heads] * 2


def test_the_report_is_that_of_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """One window, all of it drawn: the twin's statistics of the drawn weights are the report's."""
    model = change_lambdas(tiny_model(context=20, attention={"kind": "l1"}))
    report = analyze_attention(model, random_tokens(1, 20))
    monkeypatch.setattr(twin, "full_weights", lambda call: call)
    for layer, example in enumerate(report.example):
        expected = twin.pattern_sums(example[None]) / 19  # type: ignore[arg-type]
        torch.testing.assert_close(report.means[layer], expected, rtol=1e-4, atol=1e-5)
    assert report.heads[3]["self_mass"] == report.statistic("self_mass")[1][1]
    assert report.n_positions == 19


def test_blocks_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model(attention={"kind": "l2"}), random_tokens(5)
    whole = analyze_attention(model, tokens)
    monkeypatch.setattr(collect, "_BATCH_TOKENS", 16)
    parts = analyze_attention(model, tokens, rows_per_block=3)
    torch.testing.assert_close(parts.means, whole.means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.example, whole.example)


def test_a_long_window_is_drawn_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model(context=140), random_tokens(2, 140)
    report = analyze_attention(model, tokens)
    assert report.example.shape == (2, 2, 128, 128)
    shorter = analyze_attention(model, tokens[:, :128])
    torch.testing.assert_close(report.example, shorter.example, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(collect, "_DRAWN_WEIGHTS", 400)
    assert analyze_attention(model, tokens).example.shape == (2, 2, 10, 10)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model(dropout=0.5).train()
    tokens = random_tokens()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    first, second = analyze_attention(model, tokens), analyze_attention(model, tokens)
    assert torch.equal(first.means, second.means)  # no dropout
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert not any(block.attention._forward_pre_hooks for block in model.blocks)
    model.eval()
    assert torch.equal(analyze_attention(model, tokens).means, first.means)


def test_compiled_blocks_are_seen_too() -> None:
    model, tokens = tiny_model().eval(), random_tokens()
    expected = analyze_attention(model, tokens)
    for block in model.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        model.hidden(tokens)  # compiled for this mode before there are hooks
    torch.testing.assert_close(analyze_attention(model, tokens).means, expected.means)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_an_untrained_model_is_nearly_uniform(kind: str) -> None:
    model = tiny_model(context=512, d_model=64, attention={"kind": kind}, position="learned")
    report = analyze_attention(model, random_tokens(2, 512))
    assert 0.9 < report.mean["normalised_entropy"] < 1.0


def previous_tokens(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random tokens, each to be answered by the one before it: one key of 128 matters."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(32, (8, 129), generator=generator)
        yield tokens[:, 1:], tokens[:, :-1]


@pytest.mark.parametrize("kind", ["dot", "l1"])
def test_training_sharpens_attention(kind: str) -> None:
    model = tiny_model(
        context=128, vocab_size=32, d_model=32, n_layers=1, n_heads=1,
        attention={"kind": kind}, position="learned",
    )  # fmt: skip
    stream = previous_tokens(seed=2)
    tokens, _ = next(stream)
    before = analyze_attention(model, tokens).mean
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(400):
        inputs, targets = next(stream)
        optimizer.zero_grad()
        (model(inputs, targets).nats / targets.numel()).backward()
        optimizer.step()
    after = analyze_attention(model, tokens).mean
    assert before["normalised_entropy"] > 0.85
    assert after["normalised_entropy"] < 0.4
    assert before["max_weight"] < 0.2
    assert after["max_weight"] > 0.6
    assert after["mean_distance"] < before["mean_distance"] / 3  # it is 1 for a perfect answer


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), DataError, "windows of 1 tokens"),
        (torch.zeros(8, dtype=torch.int64), ConfigError, r"tokens \(8,\)"),
        (torch.zeros(0, 8, dtype=torch.int64), ConfigError, r"tokens \(0, 8\)"),
        (torch.zeros(2, 8), ConfigError, "float32"),
        (torch.full((1, 8), 257), ConfigError, "257 tokens"),
        (torch.full((1, 8), -1), ConfigError, "ids from -1"),
        (torch.zeros(1, 9, dtype=torch.int64), ConfigError, "8 learned positions"),
    ],
)
def test_tokens_that_make_no_sense_are_refused(
    tokens: Tensor, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        analyze_attention(tiny_model(position="learned"), tokens)


def test_broken_weights_are_told() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].attention.query.weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match="not finite"):
        analyze_attention(model, random_tokens())


def test_windows_are_disjoint_and_spread() -> None:
    stream = np.arange(100, dtype=np.uint16)
    assert spread_windows(stream, 3, 10)[:, 0].tolist() == [0, 45, 90]
    assert spread_windows(stream, 50, 10)[:, 0].tolist() == list(range(0, 100, 10))
    assert spread_windows(stream, 1, 10).tolist() == [list(range(10))]
    assert spread_windows(stream, 4, 200).tolist() == [list(range(100))]
    for count in range(1, 12):
        windows = spread_windows(stream[:97], count, 9)
        assert windows.dtype == torch.int64
        assert windows.unique().numel() == windows.numel() == 9 * min(count, 10)


def small_report(**changes: Any) -> AttentionReport:
    return analyze_attention(tiny_model(**changes), random_tokens())


def test_the_table_has_every_head_their_mean_and_uniform_attention() -> None:
    rows = small_report(n_layers=3).rows()
    assert len(rows) == 3 * 2 + 2
    assert all(len(row) == len(HEADERS) for row in rows)
    assert rows[4][:2] == ["2", "0"]
    assert rows[-2][0] == "mean"
    assert rows[-1][:5] == ["uniform", "", *rows[-1][2:3], "1.0000", rows[-1][6]]
    average = sum(float(row[3]) for row in rows[:6]) / 6
    assert float(rows[-2][3]) == pytest.approx(average, abs=2e-4)


def test_the_pictures_show_the_report() -> None:
    report = small_report(n_layers=3, attention={"kind": "l1"})
    mosaic = attention_figure(report).axes[0].images[0].get_array()
    assert mosaic is not None
    picture = np.ma.filled(mosaic, np.nan)
    assert picture.shape == (3 * 8 + 2, 2 * 8 + 1)
    weights = report.example[1, 1].numpy()
    np.testing.assert_allclose(np.nan_to_num(picture[9:17, 9:17]), weights, atol=1e-6)
    assert np.isnan(picture[0, 1])  # ahead of the query
    numbers = [text.get_text() for text in entropy_figure(report).axes[0].texts]
    normalised = report.statistic("normalised_entropy")
    assert numbers == [f"{value:.2f}" for row in normalised for value in row]
    drawn = [line.get_ydata() for line in lambda_figure(report).axes[0].lines]
    np.testing.assert_allclose(np.array(drawn).T, report.lambdas)


def test_the_name_of_the_package_is_the_function() -> None:
    assert infinito.analyze_attention is analyze_attention
