"""Weight sources: GGUF, safetensors, dummy. All speak the tensor names of Hugging Face checkpoints."""
