"""What a request for an embedding wants: one vector for its prompt instead of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import InvalidRequestError


@dataclass(slots=True, frozen=True, kw_only=True)
class PoolingParams:
    """How the mean over a prompt's hidden states becomes an embedding. Names are vLLM's.

    Attributes:
        normalize: scale the embedding to length 1.
        dimensions: keep this many leading entries, before it is scaled; None keeps all.
    """

    normalize: bool = True
    dimensions: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.normalize, bool):
            raise InvalidRequestError(
                "normalize must be true or false",
                param="normalize",
                why=f"it is {self.normalize!r}",
            )
        dimensions = self.dimensions
        if dimensions is not None and not (type(dimensions) is int and 1 <= dimensions < 2**31):
            raise InvalidRequestError(
                "dimensions must be a whole number from 1 to 2147483647",
                param="dimensions",
                why=f"it is {dimensions!r}",
            )

    def check_fits(self, num_dimensions: int) -> None:
        """Refuse to cut embeddings of `num_dimensions` entries to more than these.

        Raises:
            InvalidRequestError: they have fewer than `dimensions` entries.
        """
        if self.dimensions is not None and self.dimensions > num_dimensions:
            raise InvalidRequestError(
                f"dimensions is {self.dimensions}, more than the model has",
                param="dimensions",
                why=f"its embeddings have {num_dimensions} entries",
                fix=f"Ask for at most {num_dimensions}",
            )

    def embedding(self, mean: npt.NDArray[np.floating]) -> bytes:
        """Cut and scale a mean of hidden states, (num_dimensions,).

        Returns:
            The entries as little-endian fp32, which is what OpenAI's base64 encoding holds.
        """
        vector = mean[: self.dimensions].astype(np.float64)
        length = float(np.linalg.norm(vector))
        if self.normalize and length > 0.0:
            vector /= length
        return vector.astype("<f4").tobytes()


def embedding_entries(embedding: bytes) -> list[float]:
    """Return the entries of an embedding that `PoolingParams.embedding` made."""
    entries: list[float] = np.frombuffer(embedding, dtype="<f4").tolist()
    return entries
