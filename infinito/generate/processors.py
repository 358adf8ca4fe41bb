"""Logits processors: pure functions from logits (B, V) float32 on the CPU to logits.

A token that may not be chosen has -inf, and every function leaves at least one token of a row
that had one. The order in which they are applied, and their semantics, are those of Hugging Face
``transformers``: repetition penalty, no-repeat-n-gram, forbidden text, then (when sampling)
temperature, top-k, top-p, min-p. Temperature 0 and "off" values are the caller's business.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from infinito.generate.sampling_config import SamplingConfig

_NEVER = float("-inf")
_FLOAT32 = torch.finfo(torch.float32)


def _within_float32(value: float) -> float:
    """A positive number that float32 holds as neither 0 nor infinity."""
    return min(max(value, _FLOAT32.tiny), _FLOAT32.max)


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the ids of ``seen`` (B, V) bool less likely, once each (CTRL, Keskar et al. 2019).

    The paper divides, which rewards negative logits; like the rest of the world we multiply those.
    """
    penalty = _within_float32(penalty)
    places = seen.nonzero(as_tuple=True)
    values = logits[places]
    penalised = torch.where(values < 0, values * penalty, values / penalty)
    # A huge penalty may not become -inf: if every token was seen, nothing would be left.
    penalised.clamp_(_FLOAT32.min, _FLOAT32.max)
    return logits.index_put(places, torch.where(values > _NEVER, penalised, values))


def forbid(logits: Tensor, forbidden: Tensor) -> Tensor:
    """Exclude the tokens of ``forbidden`` (B, V) bool."""
    return logits.masked_fill(forbidden, _NEVER)


def no_repeat_ngram(logits: Tensor, banned: Sequence[Collection[int]]) -> Tensor:
    """Exclude ids of each row, unless that would leave the row without any token."""
    result = logits.clone()
    for row, ids in enumerate(banned):
        if not ids:
            continue
        result[row, list(ids)] = _NEVER
        if result[row].max() == _NEVER:
            result[row] = logits[row]
    return result


def temperature(logits: Tensor, value: float) -> Tensor:
    """Logits / value; the largest of a row becomes 0, so that no value can overflow."""
    return (logits - logits.amax(dim=-1, keepdim=True)) / _within_float32(value)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest (all, if the vocabulary is smaller) and whatever ties with the k-th."""
    smallest_kept = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest_kept, _NEVER)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens with mass >= p, never none (Holtzman 2019).

    Among equals the lower id goes first. p = 0 keeps one token.
    """
    ids, values = _candidates(logits)
    probabilities = torch.softmax(values.double(), dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= p
    dropped[:, 0] = False
    return logits.scatter(-1, ids, values.masked_fill(dropped, _NEVER))


def _candidates(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and logits (B, n), descending, of all possible tokens; ties by id.

    After top-k only a few of the vocabulary are possible; sorting those alone is what makes
    nucleus sampling cheap.
    """
    possible = int((logits > _NEVER).sum(dim=-1).max())
    ids = logits.topk(possible, dim=-1, sorted=False).indices.sort(dim=-1).values
    values, order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), values


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keep tokens at least ``share`` times as likely as the likeliest (Nguyen et al. 2024)."""
    probabilities = torch.softmax(logits, dim=-1)
    threshold = share * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < threshold, _NEVER)


def warp(logits: Tensor, config: SamplingConfig) -> Tensor:
    """The processors that only sampling has, in order; those that are off are skipped."""
    logits = temperature(logits, config.temperature)
    if config.top_k > 0:
        logits = top_k(logits, config.top_k)
    return nucleus(logits, config)


def nucleus(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Top-p and min-p, those that are on."""
    if config.top_p < 1:
        logits = top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = min_p(logits, config.min_p)
    return logits


def sample(logits: Tensor, config: SamplingConfig, uniforms: Sequence[float]) -> Tensor:
    """As :func:`draw` of :func:`warp`, at the cost of the top-k alone where they are few."""
    k = config.top_k
    if 0 < k < logits.shape[-1]:
        values, ids = logits.topk(k + 1, dim=-1)
        values = temperature(values, config.temperature)
        # What ties with the k-th is kept as well: then, or with fewer tokens left, the long way.
        if not bool((values[:, k - 1] == values[:, k]).any()):
            ids, order = ids[:, :k].sort(dim=-1)
            kept = nucleus(values.gather(-1, order), config)
            return ids.gather(-1, draw(kept, uniforms)[:, None])[:, 0]
    return draw(warp(logits, config), uniforms)


def draw(logits: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Ids (B,): each row's inverse distribution function at its number in [0, 1), in float64."""
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    point = torch.tensor(uniforms, dtype=torch.float64)[:, None] * total
    # Rounded up to the total, a point would lie behind the last token.
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0]
