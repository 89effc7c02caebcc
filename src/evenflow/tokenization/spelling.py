"""How a vocabulary spells bytes: from a token's written form to the bytes it stands for.

Knows: the two spellings of today's language models, byte-level BPE (every byte is one printable
character) and sentencepiece (U+2581 is a space, `<0xNN>` is a byte).
Does not know: ids, streams.

Invariants:
    A spelling is read off the tokeniser's own decoder, never guessed from the model's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tokenizers

from evenflow.core.errors import UnsupportedModelError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """Map each character of the byte-level alphabet to its byte.

    Printable Latin-1 bytes stand for themselves; the others are numbered from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    alphabet = {chr(byte): byte for byte in visible}
    alphabet.update({chr(0x100 + rank): byte for rank, byte in enumerate(hidden)})
    return alphabet


_BYTE_OF = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:  # an added token, written as plain text
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(SPACE_MARK, " ").encode()


@dataclass(slots=True, frozen=True)
class Spelling:
    """What a decoder does with tokens.

    Attributes:
        to_bytes: from a token's written form to its bytes.
        marks_each_byte: whether n bytes that are not UTF-8 become n replacement characters
            (sentencepiece) or one for each longest broken sequence (byte-level, as in Unicode's
            recommended practice).
        num_stripped_spaces: spaces dropped at the very beginning of a text, at most.
    """

    to_bytes: Callable[[str], bytes]
    marks_each_byte: bool
    num_stripped_spaces: int

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> Spelling:
        """Read the spelling off the decoder of `backend`.

        Raises:
            UnsupportedModelError: the decoder is neither byte-level nor sentencepiece with bytes.
        """
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
        steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
        kinds = [step.get("type") for step in steps]
        if kinds == ["ByteLevel"]:
            return cls(_byte_level, marks_each_byte=False, num_stripped_spaces=0)
        strip: dict[str, Any] = {"content": " ", "start": 0, "stop": 0}
        if kinds[-1:] == ["Strip"]:
            strip = steps.pop()
        is_sentencepiece = (
            kinds[:3] == ["Replace", "ByteFallback", "Fuse"]
            and len(steps) == 3
            and steps[0]["pattern"] == {"String": SPACE_MARK}
            and steps[0]["content"] == " "
            and strip["content"] == " "
            and strip["stop"] == 0
        )
        if not is_sentencepiece:
            raise UnsupportedModelError(
                "the tokeniser's decoder is not one that evenflow can stream",
                why=f"it is {kinds}; supported are ByteLevel and"
                " Replace, ByteFallback, Fuse with or without Strip of leading spaces",
                fix="Use a model with a byte-level or sentencepiece BPE tokeniser",
            )
        return cls(_sentencepiece, marks_each_byte=True, num_stripped_spaces=strip["start"])


def decode_utf8(data: bytes, *, marks_each_byte: bool, final: bool) -> tuple[str, bytes]:
    """Decode as far as characters are complete.

    Args:
        data: UTF-8, perhaps broken, perhaps cut in the middle of a character.
        marks_each_byte: see `Spelling`.
        final: nothing follows, so a cut character is broken too.

    Returns:
        The text, and the bytes of a last character that more bytes may complete.
    """
    text: list[str] = []
    while True:
        try:
            text.append(data.decode())
        except UnicodeDecodeError as error:
            text.append(data[: error.start].decode())
            if error.reason == "unexpected end of data" and not final:
                return "".join(text), data[error.start :]
            text.append(REPLACEMENT * (error.end - error.start if marks_each_byte else 1))
            data = data[error.end :]
        else:
            return "".join(text), b""
