"""Writes prompts of a wanted number of tokens.

Prompts are random common words, chosen so that every word is exactly one token together with the
space before it. Lengths then hold without decoding and encoding again, and a prefix of the words
is a prefix of the tokens. Which words those are is found by counting, so that a local tokeniser
and a server's /tokenize serve equally well; a few dozen calls settle it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from evenflow.core.rng import derive_seed
from evenflow.workloads.request import Segment, WorkloadRequest

TokenCounter = Callable[[str], int]
"""Returns the number of tokens of a text, special tokens at its ends included."""

_WORDS = tuple(  # as a paragraph, which a list of literals would spread over 300 lines
    """
about above after again air all also always am an and another answer any are around as ask at away
back bad be became because become been before began being best better between big black blue body
book both boy bring brought build but by call came can car carry change city close cold come could
country cut dark day did different do does done door down draw drive each early earth eat end enough
even ever every example eye face fact fall family far farm fast father feel feet few field find fire
first fish five fly follow food foot for form found four free friend from full game gave get girl
give go gold good got great green ground group grow had half hand hard has have he head hear heard
heat help her here high him his hold home horse hot hour house how idea if in is it just keep kind
king knew know land large last late later laugh law learn leave left less let letter life light like
line list little live long look lost love low made main make man many map mark may me mean men might
mile mind money moon more morning most mother mountain move much music must my name near need never
new next night no north not note nothing now number of off often old on once one only open or order
other our out over own page paper part pass people person picture place plan plant play point power
put question quick rain ran read real red rest right river road rock room round run said same saw
say school sea second see seem seen sentence set she ship short should show side simple since six
size sky sleep slow small snow so some song soon sound south space stand star start state stay step
still stop story street strong such sun sure system table take talk teach tell ten than that the
their them then there these they thing think this those though three through time to together too
took top toward town travel tree true try turn two under until up upon us use very voice walk want
war warm was watch water way we week well went were west what wheel when where which while white who
whole why wind with without wood word work world would write year you young your
""".split()  # noqa: SIM905
)

_MAX_TOKENS_PER_WORD = 1.5
"""A tokeniser with more than this on average splits most words. Finding those it does not split
would take hundreds of counts, so all words are used, and lengths hold on average."""


class Vocabulary:
    """Words of a known length in tokens.

    Args:
        words: what prompts are made of.
        tokens_per_word: the mean over `words`, the space before each included.
    """

    def __init__(self, words: Sequence[str] = _WORDS, tokens_per_word: float = 1.0) -> None:
        self._words = np.array(words)
        self._tokens_per_word = tokens_per_word

    @classmethod
    def counted_by(cls, count_tokens: TokenCounter) -> Vocabulary:
        """Find the words that are one token each for this tokeniser."""
        all_words = " ".join(_WORDS)
        once = count_tokens(all_words)
        num_special = 2 * once - count_tokens(f"{all_words} {all_words}")
        tokens_per_word = (once - num_special) / len(_WORDS)
        if tokens_per_word > _MAX_TOKENS_PER_WORD:
            return cls(_WORDS, tokens_per_word)

        def one_token_each(words: Sequence[str]) -> list[str]:
            if count_tokens(" ".join(words)) - num_special == len(words):
                return list(words)
            if len(words) == 1:
                return []
            middle = len(words) // 2
            return one_token_each(words[:middle]) + one_token_each(words[middle:])

        return cls(one_token_each(_WORDS))

    def text(self, segments: Iterable[Segment]) -> str:
        """Write the words of `segments`, one after the other."""
        return " ".join(word for segment in segments for word in self._segment(segment))

    def _segment(self, segment: Segment) -> list[str]:
        rng = np.random.default_rng(derive_seed(segment.key))
        num_words = round(segment.num_tokens / self._tokens_per_word)
        chosen: list[str] = self._words[rng.integers(len(self._words), size=num_words)].tolist()
        return chosen


def with_text(
    requests: Iterable[WorkloadRequest], vocabulary: Vocabulary, seed: int
) -> list[WorkloadRequest]:
    """Give a text to every request that has none.

    Args:
        requests: in their order; those with a prompt or messages stay as they are.
        vocabulary: writes the text.
        seed: two runs with different seeds share no text but that of empty prompts.
    """
    written = []
    for index, request in enumerate(requests):
        if request.prompt is None and request.messages is None:
            segments = request.segments or (Segment(f"alone {index}", request.num_prompt_tokens),)
            keyed = (Segment(f"{seed} {key}", num_tokens) for key, num_tokens in segments)
            request = replace(request, prompt=vocabulary.text(keyed))
        written.append(request)
    return written
