"""Answers a JSONL file of requests, and can be killed and started again at any time.

Every input line gets one output line, written whole or not at all: a torn last line, which only a
killed process leaves, is cut off on the next start. Output lines carry the number of their input
line, so that a resumed run knows what is missing even when custom ids are absent or repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from evenflow.core.errors import GenerationError, InvalidRequestError
from evenflow.engine.llm import LLM
from evenflow.engine.openai import ParsedRequest, error_body, parse_request, response_body
from evenflow.engine.outputs import CompletionOutput, RequestOutput
from evenflow.tokenization.tool_calls import ToolCalling

_ID_PREFIX = "batch_req_"
_LINE_START = b'{"id": "' + _ID_PREFIX.encode()
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What undecodable bytes become when the input file is read."""


@dataclass(slots=True)
class _Running:
    line_number: int
    custom_id: str | None
    parsed: ParsedRequest
    outputs: list[RequestOutput]

    @property
    def finished(self) -> bool:
        return all(output.finished for output in self.outputs)


class BatchRun:
    """One input file and its output file.

    Args:
        input_path: JSONL of {"custom_id", "method", "url", "body"}.
        output_path: JSONL of {"id", "custom_id", "response", "error"}; continued if it exists.
        unix_time: the wall clock, in seconds, for the `created` fields.

    Raises:
        InvalidRequestError: the output file cannot be written or belongs to another input file.

    Attributes:
        num_lines: requests in the input file (blank lines do not count).
        num_done: those that have an output line.
        num_failed: those of them with an error.
    """

    def __init__(self, input_path: Path, output_path: Path, unix_time: Callable[[], float]) -> None:
        self._unix_time = unix_time
        self._input_path = input_path
        self._output_path = output_path
        self.num_failed = 0
        self.num_lines = 0
        custom_ids = self._read_output()
        self._done = set(custom_ids)
        for number, text in self._read_input():
            self.num_lines += 1
            if number in custom_ids and custom_ids.pop(number) != _custom_id(text):
                raise self._foreign_output()
        if custom_ids:
            raise self._foreign_output()

    @property
    def num_done(self) -> int:
        """Requests that have an output line."""
        return len(self._done)

    @property
    def num_missing(self) -> int:
        """Requests that still need one."""
        return self.num_lines - self.num_done

    def answer(self, llm: LLM) -> Iterator[int]:
        """Answer what is missing; yield the number of each input line once it is on disk."""
        running: dict[str, tuple[_Running, RequestOutput]] = {}
        self._calling = ToolCalling(llm.tokenizer)
        lines = ((n, text) for n, text in self._read_input() if n not in self._done)
        # Enough waiting requests to fill the next steps, and no more: the file may be huge.
        most_running = 2 * llm.runtime.config.scheduler.max_num_seqs
        # Halves of surrogate pairs, which a custom id may hold, have no UTF-8 but a JSON escape.
        with self._output_path.open("a", encoding="utf-8", errors="backslashreplace") as sink:
            exhausted = False
            while running or not exhausted:
                while not exhausted and len(running) < most_running:
                    line = next(lines, None)
                    if line is None:
                        exhausted = True
                    elif (failed := self._start(llm, *line, running)) is not None:
                        yield self._write(sink, line[0], failed)
                for delta in llm.engine.step():
                    if delta.request_id not in running:
                        continue
                    job, output = running[delta.request_id]
                    output.add(delta)
                    if output.finished:
                        del running[delta.request_id]
                    if job.finished:
                        yield self._write(sink, job.line_number, self._answered(llm, job))

    def _start(
        self,
        llm: LLM,
        line_number: int,
        text: str,
        running: dict[str, tuple[_Running, RequestOutput]],
    ) -> dict[str, Any] | None:
        """Queue one line; return its output line at once if it cannot be."""
        request_id = f"{_ID_PREFIX}{line_number}"
        custom_id = _custom_id(text)
        try:
            entry = _parse_line(text)
            _check_envelope(entry, text)
            parsed = parse_request(
                entry.get("url", ""), entry.get("body"), llm.tokenizer, self._calling
            )
            if parsed.stream:
                raise InvalidRequestError("a batch cannot be streamed", param="stream")
            outputs = _queue(llm, request_id, parsed)
        except InvalidRequestError as error:
            return _line(
                line_number, custom_id, 400, {"error": error_body(error)}, error_body(error)
            )
        job = _Running(line_number, custom_id, parsed, outputs)
        running |= {output.request_id: (job, output) for output in outputs}
        return None

    def _answered(self, llm: LLM, job: _Running) -> dict[str, Any]:
        errors = [
            completion.error
            for output in job.outputs
            for completion in output.outputs
            if completion.error
        ]
        if errors:
            error = {
                "message": errors[0],
                "type": "server_error",
                "param": None,
                "code": GenerationError.code,
            }
            return _line(job.line_number, job.custom_id, 500, {"error": error}, error)
        body = response_body(
            job.parsed,
            job.outputs,
            request_id=f"{_ID_PREFIX}{job.line_number}",
            model=llm.runtime.config.model.model,
            created=int(self._unix_time()),
            tokenizer=llm.tokenizer,
        )
        return _line(job.line_number, job.custom_id, 200, body, None)

    def _write(self, sink: IO[str], line_number: int, content: dict[str, Any]) -> int:
        sink.write(json.dumps(content, ensure_ascii=False) + "\n")
        sink.flush()
        self._done.add(line_number)
        self.num_failed += content["error"] is not None
        return line_number

    def _read_input(self) -> Iterator[tuple[int, str]]:
        """Yield (line number from 1, text) of every line that is not blank."""
        with self._input_path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, text in enumerate(lines, start=1):
                if text.strip():
                    yield number, text

    def _read_output(self) -> dict[int, object]:
        """Cut off a torn last line; return the custom id of each answered input line."""
        custom_ids: dict[int, object] = {}
        try:
            with self._output_path.open("a+b") as file:
                file.seek(0)
                sound_bytes = 0
                for line in file:
                    if not line.endswith(b"\n"):
                        if not _is_torn(line):
                            raise self._foreign_output()
                        break
                    sound_bytes += len(line)
                    number, custom_ids[number] = self._read_line(line)
                file.truncate(sound_bytes)
        except OSError as error:
            raise InvalidRequestError(
                f"{self._output_path} cannot be written", param="output_file", why=str(error)
            ) from error
        return custom_ids

    def _read_line(self, line: bytes) -> tuple[int, object]:
        """Return input line number and custom id of an output line, and count it if it failed."""
        try:
            entry = json.loads(line)
            number = int(entry["id"].removeprefix(_ID_PREFIX))
            custom_id = entry["custom_id"]
            self.num_failed += entry["error"] is not None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._foreign_output() from None
        return number, custom_id

    def _foreign_output(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"{self._output_path} holds something else than results of {self._input_path}",
            param="output_file",
            fix="Name another output file",
        )


