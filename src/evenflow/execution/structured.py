"""Grammars over tokens: which tokens may come next so that the whole text has the asked form.

Knows: llguidance, the bytes of every token.
Does not know: logits, requests, how text becomes tokens.

Invariants:
    A token is allowed exactly when its bytes can be continued to a text of the grammar, however
    the tokeniser would have cut that text. End tokens are allowed exactly where the text is whole.
    Special tokens are allowed only where the grammar names them.
    Nothing a specification says crashes the process or occupies it for more than some seconds.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import GenerationError, InvalidRequestError, UnsupportedModelError
from evenflow.core.structured import StructuredOutput

if TYPE_CHECKING:
    import llguidance

_STACK_BYTES = 256 << 20
"""Stack to compile on: llguidance descends some kilobytes per rule, through as many rules as fit
into a specification. Only what is touched of it takes memory."""

_MAX_RULES = 256
_RULE = re.compile(r"^[ \t?!]*[A-Za-z_]", re.MULTILINE)

_NUM_CACHED_GRAMMARS = 64

_WHITESPACE = r"\n?[ \t]{0,32}"
"""What may stand between the tokens of JSON. Bounded, or a model that writes one blank after the
other would never come to an end."""

_ROOT = '%llguidance {"no_forcing": true}\nstart: @main'
"""Makes masks allow every cut of a text into tokens, not only the tokeniser's own, which would
have to call the tokeniser from inside llguidance."""


class LlguidanceGrammar:
    """A `TokenGrammar` by llguidance.

    Args:
        matcher: at the place where this one begins.
        vocab_size: tokens of the model.
    """

    __slots__ = ("_matcher", "vocab_size")

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self.vocab_size = vocab_size

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        """Set the bits of the tokens that may come next; the GIL is free meanwhile."""
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():
            raise GenerationError("the grammar cannot go on", why=_reason(self._matcher))

    def accept(self, token_id: int) -> bool:
        """Go on by a token; return False if it may not come here."""
        return self._matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def fork(self) -> LlguidanceGrammar:
        """Return one that goes on from here by itself."""
        return LlguidanceGrammar(self._matcher.deep_copy(), self.vocab_size)


class GrammarCompiler:
    """Turns specifications into grammars over one vocabulary. Safe to call from several threads.

    The vocabulary is read when the first grammar is asked for, since that takes up to a second.

    Args:
        token_bytes: called with an id below `num_tokens`, returns what the token adds to a text.
        num_tokens: tokens of the tokeniser.
        vocab_size: tokens of the model; those beyond `num_tokens` are never allowed.
        special_ids: tokens that stand for no text.
        end_ids: tokens that end a generation.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        num_tokens: int,
        vocab_size: int,
        special_ids: frozenset[int],
        end_ids: frozenset[int],
    ) -> None:
        self._token_bytes = token_bytes
        self._num_tokens = min(num_tokens, vocab_size)
        self._vocab_size = vocab_size
        self._end_ids = sorted(token for token in end_ids if token < vocab_size)
        self._special_ids = sorted(token for token in special_ids | end_ids if token < vocab_size)
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._grammars: dict[StructuredOutput, LlguidanceGrammar] = {}

    def compile(self, structured: StructuredOutput) -> LlguidanceGrammar:
        """Return the grammar of a specification, at its beginning. Fork it before it is used.

        Takes about a millisecond, at worst a second or two, most of it without the GIL.

        Raises:
            InvalidRequestError: it is wrong, too complex, or nothing can satisfy it.
        """
        grammar = self._grammars.get(structured)
        if grammar is None:
            with self._lock:
                grammar = self._on_deep_stack(structured)
                if len(self._grammars) >= _NUM_CACHED_GRAMMARS:
                    del self._grammars[next(iter(self._grammars))]
                self._grammars[structured] = grammar
        return grammar

    def _on_deep_stack(self, structured: StructuredOutput) -> LlguidanceGrammar:
        usual_bytes = threading.stack_size(_STACK_BYTES)
        try:
            with ThreadPoolExecutor(1) as thread:
                compiling = thread.submit(self._compile, structured)
                threading.stack_size(usual_bytes)
                return compiling.result()
        finally:
            threading.stack_size(usual_bytes)

    def _compile(self, structured: StructuredOutput) -> LlguidanceGrammar:
        llguidance = _import_llguidance(structured)
        if self._tokenizer is None:
            self._tokenizer = self._build_tokenizer()
        root = {"lark_grammar": _ROOT}
        try:
            main = {"name": "main"} | _definition(structured)
            matcher = llguidance.LLMatcher(
                self._tokenizer,
                json.dumps({"grammars": [root, main]}),
                log_level=0,
                limits=llguidance.LLParserLimits(
                    initial_lexer_fuel=300_000,
                    step_max_items=20_000,
                    step_lexer_fuel=100_000,
                    max_lexer_states=50_000,
                    max_grammar_size=100_000,
                    verbose_errors=False,
                ),
            )
        except (ValueError, RecursionError) as error:
            raise structured.refusal(str(error)) from error
        if matcher.is_error():
            raise structured.refusal(_reason(matcher))
        # The first mask shows whether anything satisfies it and whether it is too complex, and it
        # builds the states that all forks begin with.
        grammar = LlguidanceGrammar(matcher, self._vocab_size)
        row = np.empty((self._vocab_size + 31) // 32, dtype=np.uint32)
        try:
            grammar.fill_mask(row)
        except GenerationError as error:
            raise structured.refusal(error.why) from None
        if not row.any():
            raise structured.refusal("the model has no token that it could begin with")
        return grammar

    def _build_tokenizer(self) -> llguidance.LLTokenizer:
        import llguidance

        if not self._end_ids:
            raise UnsupportedModelError(
                "this model cannot write structured output",
                why="it has no token that ends a text",
            )
        spellings = [self._token_bytes(token_id) for token_id in range(self._num_tokens)]
        spellings += [b""] * (self._vocab_size - self._num_tokens)
        vocabulary = _Vocabulary(spellings, self._special_ids, self._end_ids[0])
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), eos_token=self._end_ids
        )


