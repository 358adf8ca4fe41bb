"""Models that no stock architecture describes, for ``transformers``: import this, then load.

    import infinito.hf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("folder")  # of infinito export --to hf

Importing it registers the classes below with the Auto classes; no code of the folder is run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infinito.config.model_config import ModelConfig
from infinito.errors import ConfigError
from infinito.model.transformer import Transformer

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationMixin,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise ConfigError(
        f"infinito.hf needs transformers: {error}", 'pip install "infinito[export]"'
    ) from error


class InfinitoConfig(PretrainedConfig):
    """The config of a folder: ``shape`` is our model section, checked by our schema."""

    model_type = "infinito"

    def __init__(
        self,
        shape: dict[str, Any] | None = None,
        vocab_size: int = 257,
        max_position_embeddings: int = 256,
        **rest: Any,
    ) -> None:
        """Take a model section; its sizes appear under the names that the library looks for."""
        checked = ModelConfig.model_validate(shape or {})
        self.shape = checked.model_dump()
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_size = checked.d_model
        self.num_hidden_layers = checked.n_layers
        self.num_attention_heads = checked.n_heads
        super().__init__(**{**rest, "tie_word_embeddings": False})


class InfinitoForCausalLM(PreTrainedModel, GenerationMixin):
    """Our :class:`Transformer` behind the library's interface.

    Generation encodes the whole text for each token: right, and slow for long ones.
    """

    config_class = InfinitoConfig
    base_model_prefix = "transformer"

    def __init__(self, config: InfinitoConfig) -> None:
        """An untrained model of the config's shape."""
        super().__init__(config)
        shape = ModelConfig.model_validate(config.shape)
        self.transformer = Transformer(shape, config.vocab_size, config.max_position_embeddings)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: Any) -> None:
        """Nothing: our layers draw their own weights."""

    def get_input_embeddings(self) -> Any:
        """The token table."""
        return self.transformer.embedding

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Everything read so far, at every token."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Logits (B, T, V) of ids (B, T), and the mean loss of ``labels`` where they are given.

        Raises ValueError for texts padded on the left, whose positions would be wrong.
        """
        if attention_mask is not None and not bool(attention_mask[:, 0].all()):
            raise ValueError("pad on the right, or generate texts of different length one by one")
        logits = self.transformer.logits(self.transformer.hidden(input_ids))
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits)


AutoConfig.register("infinito", InfinitoConfig)
AutoModelForCausalLM.register(InfinitoConfig, InfinitoForCausalLM)
AutoTokenizer.register(InfinitoConfig, fast_tokenizer_class=PreTrainedTokenizerFast)
