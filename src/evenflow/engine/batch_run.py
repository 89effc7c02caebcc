"""Answers what is missing of a batch, with an engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from evenflow.core.errors import GenerationError, InvalidRequestError
from evenflow.engine.batch_file import BatchFile, BatchLine
from evenflow.engine.llm import LLM
from evenflow.engine.openai import ParsedRequest, parse_request, response_body
from evenflow.engine.outputs import CompletionOutput, RequestOutput
from evenflow.tokenization.tool_calls import ToolCalling


@dataclass(slots=True)
class _Running:
    line: BatchLine
    parsed: ParsedRequest
    outputs: list[RequestOutput]

    @property
    def finished(self) -> bool:
        return all(output.finished for output in self.outputs)

    @property
    def error(self) -> str | None:
        """Why a completion failed, if one did."""
        completions = (done for output in self.outputs for done in output.outputs)
        return next((done.error for done in completions if done.error), None)


class BatchRun:
    """Answers a batch's lines.

    Args:
        batch: its files.
        llm: the model.
        unix_time: the wall clock, in seconds, for the `created` fields.
    """

    def __init__(self, batch: BatchFile, llm: LLM, unix_time: Callable[[], float]) -> None:
        self._batch = batch
        self._llm = llm
        self._unix_time = unix_time
        self._calling = ToolCalling(llm.tokenizer)
        self._running: dict[str, tuple[_Running, RequestOutput]] = {}

    def answer(self) -> Iterator[int]:
        """Answer what is missing; yield the number of each input line once it is on disk."""
        running = self._running
        lines = self._batch.missing()
        # Enough waiting requests to fill the next steps, and no more: the file may be huge.
        most_running = 2 * self._llm.runtime.config.scheduler.max_num_seqs
        with self._batch:
            exhausted = False
            while running or not exhausted:
                while not exhausted and len(running) < most_running:
                    line = next(lines, None)
                    if line is None:
                        exhausted = True
                    elif not self._start(line):
                        yield line.number
                for delta in self._llm.engine.step():
                    if delta.request_id not in running:
                        continue
                    job, output = running[delta.request_id]
                    output.add(delta)
                    if output.finished:
                        del running[delta.request_id]
                    if job.finished:
                        self._finish(job)
                        yield job.line.number

    def _start(self, line: BatchLine) -> bool:
        """Queue one line, or write at once why it cannot be."""
        try:
            url, body = line.parse()
            parsed = parse_request(url, body, self._llm.tokenizer, self._calling)
            outputs = _queue(self._llm, line.request_id, parsed)
        except InvalidRequestError as error:
            self._batch.fail(line, 400, error)
            return False
        job = _Running(line, parsed, outputs)
        self._running |= {output.request_id: (job, output) for output in outputs}
        return True

    def _finish(self, job: _Running) -> None:
        if job.error is not None:
            self._batch.fail(job.line, 500, GenerationError(job.error))
            return
        body = response_body(
            job.parsed,
            job.outputs,
            request_id=job.line.request_id,
            model=self._llm.runtime.config.model.model,
            created=int(self._unix_time()),
            tokenizer=self._llm.tokenizer,
        )
        self._batch.answer(job.line, body)


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
