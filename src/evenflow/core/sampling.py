"""How a request wants its tokens chosen. Names and defaults are OpenAI's and vLLM's."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field

from evenflow.core.errors import InvalidRequestError
from evenflow.core.structured import StructuredOutput

MAX_LOGPROBS = 20

MAX_STOP_STRINGS = 64
"""Most stop strings; each of them is looked for after every token."""

MAX_STOP_CHARS = 1024
"""Most characters of a stop string."""

MAX_LISTED_TOKENS = 4096
"""Most token ids in stop_token_ids, and in logit_bias."""

_MAX_COUNT = 2**31 - 1
"""No count is higher: it fits whatever integers it is put into."""


@dataclass(slots=True, frozen=True, kw_only=True)
class SamplingParams:
    """Everything that decides which tokens a request gets and when it stops.

    Attributes:
        n: number of completions for the prompt.
        max_tokens: most tokens to generate; None means up to the model's context length.
        min_tokens: no stop id, stop string or end token ends the request before this many tokens.
        temperature: 0 is greedy; higher is more random.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches top_p.
        min_p: drop tokens less likely than min_p times the likeliest.
        repetition_penalty: divides (or multiplies, when negative) logits of tokens seen in prompt
            or output; 1 is off.
        presence_penalty: subtracted once from the logit of a token already in the output.
        frequency_penalty: subtracted for each time a token occurs in the output.
        logit_bias: added to the logits of the given token ids.
        stop: strings that end the request; they are not part of the text.
        stop_token_ids: token ids that end the request.
        include_stop_str_in_output: keep the stop string in the text.
        ignore_eos: do not stop at the model's end tokens.
        seed: makes sampled tokens reproducible; None derives one from the request id.
        logprobs: log-probabilities of this many likeliest tokens per output token; 0 gives the
            sampled token's only; None gives none.
        prompt_logprobs: the same for each prompt token.
        skip_special_tokens: leave special tokens out of the text.
        structured: the form that the text must have. That form alone then decides where the text
            may end: stop, stop_token_ids, min_tokens and ignore_eos have no effect, and the
            request ends as soon as nothing may follow. Only max_tokens can cut the text off.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured: StructuredOutput | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple):
                raise InvalidRequestError(
                    f"{name} must be a list", param=name, why=f"it is {values!r}"
                )
            object.__setattr__(self, name, tuple(values))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        self._check_switches()
        self._check_counts()
        self._check_stops()
        self._check_ranges()
        self._check_logit_bias()
        if not isinstance(self.structured, StructuredOutput | None):
            raise InvalidRequestError(
                "structured must be a StructuredOutput",
                param="structured",
                why=f"it is {self.structured!r}",
            )

    def _check_switches(self) -> None:
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(
                    f"{name} must be true or false",
                    param=name,
                    why=f"it is {getattr(self, name)!r}",
                )

    def _check_counts(self) -> None:
        _require_int("n", self.n, 1, 128)
        if self.max_tokens is not None:
            _require_int("max_tokens", self.max_tokens, 1)
        _require_int("min_tokens", self.min_tokens, 0, self.max_tokens or _MAX_COUNT)
        _require_int("top_k", self.top_k, 0)
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None:
                _require_int(name, count, 0, MAX_LOGPROBS)
        if self.seed is not None:
            _require_int("seed", self.seed, -(2**63), 2**64 - 1)

    def _check_stops(self) -> None:
        _require_few("stop_token_ids", self.stop_token_ids, MAX_LISTED_TOKENS)
        for token_id in self.stop_token_ids:
            _require_int("stop_token_ids", token_id, 0)
        _require_few("stop", self.stop, MAX_STOP_STRINGS)
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
                raise InvalidRequestError(
                    f"stop must hold strings of 1 to {MAX_STOP_CHARS} characters",
                    param="stop",
                    why=f"one is {text!r}",
                )

    def _check_ranges(self) -> None:
        _require_real("temperature", self.temperature, 0.0, 100.0)
        _require_real("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidRequestError(
                "top_p must be above 0",
                param="top_p",
                why="an empty set of tokens cannot be sampled",
                fix="Use temperature=0 for greedy decoding",
            )
        _require_real("min_p", self.min_p, 0.0, 1.0)
        _require_real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _require_real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _require_real("repetition_penalty", self.repetition_penalty, 0.01, 100.0)

    def _check_logit_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidRequestError(
                "logit_bias must map token ids to numbers",
                param="logit_bias",
                why=f"it is {self.logit_bias!r}",
            )
        _require_few("logit_bias", self.logit_bias, MAX_LISTED_TOKENS)
        for token_id, bias in self.logit_bias.items():
            _require_int("logit_bias", token_id, 0)
            _require_real("logit_bias", bias, -100.0, 100.0)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether the choice depends on tokens that came before."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _require_int(name: str, value: object, low: int, high: int = _MAX_COUNT) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequestError(
            f"{name} must be a whole number from {low} to {high}",
            param=name,
            why=f"it is {value!r}",
        )


def _require_few(name: str, values: Sized, limit: int) -> None:
    if len(values) > limit:
        raise InvalidRequestError(
            f"{name} has {len(values)} entries", param=name, why=f"the limit is {limit}"
        )


def _require_real(name: str, value: object, low: float, high: float) -> None:
    in_range = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and low <= value <= high  # never true of NaN
    )
    if not in_range:
        raise InvalidRequestError(
            f"{name} must be a number from {low:g} to {high:g}", param=name, why=f"it is {value!r}"
        )
