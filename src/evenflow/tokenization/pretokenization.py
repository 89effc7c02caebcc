"""How byte-level vocabularies cut text into words before merging, by the name GGUF gives it.

Knows: `tokenizer.ggml.pre` names and the regular expressions behind them.
Does not know: vocabularies, merges.

The regular expressions are facts of the published tokenisers: each is spelt as in the model's own
`tokenizer.json`, since any other spelling would cut some text differently.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from evenflow.core.errors import UnsupportedModelError


@dataclass(slots=True, frozen=True)
class WordSplit:
    """One way to cut text into words.

    Attributes:
        patterns: applied in turn; each match becomes a word of its own, and the next pattern cuts
            inside words.
        is_nfc: text is brought into Unicode's composed form first.
        ignores_merges: a word that is in the vocabulary is taken whole, whatever the merges say.
        adds_bos: a text begins with the bos token unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    is_nfc: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return the cutting and the move into the byte-level alphabet."""
        splits = [pre_tokenizers.Split(Regex(text), "isolated") for text in self.patterns]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, to_bytes])


_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# DeepSeek's letters are a fixed list of ranges, not a Unicode property.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_DEEPSEEK_MARKS = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

_PLAIN = WordSplit((_GPT2,))
_SINGLE_DIGITS = WordSplit((_DIGIT, _GPT2))
_LLAMA3_SPLIT = WordSplit((_LLAMA3,), ignores_merges=True, adds_bos=True)

WORD_SPLITS: dict[str, WordSplit] = {
    "default": _PLAIN,
    "gpt-2": _PLAIN,
    "olmo": _PLAIN,
    "phi-2": _PLAIN,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "minerva-7b": _SINGLE_DIGITS,
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "llama-bpe": _LLAMA3_SPLIT,
    "falcon3": _LLAMA3_SPLIT,
    "smaug-bpe": WordSplit((_LLAMA3,)),
    "qwen2": WordSplit((_QWEN2,), is_nfc=True),
    "deepseek-r1-qwen": WordSplit((_QWEN2,)),
    "tekken": WordSplit((_TEKKEN,), ignores_merges=True, adds_bos=True),
    "deepseek-llm": WordSplit(
        (
            "[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_MARKS}]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": WordSplit(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _DIGIT)),
}


def word_split(name: str) -> WordSplit:
    """Return the way of cutting that GGUF calls `name`.

    Raises:
        UnsupportedModelError: the name is not in `WORD_SPLITS`.
    """
    try:
        return WORD_SPLITS[name]
    except KeyError:
        raise UnsupportedModelError(
            f"the pre-tokeniser {name!r} is unknown",
            why="tokenizer.ggml.pre decides how text is cut into words;"
            f" supported are {', '.join(sorted(WORD_SPLITS))}",
            fix="Use the model's original directory with its tokenizer.json",
        ) from None
