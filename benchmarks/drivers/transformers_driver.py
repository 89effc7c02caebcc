"""Drives Hugging Face transformers' `generate`, in fp32, all requests as one batch.

Usage: python transformers_driver.py FILE.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from loop import serve, take_stdout
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    stdout = take_stdout()
    file = Path(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()

    @torch.inference_mode()
    def run(prompts: list[list[int]], num_output: int) -> list[list[int]]:
        """Complete prompts of one length."""
        ids = torch.tensor(prompts)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=num_output,
            max_new_tokens=num_output,
            pad_token_id=0,
        )
        return output[:, ids.shape[1] :].tolist()

    serve(run, stdout)
