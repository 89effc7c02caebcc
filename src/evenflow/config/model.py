"""Which model, in which form."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from evenflow.config.area import Area


class ModelConfig(Area):
    """Which model is served, and how its files are found and read."""

    table: ClassVar[str] = "model"

    model: str = Field(default="smollm2", min_length=1)
    """Short name, path of a folder or a .gguf file, or Hugging Face id."""

    load_format: Literal["auto", "dummy"] = "auto"
    """Where weights come from: the model's files (auto), or random numbers in the shapes of its
    config (dummy)."""

    dummy_seed: int = Field(default=0, ge=0)
    """Seed of the random weights of --load-format dummy."""

    max_model_len: int | None = Field(default=None, ge=2)
    """Most tokens of prompt and output together; none means the model's own limit, but no more
    than 8192 tokens."""

    chat_template: Path | None = None
    """Jinja file that replaces the model's chat template; none means the model's own."""

    embedding_model: str | None = Field(default=None, min_length=1)
    """Short name, path of a folder, or Hugging Face id of a sentence model for embeddings; none
    means the mean of the language model's last hidden state."""

    offline: bool = False
    """Never use the network; only models that are already on this machine can be served."""