class _Vocabulary:
    """The shape in which llguidance takes a vocabulary."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_ids: list[int], end_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = end_id

    def __call__(self, _text: bytes) -> list[int]:
        """Tokenise; needed only to force the tokeniser's own cuts, which `_ROOT` turns off."""
        return []


def _definition(structured: StructuredOutput) -> dict[str, Any]:
    """Write a specification as an entry of llguidance's list of grammars."""
    import llguidance

    spec = structured.spec
    match structured.kind:
        case "json_object":
            return _json_definition({"type": "object"})
        case "json_schema":
            return _json_definition(json.loads(spec))
        case "regex":
            return {"lark_grammar": f"start: /{llguidance.regex_to_lark(spec, '')}/"}
        case "grammar":
            _check_rules(structured)
            return {"lark_grammar": _from_gbnf(structured) if "::=" in spec else spec}
        case "tool_calls":
            return {"lark_grammar": spec}
        case "choice":
            texts = [json.dumps(text).replace("\x7f", "\\u007f") for text in json.loads(spec)]
            return {"lark_grammar": f"start: TEXT\nTEXT: {' | '.join(texts)}"}


def _from_gbnf(structured: StructuredOutput) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(structured.spec)
    except Exception as error:  # the converter raises many things, some of them by accident
        raise structured.refusal(f"the grammar is not GBNF: {str(error)[:500]}") from error


def _check_rules(structured: StructuredOutput) -> None:
    """Refuse chains of rules so long that llguidance takes minutes to describe an error in one."""
    num_rules = len(_RULE.findall(structured.spec))
    if num_rules > _MAX_RULES:
        raise structured.refusal(f"the grammar has {num_rules} rules; the limit is {_MAX_RULES}")


def _json_definition(schema: dict[str, Any]) -> dict[str, Any]:
    options = {"whitespace_pattern": _WHITESPACE, "lenient": False, "coerce_one_of": False}
    return {"json_schema": {**schema, "x-guidance": options}}


def _reason(matcher: llguidance.LLMatcher) -> str:
    """Return what is wrong, without llguidance's account of its own state."""
    message = matcher.get_error().partition("<non-verbose/>")[0].strip()
    return "no text satisfies it" if message.startswith("NoExtension") else message[:500]


def _import_llguidance(structured: StructuredOutput) -> Any:
    try:
        import llguidance
    except ImportError:
        raise InvalidRequestError(
            "structured output is not installed here",
            param=structured.param,
            fix="Install evenflow[structured]",
        ) from None
    return llguidance
