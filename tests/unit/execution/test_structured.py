"""Grammars over a small byte-level vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evenflow.core.errors import GenerationError, InvalidRequestError, UnsupportedModelError
from evenflow.core.structured import StructuredKind, StructuredOutput, TokenGrammar
from evenflow.execution.structured import GrammarCompiler
from evenflow.tokenization.tokenizer import SpecialTokens, Tokenizer
from support.small_tokenizers import byte_level_backend, sentencepiece_backend

BACKEND = byte_level_backend()
TOKENIZER = Tokenizer(BACKEND, SpecialTokens())
END = BACKEND.token_to_id("<|begin|>")
TURN = BACKEND.token_to_id("<|im_start|>")
VOCAB_SIZE = TOKENIZER.vocab_size + 70  # a model's embedding may have more rows than tokens
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def compiler_for(tokenizer: Tokenizer, end_id: int, vocab_size: int) -> GrammarCompiler:
    return GrammarCompiler(
        tokenizer.token_bytes,
        num_tokens=tokenizer.vocab_size,
        vocab_size=vocab_size,
        special_ids=tokenizer.special_ids,
        end_ids=frozenset({end_id}),
    )


COMPILER = compiler_for(TOKENIZER, END, VOCAB_SIZE)


def begin(kind: StructuredKind, spec: str = "") -> TokenGrammar:
    return COMPILER.compile(StructuredOutput(kind, spec)).fork()


def allowed(grammar: TokenGrammar) -> set[int]:
    row = np.empty((grammar.vocab_size + 31) // 32, dtype=np.uint32)
    grammar.fill_mask(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def walk(grammar: TokenGrammar, text: str) -> None:
    """Write a text a byte at a time, each of which must be allowed."""
    of_byte = {TOKENIZER.token_bytes(i): i for i in reversed(range(TOKENIZER.vocab_size))}
    for byte in text.encode():
        token = of_byte[bytes([byte])]
        assert token in allowed(grammar)
        assert grammar.accept(token)


def write(grammar: TokenGrammar, seed: int, num_tokens: int = 400) -> str | None:
    """Write at random what is allowed; None if it does not come to an end."""
    rng = np.random.default_rng(seed)
    text = b""
    for _ in range(num_tokens):
        token = int(rng.choice(sorted(allowed(grammar))))
        assert grammar.accept(token)
        if token == END:
            return text.decode()
        text += TOKENIZER.token_bytes(token)
        if grammar.is_complete:
            return text.decode()
    return None


def is_list(text: str) -> bool:
    return set(json.loads(text)) <= {1, "é\n", None}


CASES: list[tuple[StructuredKind, str, Callable[[str], Any]]] = [
    ("json_object", "", lambda text: isinstance(json.loads(text), dict)),
    ("json_schema", '{"type":"array","items":{"enum":[1,"é\\n",null]}}', is_list),
    ("regex", r"[a-c]{2,5}/[0-9]+|x", re.compile(r"[a-c]{2,5}/[0-9]+|x").fullmatch),
    ("choice", '["yes", "no\\n", "\\u007f\\"\\\\"]', ("yes", "no\n", '\x7f"\\').__contains__),
    ("grammar", 'start: A+ ";"\nA: /[01]{3}/ | "é"', re.compile("([01]{3}|é)+;").fullmatch),
    ("grammar", 'root ::= "a" [0-9]+ ";"', re.compile("a[0-9]+;").fullmatch),
    ("tool_calls", 'start: "a ::= " /[01]{2}/', re.compile("a ::= [01]{2}").fullmatch),
]


@pytest.mark.parametrize(("kind", "spec", "is_right"), CASES)
def test_grammar_allows_only_texts_of_the_asked_form(
    kind: StructuredKind, spec: str, is_right: Callable[[str], Any]
) -> None:
    texts = [write(begin(kind, spec), seed) for seed in range(12)]
    ended = [text for text in texts if text is not None]
    assert len(ended) >= 2
    assert all(is_right(text) for text in ended)


def test_grammar_allows_every_cut_of_a_text_into_tokens() -> None:
    grammar = begin("choice", '[" the fox"]')
    starts = {i for i in range(TOKENIZER.vocab_size) if is_prefix(i, b" the fox")}
    assert len(starts) > 1
    assert allowed(grammar) == starts
    walk(grammar, " the fox")
    assert grammar.is_complete


def is_prefix(token_id: int, text: bytes) -> bool:
    spelling = TOKENIZER.token_bytes(token_id)
    return token_id not in TOKENIZER.special_ids and bool(spelling) and text.startswith(spelling)


def test_grammar_takes_the_end_exactly_where_the_text_is_whole() -> None:
    grammar = begin("regex", "ab+")
    walk(grammar, "a")
    assert END not in allowed(grammar)
    walk(grammar, "b")
    assert END in allowed(grammar)
    assert not grammar.is_complete
    assert grammar.accept(END)
    assert grammar.is_complete


def test_grammar_refuses_a_token_that_may_not_come() -> None:
    grammar = begin("choice", '["yes"]')
    assert not grammar.accept(TOKENIZER.encode("n")[0])
    assert not grammar.is_complete


def test_grammar_allows_special_tokens_only_where_it_names_them() -> None:
    assert TURN not in allowed(begin("regex", ".*"))
    assert allowed(begin("grammar", "start: <|im_start|> /x/")) == {TURN}


def test_grammar_never_allows_rows_without_a_token() -> None:
    assert max(allowed(begin("regex", "(?s:.*)"))) < TOKENIZER.vocab_size


def test_grammar_forks_go_their_own_ways() -> None:
    grammar = begin("choice", '["ab", "ac"]')
    walk(grammar, "a")
    fork = grammar.fork()
    walk(fork, "b")
    walk(grammar, "c")
    assert fork.is_complete
    assert grammar.is_complete


def test_compile_leaves_the_cached_grammar_at_its_beginning() -> None:
    first = begin("choice", '["ab"]')
    walk(first, "ab")
    assert not begin("choice", '["ab"]').is_complete


def test_lark_grammar_may_hold_a_json_schema() -> None:
    spec = f'start: "<call>" args "</call>"\nargs: %json {json.dumps(SCHEMA)}'
    grammar = begin("grammar", spec)
    walk(grammar, '<call>{"name": "é", "age": -3}</call>')
    assert grammar.is_complete


def test_json_does_not_allow_endless_blanks() -> None:
    grammar = begin("json_object")
    walk(grammar, "{\n" + " " * 32)
    blanks = {i for i in allowed(grammar) if not TOKENIZER.token_bytes(i).strip()}
    assert not blanks


def test_grammar_spells_with_the_bytes_of_a_sentencepiece_vocabulary() -> None:
    backend = sentencepiece_backend(add_space_prefix=True)
    tokenizer = Tokenizer(backend, SpecialTokens())
    compiler = compiler_for(tokenizer, backend.token_to_id("</s>"), tokenizer.vocab_size)
    grammar = compiler.compile(StructuredOutput("choice", '[" the\\u00e9"]')).fork()
    spellings = {tokenizer.token_bytes(token) for token in allowed(grammar)}
    assert b" " in spellings
    assert all(" theé".encode().startswith(spelling) for spelling in spellings)


def test_compile_fails_when_the_model_has_no_end_token() -> None:
    compiler = GrammarCompiler(
        TOKENIZER.token_bytes,
        num_tokens=TOKENIZER.vocab_size,
        vocab_size=VOCAB_SIZE,
        special_ids=frozenset(),
        end_ids=frozenset(),
    )
    with pytest.raises(UnsupportedModelError, match="no token that ends a text"):
        compiler.compile(StructuredOutput("json_object"))


WRONG: list[tuple[StructuredKind, str, str]] = [
    ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
    ("json_schema", '{"$ref": "#/$defs/none"}', "does not exist"),
    ("json_schema", '{"$ref": "http://127.0.0.1/x"}', "does not fetch"),
    ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ("json_schema", '{"type": "string", "minLength": 2, "maxLength": 1}', "Unsatisfiable"),
    ("json_schema", '{"$ref": "#"}', "no text satisfies it"),
    ("json_schema", '{"x-guidance": {"lenient": true}, "uniqueItems": true}', "uniqueItems"),
    ("regex", "(a", "unclosed group"),
    ("regex", r"(a)\1", "backreferences"),
    ("grammar", "start: nothing", "nothing"),
    ("grammar", 'root ::= "a" [0-9', "not GBNF"),
    ("grammar", 'root ::= "a', "not GBNF"),
    ("grammar", "start: a\na: b\nb: a", "no text satisfies it"),
]


@pytest.mark.parametrize(("kind", "spec", "why"), WRONG)
def test_compile_refuses_what_is_wrong_and_says_why(
    kind: StructuredKind, spec: str, why: str
) -> None:
    structured = StructuredOutput(kind, spec, "response_format")
    with pytest.raises(InvalidRequestError, match=re.escape(why)) as refused:
        COMPILER.compile(structured)
    assert refused.value.param == "response_format"
    assert "<state>" not in str(refused.value)


def chain(rule: str, num_rules: int = 256) -> str:
    """Write rules that each lead to the next."""
    rules = [rule.format(f"r{number}", f"r{number + 1}") for number in range(num_rules - 2)]
    return "\n".join(["start: r0", *rules, f'r{num_rules - 2}: "b"'])


BOMBS: list[tuple[StructuredKind, str]] = [
    ("grammar", chain("{0}:{1}*")),
    ("grammar", chain('{0}:"x" {1}')),
    ("grammar", chain("{0}:{1} {1}")),
    ("grammar", chain("{0}:{1} {1}").replace("r", "R").replace("staRt", "start")),
    ("grammar", "start: " + "(" * 8000 + '"a"' + ")" * 8000),
    ("grammar", "start: /.*a.{30}/ & /.*b.{25}/ & ~/.*ccc.*/"),
    ("regex", "(" * 5000 + "a" + ")" * 5000),
    ("regex", "((a{1,1000}){1,1000}){1,1000}"),
    ("regex", "(a?b*){9}" * 1700),
    (
        "json_schema",
        json.dumps(
            {
                "$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1400)}
                | {"d1400": {"type": "string"}},
                "$ref": "#/$defs/d0",
            }
        ),
    ),
    (
        "json_schema",
        json.dumps(
            {
                "allOf": [
                    {
                        "anyOf": [
                            {"type": "object", "properties": {f"a{i}": {"type": "integer"}}},
                            {"type": "object", "properties": {f"b{i}": {"type": "integer"}}},
                        ]
                    }
                    for i in range(40)
                ]
            }
        ),
    ),
    ("json_schema", '{"type": "array", "minItems": 1000000000, "items": {"type": "array"}}'),
    ("choice", json.dumps([f"number {i}" for i in range(4000)])),
]


@pytest.mark.parametrize(("kind", "spec"), BOMBS, ids=range(len(BOMBS)))
def test_compile_survives_a_hostile_specification(kind: StructuredKind, spec: str) -> None:
    try:
        grammar = COMPILER.compile(StructuredOutput(kind, spec)).fork()
        assert grammar.accept(min(allowed(grammar)))
        allowed(grammar)
    except InvalidRequestError as error:
        assert len(str(error)) < 1000  # noqa: PT017  # some of them are sound
    except GenerationError as error:
        assert error.why  # noqa: PT017


def test_compile_refuses_a_grammar_of_too_many_rules() -> None:
    with pytest.raises(InvalidRequestError, match="257 rules; the limit is 256"):
        begin("grammar", chain("{0}:{1}", 257))
