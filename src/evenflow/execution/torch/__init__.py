"""The torch executor: KV tensors, batch preparation, sampling."""
