"""A JSONL file of requests and its file of answers, which can be killed at any time.

Every input line gets one output line, written whole or not at all: a torn last line, which only a
killed process leaves, is cut off on the next start. Output lines carry the number of their input
line, so that a resumed run knows what is missing even when custom ids are absent or repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from evenflow.core.errors import EvenflowError, InvalidRequestError
from evenflow.engine.openai import error_body

_ID_PREFIX = "batch_req_"
_LINE_START = b'{"id": "' + _ID_PREFIX.encode()
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What undecodable bytes become when the input file is read."""
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
"""Many programs, Python's `splitlines` among them, take these for the end of a line too."""


@dataclass(slots=True, frozen=True)
class BatchLine:
    """A line of the input file.

    Attributes:
        number: from 1, blank lines included.
        text: as it stands there.
    """

    number: int
    text: str

    @property
    def request_id(self) -> str:
        """The id of its request and of its answer."""
        return f"{_ID_PREFIX}{self.number}"

    @property
    def custom_id(self) -> str | None:
        """The custom id, None if there is none that can be read."""
        try:
            custom_id = _parse_line(self.text).get("custom_id")
        except InvalidRequestError:
            return None
        return custom_id if isinstance(custom_id, str) else None

    def parse(self) -> tuple[object, object]:
        """Return url and body.

        Raises:
            InvalidRequestError: the line is no request of a batch.
        """
        entry = _parse_line(self.text)
        if _NOT_UTF8.search(self.text):
            raise InvalidRequestError("the line is not UTF-8")
        if not isinstance(entry.get("custom_id"), str | None):
            raise InvalidRequestError("custom_id must be a string", param="custom_id")
        if entry.get("method", "POST") != "POST":
            raise InvalidRequestError("method must be POST", param="method")
        body = entry.get("body")
        if isinstance(body, dict) and body.get("stream"):
            raise InvalidRequestError("a batch cannot be streamed", param="stream")
        return entry.get("url", ""), body


class BatchFile:
    """One input file and its output file. Enter it to write.

    Args:
        input_path: JSONL of {"custom_id", "method", "url", "body"}.
        output_path: JSONL of {"id", "custom_id", "response", "error"}; continued if it exists.

    Raises:
        InvalidRequestError: the output file cannot be written or belongs to another input file.

    Attributes:
        num_lines: requests in the input file (blank lines do not count).
        num_done: those that have an output line.
        num_failed: those of them with an error.
        longest_line: characters of the longest line of the input file.
    """

    def __init__(self, input_path: Path, output_path: Path) -> None:
        self._input_path = input_path
        self._output_path = output_path
        self._sink: IO[str] | None = None
        self.num_failed = 0
        self.num_lines = 0
        self.longest_line = 0
        custom_ids = self._read_output()
        self._done = set(custom_ids)
        for line in self._read_input():
            self.num_lines += 1
            self.longest_line = max(self.longest_line, len(line.text))
            if line.number in custom_ids and custom_ids.pop(line.number) != line.custom_id:
                raise self._foreign_output()
        if custom_ids:
            raise self._foreign_output()

    def __enter__(self) -> Self:
        # Halves of surrogate pairs, which a custom id may hold, have no UTF-8 but a JSON escape.
        self._sink = self._output_path.open("a", encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    @property
    def num_done(self) -> int:
        """Requests that have an output line."""
        return len(self._done)

    @property
    def num_missing(self) -> int:
        """Requests that still need one."""
        return self.num_lines - self.num_done

    def missing(self) -> Iterator[BatchLine]:
        """Yield the lines that have no answer yet."""
        return (line for line in self._read_input() if line.number not in self._done)

    def answer(self, line: BatchLine, body: dict[str, Any]) -> None:
        """Write the answer to a line."""
        self._write(line, 200, body, None)

    def fail(self, line: BatchLine, status_code: int, error: EvenflowError) -> None:
        """Write why there is no answer to a line."""
        self._write(line, status_code, {"error": error_body(error)}, error_body(error))

    def _write(
        self, line: BatchLine, status_code: int, body: dict[str, Any], error: dict[str, Any] | None
    ) -> None:
        assert self._sink is not None, "enter the batch file before writing"
        content = {
            "id": line.request_id,
            "custom_id": line.custom_id,
            "response": {
                "status_code": status_code,
                "request_id": line.request_id,
                "body": body,
            },
            "error": error,
        }
        text = json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)
        self._sink.write(text + "\n")
        self._sink.flush()
        self._done.add(line.number)
        self.num_failed += error is not None

    def _read_input(self) -> Iterator[BatchLine]:
        """Yield every line that is not blank."""
        with self._input_path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, text in enumerate(lines, start=1):
                if text.strip():
                    yield BatchLine(number, text)

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
