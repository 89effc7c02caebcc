"""Weight sources: GGUF, safetensors, dummy. All speak Hugging Face's tensor names."""
