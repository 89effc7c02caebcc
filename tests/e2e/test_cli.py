"""The command as a person or a script uses it: processes, pipes, a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = str(Path(sys.executable).with_name("evenflow"))
SMALL = ["--max-model-len", "512", "--num-blocks-override", "64"]
GREEDY = ["--temperature", "0", "--seed", "1", "--linear", "exact"]
PROMPT = "The capital of France is"
DEADLINE_S = 120.0

model = [pytest.mark.model, pytest.mark.slow]


def evenflow(
    *args: str, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [COMMAND, *args],
        input=stdin,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=DEADLINE_S,
        check=False,
    )


def wait_for(condition: Any) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "nothing happened in time"
        time.sleep(0.02)


def assert_polite(result: subprocess.CompletedProcess[bytes], status: int, message: str) -> None:
    """Check that a command failed with a message for people, on stderr alone."""
    error = result.stderr.decode()
    assert result.returncode == status, error
    assert result.stdout == b""
    assert "Traceback" not in error
    assert message in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["complete", "smollm2", "-p", "a", "--top-p", "7"], "top_p must be"),
        (["complete", "smollm2", "-p", "a", "--max-tokens", "0"], "max_tokens must be"),
        (["complete", "smollm2"], "--prompt"),
        (["complete", "smollm2", "-p", "a", "--max-num-seqs", "0"], "max_num_seqs"),
        (["complete", "smollm2", "-p", "a", "--kv-cache-memory", "lots"], "kv_cache_memory"),
        (["run-batch", "smollm2", "-i", "nowhere.jsonl", "-o", "out.jsonl"], "nowhere.jsonl"),
        (["fly"], "fly"),
    ],
)
def test_command_says_what_is_wrong_with_its_arguments(args: list[str], message: str) -> None:
    assert_polite(evenflow(*args), 2, message)


def test_command_says_how_to_get_a_model_when_offline_with_nothing_cached(tmp_path: Path) -> None:
    empty = str(tmp_path / "cache")
    result = evenflow("complete", "smollm2", "-p", "a", "--offline", EVENFLOW_CACHE=empty)
    assert_polite(result, 1, "evenflow pull smollm2")


@pytest.fixture(scope="module")
def completion() -> str:
    """What `evenflow complete` prints for PROMPT."""
    result = evenflow("complete", "smollm2", "-p", PROMPT, "--max-tokens", "8", *GREEDY, *SMALL)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


class TestComplete:
    pytestmark = model

    def test_prints_the_completion_alone(self, completion: str) -> None:
        assert "Paris" in completion
        assert PROMPT not in completion
        assert completion.endswith("\n")

    def test_prints_one_object_as_json_of_a_prompt_on_stdin(self, completion: str) -> None:
        result = evenflow(
            "complete", "smollm2", "-p", "-", "--json", "--max-tokens", "8", *GREEDY, *SMALL,
            stdin=PROMPT.encode(),
        )  # fmt: skip
        content = json.loads(result.stdout)
        assert content["text"] + "\n" == completion
        assert content["usage"]["completion_tokens"] == len(content["token_ids"]) == 8
        assert content["finish_reason"] == "length"
        assert content["ttft_s"] > 0

    def test_refuses_a_prompt_that_is_no_text(self) -> None:
        result = evenflow(
            "complete", "smollm2", "-p", "-", *SMALL,
            stdin=b"\xe9t\xe9", PYTHONIOENCODING="utf-8:strict",
        )  # fmt: skip
        assert_polite(result, 2, "the prompt cannot be encoded")

    def test_refuses_a_prompt_that_is_too_long(self) -> None:
        result = evenflow("complete", "smollm2", "-p", "-", *SMALL, stdin=b"word " * 600)
        assert_polite(result, 2, "--max-model-len")


class TestChat:
    pytestmark = model

    def test_answers_once_with_a_prompt(self) -> None:
        result = evenflow(
            "chat", "smollm2", "-p", "Say hello.", "--system", "Be brief.", "--max-tokens", "5",
            *GREEDY, *SMALL,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout.decode().strip()
        assert result.stdout.endswith(b"\n")

    def test_converses_over_pipes_until_told_to_leave(self) -> None:
        lines = ["What is 2+2?", "", "   ", "/clear", "What is 2+2?", "/what", "/exit", "never"]
        result = evenflow(
            "chat", "smollm2", "--max-tokens", "5", *GREEDY, *SMALL,
            stdin="\n".join(lines).encode(),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr.decode()
        answers = result.stdout.decode().splitlines()
        assert len(answers) == 2
        assert answers[0] == answers[1], "/clear left something behind"
        assert result.stderr.decode().count("/clear forgets") == 2

    def test_survives_lines_that_cannot_be_answered(self) -> None:
        lines = [b"word " * 600, b"\xe9t\xe9", b"What is 2+2?"]
        result = evenflow(
            "chat", "smollm2", "--max-tokens", "5", *GREEDY, *SMALL,
            stdin=b"\n".join(lines), PYTHONIOENCODING="utf-8:surrogateescape",
        )  # fmt: skip
        error = result.stderr.decode()
        assert result.returncode == 0, error
        assert len(result.stdout.decode().splitlines()) == 1
        assert error.count("/clear starts afresh") == 1
        assert error.count("the prompt cannot be encoded") == 1

    def test_talks_to_a_terminal_and_stops_an_answer_at_ctrl_c(self) -> None:
        """Ctrl-C ends the answer, not the conversation; Ctrl-D leaves."""
        with Terminal("chat", "smollm2", "--ignore-eos", "--max-tokens", "400", *SMALL) as terminal:
            terminal.wait_for(b"Ctrl-C stops an answer")
            terminal.type(b"Tell me a long story.\n")
            terminal.wait_for(b"Tell me a long story.", then_more=60)
            terminal.type(b"\x03")
            time.sleep(0.5)
            assert len(terminal.output) < 1200, "the answer went on"
            terminal.type(b"/help\n")
            terminal.wait_for(b"/help", then_more=40)
            terminal.type(b"\x04")
            assert terminal.process.wait(DEADLINE_S) == 0
        assert b"Traceback" not in terminal.output


class Terminal:
    """The command on a pseudo terminal."""

    def __init__(self, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.output = b""
        self.process = subprocess.Popen(
            [COMMAND, *args], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        os.set_blocking(self._master, False)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self._read()
        os.close(self._master)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, text: bytes, then_more: int = 0) -> None:
        """Wait for a text, and for so many bytes after it."""

        def is_there() -> bool:
            self._read()
            at = self.output.find(text)
            return at >= 0 and len(self.output) >= at + len(text) + then_more

        wait_for(is_there)

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self.output += data
        except OSError:  # nothing to read now, or the other side is closed
            return


def _take_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class TestRunBatch:
    pytestmark = model
    num_requests = 24

    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        input_path = tmp_path / "in.jsonl"
        with input_path.open("w") as lines:
            for number in range(self.num_requests):
                body = {"prompt": f"Fact {number}:", "max_tokens": 8, "temperature": 0}
                entry = {"custom_id": f"r{number}", "url": "/v1/completions", "body": body}
                lines.write(json.dumps(entry) + "\n")
            lines.write("not json\n")
        return input_path, tmp_path / "out.jsonl"

    def test_resumes_after_a_kill_without_losing_or_redoing_a_line(
        self, files: tuple[Path, Path]
    ) -> None:
        input_path, output_path = files
        args = ["run-batch", "smollm2", "-i", str(input_path), "-o", str(output_path), *SMALL]
        args += ["--max-num-seqs", "2"]
        process = subprocess.Popen([COMMAND, *args], stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: output_path.exists() and output_path.read_bytes().count(b"\n") >= 4)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed = output_path.read_bytes()
        assert killed.count(b"\n") < self.num_requests + 1, "it was over before the kill"

        result = evenflow(*args)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout == b""
        assert b"25 requests, 1 failed" in result.stderr
        resumed = output_path.read_bytes()
        assert resumed.startswith(killed[: killed.rfind(b"\n") + 1])
        entries = [json.loads(line) for line in resumed.splitlines()]
        assert sorted(entry["id"] for entry in entries) == sorted(
            f"batch_req_{number}" for number in range(1, self.num_requests + 2)
        )
        failed = [entry for entry in entries if entry["error"]]
        assert [entry["id"] for entry in failed] == [f"batch_req_{self.num_requests + 1}"]

        again = evenflow(*args)
        assert again.returncode == 0
        assert output_path.read_bytes() == resumed

    def test_refuses_an_output_file_of_something_else(self, files: tuple[Path, Path]) -> None:
        input_path, output_path = files
        output_path.write_text("dear diary")
        result = evenflow("run-batch", "smollm2", "-i", str(input_path), "-o", str(output_path))
        assert_polite(result, 2, "Name another output file")
        assert output_path.read_text() == "dear diary"


@pytest.mark.model
def test_pull_prints_where_the_model_lies() -> None:
    result = evenflow("pull", "smollm2")
    assert result.returncode == 0, result.stderr.decode()
    assert Path(result.stdout.decode().strip()).is_file()
