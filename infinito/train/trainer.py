"""A run as an object: build it from a config, step it, evaluate it, save it, load it.

This is the Python API beneath ``infinito train``. :mod:`infinito.train.run` drives it.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infinito.checkpoint.format import write_checkpoint
from infinito.checkpoint.record import library_versions
from infinito.checkpoint.structure import FORMAT, FORMAT_VERSION, check_shapes
from infinito.config.loading import to_plain
from infinito.config.schema import Config
from infinito.config.training_config import TrainingConfig
from infinito.data.cache import Cache
from infinito.data.order import SequenceOrder
from infinito.data.prepare import Dataset, prepare
from infinito.data.token_store import why_bits_lead
from infinito.distributed.ranks import first_goes_ahead
from infinito.distributed.strategy import all_finite, distribute, gathered, unsharded
from infinito.errors import CheckpointError, DataError, DivergedError
from infinito.evaluate.causality import check_causality
from infinito.evaluate.perplexity import Score, bits_per_byte, score, windows_a_pass
from infinito.evaluate.predictor import SharedPredictor
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.kernels.fusion import COMPILED, Plan
from infinito.load import (
    OpenedCheckpoint,
    build_model,
    load_weights,
    open_checkpoint,
    parameter_shapes,
)
from infinito.model.attention import head_lambdas
from infinito.model.count import count_parameters
from infinito.model.language_model import LanguageModel
from infinito.model.roles import Role, declared_parameters
from infinito.optim.average import Average
from infinito.optim.optimizers import Optimizers
from infinito.optim.schedule import learning_rate_factor
from infinito.runtime.memory import peak_memory_mb
from infinito.runtime.precision import autocast
from infinito.runtime.random import random_state, seed_everything, set_random_state
from infinito.tokenizer.tokenizer import Tokenizer
from infinito.train.automatic import require_memory, resolve
from infinito.train.compilation import compile_blocks
from infinito.train.fitting import fit_step
from infinito.train.initial import inherited
from infinito.train.progress import OTHER_CHECKPOINT, Progress, require_agreement
from infinito.train.speed import Speed
from infinito.train.step import StepResult, accumulate_gradients, training_step

_SAMPLING = SamplingConfig(max_new_tokens=40)
_BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Evaluation:
    """A validation: its score, whether its loss is the best so far, and lambda of each head."""

    score: Score
    is_best: bool
    lambdas: list[list[float]]


class Trainer:
    """Model, optimizers, data order, random streams and counters of one run.

    A config that comes with its data is resolved (:func:`infinito.train.automatic.resolve`);
    without data, both are made here.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset | None = None,
        weights: dict[str, Tensor] | None = None,
        trainable: Role | None = None,
    ) -> None:
        """Build the run; it starts from ``weights`` where they are given.

        Only parameters of the role ``trainable`` are trained (None: all), the rest is frozen.
        """
        if dataset is None:
            config, origin = inherited(config)
            config, weights = resolve(config), origin.weights() if origin else weights
            dataset = prepare(config, tokenizer=origin.tokenizer if origin else None)
        training, length = config.training, config.data.sequence_length
        assert "auto" not in (config.device, training.precision, training.fusion), (
            "resolve it first"
        )
        self.config, self.dataset = config, dataset
        self.device = torch.device(config.device)
        require_memory(config, dataset.tokenizer.vocab_size, frozen=trainable is not None)
        seed_everything(config.seed)
        self.model = self._built_model(weights, trainable)
        with self._arithmetic():
            check_causality(self.model)
            check_causality(self.model, training=True)
        self.forward = distribute(
            self.model, self.model.blocks, ["token_losses"], config.distributed.strategy
        )
        self.optimizers = Optimizers(self.model, training)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=training.precision == "float16"
        )
        self.average = Average(self.model, training.ema_decay) if training.ema_decay else None
        self.order = SequenceOrder(dataset.splits["train"], length, config.seed)
        self.progress = Progress()
        self.speed = Speed()
        self.last_learning_rate = 0.0
        if training.fusion in COMPILED:
            compile_blocks(self.model, self._probe_compiled)

    def _built_model(
        self, weights: dict[str, Tensor] | None, trainable: Role | None
    ) -> LanguageModel:
        model, training = build_model(self.config, self.tokenizer.vocab_size), self.config.training
        if weights is not None:
            load_weights(model, weights)
        if trainable is not None:
            for _, parameter, role in declared_parameters(model):
                parameter.requires_grad_(role is trainable)
        model.to(self.device)
        model.checkpoint_activations = training.activation_checkpointing
        model.use(Plan.from_text(training.fusion_plan))
        return model

    # -- the algorithm ------------------------------------------------------------------------

    def train_step(self) -> StepResult:
        """Take the next step of the run."""
        training, progress = self.config.training, self.progress
        start = time.monotonic()
        self.model.train()
        self.last_learning_rate = self.learning_rate
        self.optimizers.set_learning_rate(self.learning_rate_factor)
        try:
            result = training_step(
                self.forward, self.optimizers, self.scaler, self._next_sequences(),
                training.batch_size, training.precision, training.max_grad_norm,
            )  # fmt: skip
        except DivergedError as error:
            place = f"step {progress.step + 1}, lr {self.last_learning_rate:g}"
            raise DivergedError(f"{place}: {error.message}", error.remedy) from None
        progress.add(result, training.sequences_per_step)
        if self.average is not None:
            self.average.update(self.model, progress.step)
        self.speed.add(time.monotonic() - start, result.targets)
        return result

    def validate(self) -> Evaluation | None:
        """Score the validation split (averaged weights where they exist); None without one."""
        store = self.dataset.splits.get("valid")
        if store is None:
            return None
        length = self.config.data.sequence_length
        with self._evaluation_weights(), self._arithmetic():
            result = score(
                SharedPredictor(self.model, self.tokenizer), store, context=length, stride=length,
                batch_size=max(self.config.training.batch_size, windows_a_pass(length)),
            )  # fmt: skip
        figures = {"valid_loss": result.loss, "valid_word_perplexity": result.word_perplexity}
        is_best = self.progress.add_evaluation({"step": self.progress.step, **figures})
        with self._evaluation_weights(), unsharded(self.model):
            return Evaluation(result, is_best, head_lambdas(self.model))

    def sample(self) -> str | None:
        """``training.sample_prompt`` and how the model goes on; None without a prompt.

        It draws from a stream of its own, always the same: training goes on as without it.
        It computes in float32, as ``generate`` does, and so by the compiled step.
        """
        prompt = self.config.training.sample_prompt
        if prompt is None:
            return None
        ids = self.tokenizer.encode(prompt)
        with self._evaluation_weights(), unsharded(self.model):
            [written] = generate(self.model, self.tokenizer, ids, _SAMPLING)
        return prompt + written.text

    def probe(self) -> None:
        """Run the first batch forward and backward without an effect, to meet its memory need."""
        state = random_state(self.config.device)
        self._probe()
        set_random_state(state, self.config.device)

    def performance_report(self) -> dict[str, Any]:
        """Speed without the first steps, peak memory, parameters by part, model size by dtype."""
        model = self.model
        parts = count_parameters(model.config, model.vocab_size, model.max_positions)
        return {
            "steps": self.progress.step,
            "tokens": self.progress.tokens,
            "tokens_per_second": self.speed.tokens_per_second,
            "seconds_per_step": self.speed.seconds_per_step,
            "peak_memory_mb": peak_memory_mb(self.config.device),
            "parameters": {**asdict(parts), "total": parts.total, "active": parts.active},
            "model_bytes": {name: parts.total * size for name, size in _BYTES_PER_NUMBER.items()},
            "device": str(self.device),
            "precision": self.precision,
        }

    # -- where it stands ----------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.dataset.tokenizer

    @property
    def precision(self) -> str:
        """The arithmetic of matrix products."""
        return self.config.training.precision

    @cached_property
    def bits_lead(self) -> bool:
        """Whether bits per byte say more of the validation text than its word perplexity."""
        store, source = self.dataset.splits.get("valid"), self.config.data.resolved_source
        return store is not None and bool(why_bits_lead(store, self.tokenizer, source))

    def bits_per_byte(self, loss: float) -> float:
        """Of the validation text at ``loss`` nats a token."""
        store = self.dataset.splits["valid"]
        return bits_per_byte(loss * store.n_tokens, store.n_bytes)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, those taken included; max_steps wins over epochs."""
        return self.total_steps_of(self.config.training)

    def total_steps_of(self, training: TrainingConfig) -> int:
        """Steps of the whole run, had it gone on from here under ``training``."""
        if training.max_steps is not None:
            return training.max_steps
        wanted = max(1, round(training.epochs * self.order.sequences_per_epoch))
        remaining = max(0, wanted - self.progress.sequences)
        return self.progress.step + math.ceil(remaining / training.sequences_per_step)

    @property
    def epoch(self) -> float:
        """Passes over the training text so far."""
        return self.progress.sequences / self.order.sequences_per_epoch

    @property
    def learning_rate_factor(self) -> float:
        """Factor of the next update."""
        return learning_rate_factor(self.progress.step, self.total_steps, self.config.training)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the AdamW groups in the next update."""
        return self.config.training.learning_rate * self.learning_rate_factor

    @property
    def finished(self) -> bool:
        """Whether no step is left to take."""
        losses = [evaluation["valid_loss"] for evaluation in self.progress.evaluations]
        done = self.progress.step >= self.total_steps
        return done or self.config.training.out_of_patience(losses)

    # -- saving and loading -------------------------------------------------------------------

    def state(self, gather: bool = True) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain data (the checkpoint's content).

        With shards all processes call it: the first gets the tensors; without ``gather`` each its.
        """
        weights = {name: gathered(p.detach(), gather) for name, p in self.model.named_parameters()}
        if not all_finite(weights.values()):
            raise DivergedError(f"the weights after step {self.progress.step} are not finite")
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **self.progress.to_plain(),
            "epoch": self.epoch,
            "config": to_plain(self.config),
            "tokenizer": self.tokenizer.to_json(),
            "vocab_size": self.model.vocab_size,
            "data": dict(self.dataset.text_sha256),
            "model": weights,
            "average": dict(self.average.weights) if self.average else None,
            "optimizers": {
                name: {field: gathered(tensor, gather) for field, tensor in fields.items()}
                for name, fields in self.optimizers.state().items()
            },
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "random": random_state(self.config.device),
            "versions": library_versions(),
        }

    def load_state(self, content: dict[str, Any]) -> None:
        """Continue from ``content``; the random streams come last, when all else is built.

        Raises:
            CheckpointError: Something in it does not fit this run, or makes no sense.
        """
        try:
            self._load_state(content)
        except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            # The file verified, so whoever wrote it wrote this: a stranger's content, not damage.
            raise CheckpointError(
                f"the checkpoint's state makes no sense ({type(error).__name__}: {error})",
                OTHER_CHECKPOINT,
            ) from error

    def _load_state(self, content: dict[str, Any]) -> None:
        load_weights(self.model, content["model"])
        self.optimizers.load_state(content["optimizers"])
        self.progress = Progress.from_plain(content)
        if content["scaler"] is not None and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            # An average that starts on resume starts from the weights as they are.
            weights = content["average"] or content["model"]
            check_shapes(weights, parameter_shapes(self.model))
            for name, weight in weights.items():
                self.average.weights[name].copy_(weight)
        if content["config"]["seed"] == self.config.seed:
            set_random_state(content["random"], self.config.device)

    def save(self, path: str | Path) -> None:
        """Write a self-contained checkpoint to ``path``."""
        write_checkpoint(Path(path), self.state())

    @classmethod
    def load(cls, path: str | Path) -> Trainer:
        """Rebuild a run from its checkpoint alone; its text must be where it was."""
        opened = open_checkpoint(path)
        return cls.from_checkpoint(opened, resolve(opened.config))

    @classmethod
    def from_checkpoint(
        cls,
        opened: OpenedCheckpoint,
        config: Config,
        allow_data_change: bool = False,
        cache: Cache | None = None,
    ) -> Trainer:
        """A run rebuilt from a checkpoint under a resolved config, its own or one changed."""
        content = opened.content
        if not content["optimizers"]:  # an export, or an import
            raise CheckpointError(
                f"{opened.path} holds no state of training: such a run cannot be trained further",
                "resume what it was made from"
                + ", or start anew: --set training.init_from=FILE" * (not opened.int8_names),
            )
        with first_goes_ahead():
            dataset = prepare(config, tokenizer=opened.tokenizer, cache=cache)
        known, found = content["data"], dataset.text_sha256
        changed = sorted(s for s in known | found if known.get(s) != found.get(s))
        if changed and not allow_data_change:
            raise DataError(
                f"the {' and '.join(changed)} text is not what this run was trained on",
                "restore the file, or accept the change with --allow-data-change",
            )
        if config.training.sequences_per_step != opened.config.training.sequences_per_step:
            config = fit_step(config, dataset)
        trainer = cls(config, dataset)
        trainer.load_state(content)
        derived = {"vocab_size": trainer.model.vocab_size, "best": trainer.progress.best}
        require_agreement(content, derived if changed else {**derived, "epoch": trainer.epoch})
        return trainer

    # -- inner --------------------------------------------------------------------------------

    def _next_sequences(self) -> torch.Tensor:
        count = self.config.training.sequences_per_step
        return self.order.batch(self.progress.sequences, count).to(self.device)

    def _probe(self) -> None:
        self.model.train()
        size = self.config.training.batch_size
        sequences = self._next_sequences()[:size]
        accumulate_gradients(self.forward, self.scaler, sequences, size, self.precision)
        self.optimizers.zero_grad()

    def _probe_compiled(self) -> None:
        """A step, and the self-test in its shape, since another would be compiled for itself."""
        self.probe()
        length, rows = self.config.data.sequence_length, self.config.training.batch_size
        with unsharded(self.model), self._arithmetic():
            check_causality(self.model, length, rows=rows, training=True)

    def _arithmetic(self) -> AbstractContextManager[None]:
        return autocast(self.precision, self.device.type)

    def _evaluation_weights(self) -> AbstractContextManager[None]:
        return self.average.swapped_into(self.model) if self.average else nullcontext()
