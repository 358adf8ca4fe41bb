"""Starting from what another run learnt: its weights and tokenizer, and nothing of its state."""

from __future__ import annotations

from typing import Any

from infinito.checkpoint.discover import resolve_checkpoint
from infinito.config.keys import flatten
from infinito.config.loading import config_from_plain, merged, to_plain
from infinito.config.schema import Config
from infinito.errors import CheckpointError
from infinito.load import OpenedCheckpoint, open_checkpoint
from infinito.runtime.events import note
from infinito.runtime.paths import shown


def inherited(config: Config) -> tuple[Config, OpenedCheckpoint | None]:
    """``config`` completed from the checkpoint that ``training.init_from`` names, and that.

    Keys of the model and the tokenizer that the config does not give are the checkpoint's; of
    those it gives, only dropouts may be others. Without ``init_from``: the config as it is.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit; each field is named.
    """
    if config.training.init_from is None:
        return config, None
    path = resolve_checkpoint(config.training.init_from, "best")
    opened = open_checkpoint(path)
    opened.require_trainable()
    stored = {"model": _model_of(opened.config), "tokenizer": to_plain(opened.config)["tokenizer"]}
    given = {
        name: getattr(config, name).model_dump(exclude_unset=True, exclude_none=True)
        for name in stored
    }
    known = flatten(stored) | {"tokenizer.size": opened.tokenizer.vocab_size}
    wrong = [
        f"{key}: checkpoint {known[key]}, config {value}"
        for key, value in flatten(given).items()
        if not key.endswith("dropout")
        and value not in (known[key], known["tokenizer.size"] if "vocab" in key else known[key])
    ]
    if wrong:
        raise CheckpointError(
            f"the config does not fit the weights of {path}:\n  " + "\n  ".join(wrong),
            "drop these keys: what a config does not give is taken from training.init_from",
        )
    note(f"starting from the weights and the tokenizer of {shown(path)} at step "
         f"{opened.content['step']}")  # fmt: skip
    return config_from_plain(merged(to_plain(config), merged(stored, given)), str(path)), opened


def _model_of(config: Config) -> dict[str, Any]:
    """The model section with what it leaves open named: a new run may have another default."""
    model = config.model
    learned = model.resolved_position == "learned"
    return model.model_dump() | {
        "position": model.resolved_position,
        "n_kv_heads": model.resolved_kv_heads,
        "head_width": model.d_head,
        "d_ff": model.resolved_d_ff,
        "learned_positions": (
            model.learned_positions or config.data.sequence_length if learned else None
        ),
    }
