"""What a start checks before it reads any weight, and what it builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evenflow.config import load_config
from evenflow.core.errors import ConfigError, KVDiskError, KVMemoryError
from evenflow.core.ids import TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine import backends, build
from evenflow.engine.build import Runtime, build_runtime
from evenflow.scheduling.switching import SwitchOptions
from support.gguf_files import write_tiny
from support.small_tokenizers import byte_level_backend

NUM_POSITIONS = 128


def start(model: Path, **settings: Any) -> Runtime:
    cache = model.parent / "cache"
    return build_runtime(load_config({"model": str(model), "cache": cache, **settings}).config)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf", "llama")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a model without weights, for --load-format dummy."""
    path = tmp_path / "tiny"
    path.mkdir()
    backend = byte_level_backend()
    backend.save(str(path / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": NUM_POSITIONS,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_build_runtime_writes_no_weights_when_kv_memory_is_too_small(gguf: Path) -> None:
    with pytest.raises(KVMemoryError, match=f"one request of {NUM_POSITIONS} tokens"):
        start(gguf, kv_cache_memory="1KiB")
    assert not (gguf.parent / "cache" / "weights").exists()


def test_build_runtime_refuses_more_tokens_than_the_model_has_positions(gguf: Path) -> None:
    with pytest.raises(ConfigError, match=r"129.* has 128 positions.* at most 128"):
        start(gguf, max_model_len=NUM_POSITIONS + 1)


@pytest.mark.parametrize(("asked", "expected"), [(None, NUM_POSITIONS), (100, 100), (128, 128)])
def test_build_runtime_takes_the_length_asked_for_or_the_models(
    directory: Path, asked: int | None, expected: int
) -> None:
    runtime = start(directory, load_format="dummy", max_model_len=asked, num_blocks_override=8)
    assert runtime.kv_plan.max_model_len == expected


def test_build_runtime_rotates_no_further_than_the_longest_request(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = []
    monkeypatch.setattr(build, "build_model", lambda spec, *_: specs.append(spec))
    runtime = start(directory, load_format="dummy", max_model_len=100, num_blocks_override=8)
    assert [spec.max_position_embeddings for spec in specs] == [100]
    assert runtime.spec.max_position_embeddings == NUM_POSITIONS


def test_build_runtime_takes_a_number_of_blocks_whatever_memory_is_free(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "free_memory_bytes", lambda: 0)
    with pytest.raises(KVMemoryError):
        start(directory, load_format="dummy")
    runtime = start(directory, load_format="dummy", num_blocks_override=8)
    assert runtime.kv_plan.num_blocks == 8


def start_with_tiers(directory: Path, **settings: Any) -> Runtime:
    kv = {"num_blocks_override": 8, "kv_host_memory": "64KiB", **settings}
    return start(directory, load_format="dummy", **kv)


def test_build_runtime_passes_every_setting_of_switching_on(directory: Path) -> None:
    settings = {
        "preemption_mode": "swap",
        "swap_timing": "beside",
        "swap_write_back": False,
        "swap_keep_head": False,
        "swap_prefetch": False,
        "max_switch_share": 0.25,
    }
    scheduler = start_with_tiers(directory, **settings).engine.scheduler
    assert scheduler.switcher.options == SwitchOptions(
        mode="swap",
        timing="beside",
        write_back=False,
        keep_head=False,
        prefetch=False,
        max_share=0.25,
    )


def test_build_runtime_has_no_lower_tiers_when_the_host_gets_nothing(directory: Path) -> None:
    assert start_with_tiers(directory, kv_host_memory="0").engine.scheduler.kv.residency is None


def test_build_runtime_gives_the_host_its_share_of_what_is_left(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_bytes = start_with_tiers(directory).kv_plan.num_bytes // 8
    monkeypatch.setattr(build, "free_memory_bytes", lambda: 48 * block_bytes)
    runtime = start_with_tiers(directory, kv_host_memory="0.5")
    assert runtime.engine.scheduler.kv.residency.host.num_blocks == 20


def test_build_runtime_refuses_a_disk_without_a_host(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kv-disk-path needs memory on the host"):
        start_with_tiers(directory, kv_host_memory="0", kv_disk_path=tmp_path / "kv")


def test_build_runtime_refuses_a_disk_that_holds_no_block(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which holds no KV block"):
        start_with_tiers(directory, kv_disk_path=tmp_path / "kv", kv_disk_size="100B")


def test_close_lets_the_next_runtime_have_the_disk_with_what_is_on_it(
    directory: Path, tmp_path: Path
) -> None:
    settings = {"kv_disk_path": tmp_path / "kv", "kv_disk_size": "64KiB", "preemption_mode": "swap"}
    first = start_with_tiers(directory, **settings)
    first.engine.sessions.open("default", 60.0, "talk")
    prompt = [*range(1, 50)]
    answer = turn(first, prompt)
    while first.engine.rest():
        pass
    with pytest.raises(KVDiskError, match="another process keeps KV blocks"):
        start_with_tiers(directory, **settings)
    first.close()
    second = start_with_tiers(directory, **settings)
    assert second.engine.scheduler.kv.residency.disk.num_kept >= 3
    second.engine.sessions.open("default", 60.0, "talk")
    assert turn(second, prompt) == (answer[0], 48)
    second.close()


def turn(runtime: Runtime, prompt: list[int]) -> tuple[list[int], int]:
    """Run one request of a session; return its tokens and how many prompt tokens were found."""
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    runtime.engine.add_request("r", prompt, params, session_id="talk")
    output: list[int] = []
    num_cached = 0
    while runtime.engine.has_work:
        for delta in runtime.engine.step():
            output.append(delta.token_id)
            num_cached = delta.metrics.num_cached_tokens if delta.metrics else 0
    return output, num_cached


def test_build_scheduler_takes_what_tenants_may_run_from_settings_and_keys_file(
    tmp_path: Path,
) -> None:
    keys_file = tmp_path / "keys.toml"
    keys_file.write_text("[tenants.big]\nmax_running = 7\n[tenants.plain]\n")
    keys_file.chmod(0o600)
    config = load_config({"tenant_max_running": 2, "keys_file": keys_file}).config
    seats = build.build_scheduler(config, 8).seats
    limits = [seats.limit(TenantId(name)) for name in ("big", "plain", "stranger")]
    assert limits == [7, 2, 2]
