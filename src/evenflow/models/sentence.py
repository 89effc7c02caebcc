"""Sentence models: a text's tokens in, one vector out.

modules.json              what follows what: Transformer, Pooling and perhaps Normalize
config.json               the encoder
1_Pooling/config.json     which hidden states become the vector; their mean if there is no file
model.safetensors         the encoder's weights
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from evenflow.core.errors import (
    ContextLengthError,
    InvalidRequestError,
    ModelFormatError,
    UnsupportedModelError,
)
from evenflow.execution.ops import Ops
from evenflow.models.bert import Bert, BertSpec
from evenflow.models.sources import ModelFiles
from evenflow.models.weights.open import check_tensors, read_json
from evenflow.models.weights.safetensors import SafetensorsWeights, weight_files

_MODULES = ("Transformer", "Pooling", "Normalize")
_MEAN = "pooling_mode_mean_tokens"
_FIRST = "pooling_mode_cls_token"


class SentenceEncoder:
    """An encoder with its pooling, fp32. It keeps nothing between two calls.

    Args:
        model: gives each token of a text a hidden state.
        mean: the vector is the mean of these; otherwise it is the first one.
    """

    def __init__(self, model: Bert, *, mean: bool = True) -> None:
        self._model = model
        self._mean = mean
        self.num_dimensions = model.spec.hidden_size
        self.max_num_tokens = model.spec.max_position_embeddings

    @classmethod
    def load(cls, files: ModelFiles, ops: Ops) -> SentenceEncoder:
        """Load a sentence model.

        Args:
            files: a directory in the layout above.
            ops: the operations to build with.

        Raises:
            UnsupportedModelError: it is no BERT, or makes its vectors in a way we do not know.
            ModelFormatError: a file is damaged, or lacks a tensor.
            ModelNotFoundError: a file is missing.
        """
        if files.kind != "hf":
            raise UnsupportedModelError(
                f"{files.name} is no sentence model",
                why="it is a GGUF file",
                fix="name a directory with config.json, tokenizer.json and safetensors",
            )
        spec = BertSpec.from_config(read_json(files.path / "config.json"))
        mean = _pools_mean(files.path)
        weights = SafetensorsWeights(weight_files(files.path))
        check_tensors(weights, spec.tensor_shapes(), files.path)
        return cls(Bert(spec, weights, ops), mean=mean)

    def check(self, token_ids: Sequence[int]) -> None:
        """Refuse tokens that the model cannot read.

        Raises:
            InvalidRequestError: there are none, or one is not of the vocabulary.
            ContextLengthError: there are too many, with the numbers.
        """
        spec = self._model.spec
        if len(token_ids) > self.max_num_tokens:
            raise ContextLengthError(
                f"the text has {len(token_ids)} tokens",
                param="input",
                why=f"the sentence model reads {self.max_num_tokens}",
                fix="Send it in parts",
            )
        is_sound = all(type(token) is int and 0 <= token < spec.vocab_size for token in token_ids)
        if not token_ids or not is_sound:
            raise InvalidRequestError(
                "the text is not made of tokens of the sentence model",
                param="input",
                why=f"it takes at least one, and they go from 0 to {spec.vocab_size - 1}",
            )

    @torch.inference_mode()
    def encode(self, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return the vectors of some texts, (num_texts, num_dimensions), not scaled.

        Args:
            texts: token ids that `check` lets pass.
        """
        vectors = [
            hidden.mean(dim=0) if self._mean else hidden[0] for hidden in self._model.forward(texts)
        ]
        stacked: npt.NDArray[np.float32] = torch.stack(vectors).numpy()
        return stacked


def _pools_mean(directory: Path) -> bool:
    """Return whether vectors are means, and not the first token's; refuse other ways."""
    others = [kind for kind in _modules(directory / "modules.json") if kind not in _MODULES]
    if others:
        raise UnsupportedModelError(
            f"the sentence model in {directory} has layers that evenflow does not have",
            why=f"modules.json names {', '.join(others)}",
        )
    pooling = directory / "1_Pooling" / "config.json"
    if not pooling.is_file():
        return True
    modes = [
        key
        for key, value in read_json(pooling).items()
        if key.startswith("pooling_mode") and value is True
    ]
    if modes not in ([_MEAN], [_FIRST]):
        raise UnsupportedModelError(
            f"the sentence model in {directory} pools in a way that evenflow does not have",
            why=f"it asks for {', '.join(modes) or 'nothing'}; {_MEAN} and {_FIRST} are known",
        )
    return modes == [_MEAN]


def _modules(file: Path) -> list[str]:
    """Return the kinds of layers that a modules.json names, none without the file."""
    if not file.is_file():
        return []
    try:
        return [entry["type"].rpartition(".")[2] for entry in json.loads(file.read_bytes())]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFormatError(f"{file} is no list of layers", why=repr(error)) from error
