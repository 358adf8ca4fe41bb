"""Ensembles: probabilities are averaged, and the weights are the best there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infinito.config.schema import TokenizerConfig
from infinito.errors import ConfigError
from infinito.evaluate.kneser_ney import KneserNey
from infinito.evaluate.mixture import Ensemble, best_weights, mixture_nats
from infinito.evaluate.perplexity import score
from infinito.evaluate.predictor import ModelPredictor
from infinito.tokenizer.tokenizer import train_tokenizer
from tests.evaluation_support import byte_tokenizer, store_of, tiny_model

TOKENIZER = byte_tokenizer()
STORE = store_of(["abababab" * 4, "cdcd" * 6], TOKENIZER)


def pair(context: int = 8) -> list[ModelPredictor | KneserNey]:
    model = ModelPredictor(tiny_model(), TOKENIZER)
    return [model, KneserNey(STORE.tokens, TOKENIZER, context)]


def test_probabilities_are_averaged_and_not_logits() -> None:
    members = pair()
    ensemble = Ensemble(members, ["a", "b"])
    ensemble.weights = np.array([0.25, 0.75])
    alone = [np.exp(-score(member, STORE).token_nll) for member in members]
    expected = -np.log(0.25 * alone[0] + 0.75 * alone[1])
    assert score(ensemble, STORE).token_nll == pytest.approx(expected)


def test_weights_are_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    members = generator.exponential(2.0, (3, 400)) + np.array([[0.0], [0.3], [3.0]])
    members[2, ::5] = np.inf  # a cache that has not seen the token
    found = best_weights(members)
    least = mixture_nats(members, found).sum()
    grid = np.linspace(0, 1, 41)
    others = [
        mixture_nats(members, np.array([a, b, 1 - a - b])).sum()
        for a in grid
        for b in grid
        if a > 0 and a + b <= 1
    ]
    assert found.sum() == pytest.approx(1)
    assert least <= min(others) + 1e-6


def test_fitted_weights_lose_no_more_than_the_best_member() -> None:
    members = pair()
    ensemble = Ensemble(members, ["a", "b"])
    equal = score(ensemble, STORE).nll_total
    alone = ensemble.fit()
    fitted = score(ensemble, STORE).nll_total
    assert alone.shape == (2, STORE.n_tokens)
    assert fitted <= min(equal, *alone.sum(axis=1)) + 1e-6


def test_members_agree_on_context_and_limits() -> None:
    members = pair(context=6)
    members.append(ModelPredictor(tiny_model(position="learned"), TOKENIZER))
    ensemble = Ensemble(members, ["a", "b", "c"])
    assert (ensemble.context, ensemble.largest_context) == (6, 8)


def test_another_tokenizer_is_refused_by_name() -> None:
    other = train_tokenizer(TokenizerConfig(kind="word"), ["some words"])
    with pytest.raises(ConfigError, match=r"run/b .* than run/a \(word of 4 and byte of 257"):
        Ensemble([pair()[0], KneserNey(np.array([1, 2]), other, 8)], ["run/a", "run/b"])


def test_what_is_not_scored_costs_nothing() -> None:
    targets = torch.full((1, 3), -100)
    assert not Ensemble(pair(), ["a", "b"]).nats(torch.ones(1, 3, dtype=torch.int64), targets).any()