def _queue(llm: LLM, request_id: str, parsed: ParsedRequest) -> list[RequestOutput]:
    """Queue every prompt of a request, or none of them."""
    outputs: list[RequestOutput] = []
    grammar = llm.runtime.compile_grammar(parsed.params)
    try:
        for position, prompt in enumerate(parsed.prompts):
            own_id = f"{request_id}.{position}" if position else request_id
            llm.engine.add_request(
                own_id,
                prompt.token_ids,
                parsed.params,
                grammar=grammar,
                priority=parsed.priority,
                cache_salt=parsed.cache_salt,
            )
            completions = [CompletionOutput(index) for index in range(parsed.params.n)]
            outputs.append(RequestOutput(own_id, prompt.text, prompt.token_ids, completions))
    except InvalidRequestError:
        for output in outputs:
            llm.engine.abort(output.request_id)
        raise
    return outputs


def _is_torn(line: bytes) -> bool:
    """Return whether a last line without an end may be the beginning of an output line."""
    return line.startswith(_LINE_START) or _LINE_START.startswith(line)


def _parse_line(text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("the line is not JSON", why=str(error)) from None
    if not isinstance(entry, dict):
        raise InvalidRequestError("the line is not a JSON object")
    return entry


def _custom_id(text: str) -> str | None:
    """Return the custom id of an input line, None if there is none that can be read."""
    try:
        custom_id = _parse_line(text).get("custom_id")
    except InvalidRequestError:
        return None
    return custom_id if isinstance(custom_id, str) else None


def _check_envelope(entry: dict[str, Any], text: str) -> None:
    """Check what surrounds the body of a request."""
    if _NOT_UTF8.search(text):
        raise InvalidRequestError("the line is not UTF-8")
    if not isinstance(entry.get("custom_id"), str | None):
        raise InvalidRequestError("custom_id must be a string", param="custom_id")
    if entry.get("method", "POST") != "POST":
        raise InvalidRequestError("method must be POST", param="method")


def _line(
    line_number: int,
    custom_id: str | None,
    status_code: int,
    body: dict[str, Any],
    error: dict[str, Any] | None,
) -> dict[str, Any]:
    request_id = f"{_ID_PREFIX}{line_number}"
    return {
        "id": request_id,
        "custom_id": custom_id,
        "response": {"status_code": status_code, "request_id": request_id, "body": body},
        "error": error,
    }
