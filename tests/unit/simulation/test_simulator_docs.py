from __future__ import annotations

import re
from pathlib import Path

from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import load_device, load_model, num_kv_blocks

DOCS = Path(__file__).parents[3] / "docs" / "simulator.md"


def test_device_in_the_docs_is_complete(tmp_path: Path) -> None:
    match = re.search(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    path = tmp_path / "device.toml"
    path.write_text(match[1], encoding="utf-8")
    device, model = load_device(str(path)), load_model("llama-3-8b")
    assert num_kv_blocks(model, device) > 1000
    assert RooflineCosts(model, device).description.startswith("roofline of llama-3-8b")
