"""What a request must keep to so that the engine can take it.

The engine checks this, and whoever stands in front of it may do so before: it takes no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from evenflow.core.errors import ContextLengthError, InvalidRequestError
from evenflow.core.pooling import PoolingParams
from evenflow.core.sampling import SamplingParams


@dataclass(slots=True, frozen=True)
class ModelLimits:
    """What must be known about a model to accept requests for it.

    Attributes:
        max_model_len: most tokens of prompt and output together.
        vocab_size: token ids are below this.
        eos_token_ids: tokens that end a generation unless `ignore_eos`.
        hidden_size: entries of an embedding; None for a model without numbers.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int] = field(default_factory=frozenset)
    hidden_size: int | None = None

    def check(
        self, prompt_token_ids: Sequence[int], params: SamplingParams | PoolingParams
    ) -> None:
        """Check a prompt, and what is asked for it.

        Raises:
            InvalidRequestError: the prompt is empty, or something names a token or a dimension
                that the model does not have.
            ContextLengthError: the prompt can never fit, with the numbers.
        """
        named = {"prompt": prompt_token_ids}
        if isinstance(params, SamplingParams):
            named |= {
                "stop_token_ids": params.stop_token_ids,
                "logit_bias": list(params.logit_bias),
            }
            max_prompt_tokens = self.max_model_len - 1
        else:
            max_prompt_tokens = self.max_model_len
            if self.hidden_size is not None:
                params.check_fits(self.hidden_size)
        if not prompt_token_ids:
            raise InvalidRequestError(
                "the prompt is empty", param="prompt", fix="Send at least one token"
            )
        if len(prompt_token_ids) > max_prompt_tokens:
            raise ContextLengthError(
                f"the prompt has {len(prompt_token_ids)} tokens",
                param="prompt",
                why=f"prompt and output together may have {self.max_model_len}",
                fix="Shorten the prompt or start with a larger --max-model-len",
            )
        for name, ids in named.items():
            self._check_ids(name, ids)

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        if not set(map(type, ids)) <= {int}:
            raise InvalidRequestError(
                f"{name} holds something else than token ids",
                param=name,
                why="token ids are whole numbers",
            )
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise InvalidRequestError(
                f"{name} holds a token id that the model does not have",
                param=name,
                why=f"ids go from 0 to {self.vocab_size - 1}",
            )
