"""A server whose KV goes to the host and to disk, and comes back."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.served_model import metric
from support.server_process import (
    ADMIN,
    COMPLETIONS,
    ServerProcess,
    admin,
    ask,
    generation,
    get,
    post,
    running,
    wait_for,
)

pytestmark = pytest.mark.slow

BLOCK_SIZE = 16
NUM_CLIENTS = 6
# A client comes to 13 blocks, so that no two of them fit.
FLAGS = ["--max-model-len", "256", "--num-blocks-override", "20", "--preemption-mode", "swap"]
FLAGS += ["--kv-host-memory", "2MiB", "--admin-api-key", "adm-1"]


def prompt(number: int, num_blocks: int = 3) -> list[int]:
    return [20 + (7 * number + i) % 90 for i in range(num_blocks * BLOCK_SIZE + 1)]


def completed(server: ServerProcess, number: int) -> dict[str, Any]:
    answer = post(server.address, COMPLETIONS, generation(150, prompt=prompt(number)))
    assert answer.status == 200, answer.body
    return answer.json()


def text(completion: dict[str, Any]) -> str:
    return completion["choices"][0]["text"]


def test_requests_swap_under_pressure_and_say_the_same_as_alone(tmp_path: Path) -> None:
    with running(tmp_path, *FLAGS) as server:
        alone = [text(completed(server, number)) for number in range(NUM_CLIENTS)]
        admin(server.address, "flush_prefix_cache")
        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            crowd = list(clients.map(lambda n: completed(server, n), range(NUM_CLIENTS)))
        assert list(map(text, crowd)) == alone
        admin(server.address, "check_integrity")
        wait_for(lambda: metric(server.address, "evenflow:num_requests_running") == 0, "it is idle")
        preemptions = metric(server.address, "evenflow:num_preemptions_total")
        assert preemptions > 0
        assert 'mode="swap",reason="memory"' in get(server.address, "/metrics").body.decode()
        assert metric(server.address, "evenflow:kv_swap_bytes_total") > 0
        assert metric(server.address, "evenflow:kv_swap_failures_total") == 0
        lives = [get(server.address, f"/v1/requests/{c['id']}/explain").json() for c in crowd]
        intervals = [interval for life in lives for interval in life["intervals"]]
        causes = {interval["kind"]: interval["cause"] for interval in intervals}
        assert causes["preempted"].startswith(("swap: ", "needs ", "no free seat"))
        assert causes["swap_in"].endswith("loaded from host")


def keep_a_turn(server: ServerProcess) -> None:
    """Have a session whose KV is on the host when this returns."""
    admin(server.address, "sessions", {"session_id": "talk"})
    turn = generation(4, prompt=prompt(0, 5), session_id="talk")
    assert post(server.address, COMPLETIONS, turn).status == 200


def test_disk_gives_a_new_server_what_an_old_one_computed(tmp_path: Path) -> None:
    flags = [*FLAGS, "--kv-disk-path", str(tmp_path / "kv"), "--kv-disk-size", "2MiB"]
    with running(tmp_path, *flags) as server:
        keep_a_turn(server)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    with running(tmp_path, *flags) as server:
        turn = generation(4, prompt=prompt(0, 5))
        usage = post(server.address, COMPLETIONS, turn).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 5 * BLOCK_SIZE
    other = ServerProcess(tmp_path, *flags, "--block-size", "8", "--num-blocks-override", "40")
    assert other.wait() != 0
    assert "holds KV blocks that do not fit" in other.log
    assert "Give every model and setting its own --kv-disk-path" in other.log


def test_session_is_kept_on_the_host_until_its_time_is_over(tmp_path: Path) -> None:
    with running(tmp_path, *FLAGS) as server:
        admin(server.address, "sessions", {"session_id": "talk", "ttl_s": 60})
        first = prompt(1)
        turn = generation(BLOCK_SIZE, prompt=first, session_id="talk")
        assert post(server.address, COMPLETIONS, turn).status == 200
        for number in range(2, 5):
            completed(server, number)
        [session] = ask(server.address, "GET", "/admin/sessions", None, ADMIN).json()["sessions"]
        assert (session["kept"], session["num_pinned_tokens"]) == ({"host": 4 * BLOCK_SIZE}, 0)
        assert 0 < session["expires_in_s"] < 60
        second = generation(2, prompt=first, session_id="talk")
        usage = post(server.address, COMPLETIONS, second).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 3 * BLOCK_SIZE
