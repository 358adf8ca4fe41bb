"""Tasks of lm-evaluation-harness on our checkpoints (extra ``eval``); imported where asked for.

A text stands after one eos, as every document did in training. Contexts and continuations are
split, and long texts rolled over, by the library's own rules (``lm_eval/api/model.py``,
``lm_eval/utils.py``), so its results on the exported model are ours.
"""

from __future__ import annotations

import contextlib
import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infinito.errors import ConfigError, DataError
from infinito.evaluate.perplexity import windows_a_pass
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.load import LoadedModel
from infinito.runtime.events import progress

try:
    from lm_eval import __version__ as library_version
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ConfigError(
        f"--tasks needs lm-evaluation-harness 0.4.13 or newer: {error}",
        'pip install "infinito[eval]"',
    ) from error

Pairs = list[tuple[Any, list[int], list[int]]]


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A checkpoint as the library sees a model: of the longest context that it was trained with."""

    def __init__(self, loaded: LoadedModel, batch_size: int | None = None) -> None:
        super().__init__()
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._batch_size = batch_size or windows_a_pass(loaded.model.max_positions)

    @property
    def eot_token_id(self) -> int:
        """What stands before and after a document."""
        return self._tokenizer.eos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, after an eos unless that is unwanted."""
        start = [] if add_special_tokens is False else [self.eot_token_id]
        return start + self._tokenizer.encode(string)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood (nats) of whole texts, each after one eos, in rolling windows."""
        totals = [0.0] * len(requests)
        pairs, owners = Pairs(), list[int]()
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(
                ids, self.eot_token_id, self._model.max_positions, 1
            ):
                pairs.append((None, *make_disjoint_window(window)))
                owners.append(number)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(pairs), strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations, greedy unless a task samples; the context's beginning is left out."""
        texts = []
        with progress(len(requests), "generating", "texts") as advance:
            for context, options in (request.args for request in requests):
                wanted = normalize_gen_kwargs(options)
                length = wanted["max_gen_toks"]
                room = max(1, self._model.max_positions - length - 1)
                config = SamplingConfig(
                    max_new_tokens=length, temperature=wanted.get("temperature", 0.0),
                    top_k=wanted.get("top_k", 0), top_p=wanted.get("top_p", 1.0),
                    repetition_penalty=wanted.get("repetition_penalty", 1.0),
                    stop=tuple(filter(None, wanted["until"])),
                )  # fmt: skip
                ids = self._tokenizer.encode(context)[-room:]
                texts.append(generate(self._model, self._tokenizer, ids, config)[0].text)
                advance(1)
        return texts

    def _loglikelihood_tokens(self, requests: Pairs, **_: Any) -> list[tuple[float, bool]]:
        """(nats, whether it is greedy) of continuations; the longest first, the result in order."""
        limit = self._model.max_positions
        if any(len(continuation) > limit for _, _, continuation in requests):
            raise DataError(
                f"a task scores a text of more than {limit} tokens at once, this model's context",
                "take other tasks, or a model that was trained with longer sequences",
            )
        order = sorted(range(len(requests)), key=lambda n: -len(requests[n][1] + requests[n][2]))
        found: dict[int, tuple[float, bool]] = {}
        with torch.no_grad(), progress(len(order), "evaluating", "texts") as advance:
            for first in range(0, len(order), self._batch_size):
                group = order[first : first + self._batch_size]
                rows = [(requests[n][1] + requests[n][2])[-limit - 1 :]
                        for n in group]  # fmt: skip
                inputs = torch.zeros(len(rows), len(rows[0]) - 1, dtype=torch.int64)
                for target, row in zip(inputs, rows, strict=True):
                    target[: len(row) - 1] = torch.tensor(row[:-1])
                hidden = self._model.hidden(inputs.to(self._model.device))
                for number, row, states in zip(group, rows, hidden, strict=True):
                    count = len(requests[number][2])
                    logits = self._model.logits(states[len(row) - 1 - count : len(row) - 1]).cpu()
                    scored = torch.tensor(row[-count:])
                    nats = logits.log_softmax(-1).gather(1, scored[:, None]).double().sum()
                    found[number] = float(nats), bool((logits.argmax(-1) == scored).all())
                advance(len(group))
        return [found[number] for number in range(len(requests))]


def run_tasks(
    loaded: LoadedModel, tasks: Sequence[str], batch_size: int | None = None
) -> dict[str, Any]:
    """Results of the library's tasks, by name or as YAML files; plain data.

    Raises:
        ConfigError: a task is not known.
        DataError: its text cannot be had.
    """
    manager, wanted = TaskManager(), list[Any]()
    for task in tasks:
        files = glob.glob(task) if task.endswith(".yaml") else []
        found = [load_yaml(Path(file), resolve_func=True) for file in sorted(files)]
        found = found or manager.match_tasks([task])
        if not found:
            raise ConfigError(
                f"--tasks {task}: lm-eval {library_version} has no such task",
                "lm-eval ls tasks lists their names; a task of yours is a .yaml file",
            )
        wanted += found
    with contextlib.redirect_stdout(sys.stderr):  # the library prints there too
        try:
            results = simple_evaluate(
                HarnessModel(loaded, batch_size), tasks=wanted, task_manager=manager,
                log_samples=False, bootstrap_iters=1000,
            )  # fmt: skip
        except OSError as error:
            raise DataError(
                f"the text of --tasks {','.join(tasks)} cannot be had: {error}",
                "go online once, or give a task over a local file",
            ) from error
    figures = {
        name: {key.removesuffix(",none"): value for key, value in row.items() if "," in key}
        for name, row in results["results"].items()
    }
    return {
        "checkpoint": str(loaded.path), "step": loaded.step, "lm_eval": library_version,
        "tasks": figures,
    }  # fmt: skip
