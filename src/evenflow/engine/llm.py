"""The Python API: a model and what to do with it."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evenflow.config import EvenflowConfig, load_config
from evenflow.core.errors import GenerationError, InvalidRequestError
from evenflow.core.pooling import PoolingParams, embedding_entries
from evenflow.core.sampling import SamplingParams
from evenflow.engine.build import Runtime, build_runtime
from evenflow.engine.embedding import EmbeddingService
from evenflow.engine.outputs import CompletionOutput, Delta, RequestOutput
from evenflow.models.progress import Progress as LoadProgress
from evenflow.models.sentence import SentenceEncoder
from evenflow.tokenization.sentence_tokenizer import SentenceTokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
Params = SamplingParams | PoolingParams


class LLM:
    """A model, loaded and ready.

    Args:
        model: a short name, a path, a `.gguf` file or a Hugging Face id.
        config: a whole configuration; `model` and `settings` are then taken from it.
        progress: told how far fetching and preparing the model are.
        settings: any option of `docs/configuration.md` by its name, such as `max_num_seqs=8`.

    Raises:
        EvenflowError: a setting is wrong, the model cannot be found or does not fit.
    """

    def __init__(
        self,
        model: str = "smollm2",
        *,
        config: EvenflowConfig | None = None,
        progress: LoadProgress | None = None,
        **settings: object,
    ) -> None:
        if config is None:
            config = load_config({"model": model, **settings}).config
        self._runtime: Runtime = build_runtime(config, progress=progress)
        self.engine = self._runtime.engine
        self.tokenizer = self._runtime.tokenizer
        self._ids = (f"req-{number}" for number in itertools.count())
        self._inbox: dict[str, list[Delta]] = {}

    def close(self) -> None:
        """Give up the files of the disk tier, for others to use; nothing runs after this."""
        self._runtime.close()

    @property
    def runtime(self) -> Runtime:
        """The engine with everything it was built from."""
        return self._runtime

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        priority: int = 0,
    ) -> list[RequestOutput]:
        """Complete prompts, all at once, and return the results in their order.

        Args:
            prompts: one prompt or several; each a text or a list of token ids.
            sampling_params: for all prompts, or one for each.
            progress: show a progress bar on stderr.
            priority: lower is earlier, under the priority policy.
        """
        batch = _as_prompts(prompts)
        return self._finish(self._add(batch, sampling_params, priority), progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        priority: int = 0,
    ) -> list[RequestOutput]:
        """Answer conversations, all at once, through the model's chat template.

        Args:
            messages: one conversation (a list of {"role", "content"}) or several.
            sampling_params: for all conversations, or one for each.
            progress: show a progress bar on stderr.
            priority: lower is earlier, under the priority policy.
        """
        batch = [self.render_chat(conversation) for conversation in _as_conversations(messages)]
        return self._finish(self._add(batch, sampling_params, priority), progress)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
    ) -> Generator[tuple[int, Delta]]:
        """Complete prompts and yield (index of the prompt, what was added) as it comes.

        Nothing runs before the first item is asked for; leaving the iterator early aborts what
        still runs.
        """
        yield from self._stream(self._add(_as_prompts(prompts), sampling_params, priority))

    def stream_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
    ) -> Generator[tuple[int, Delta]]:
        """Answer conversations and yield (index of the conversation, what was added).

        Starts and ends as `stream` does.
        """
        batch = [self.render_chat(conversation) for conversation in _as_conversations(messages)]
        yield from self._stream(self._add(batch, sampling_params, priority))

    def embed(
        self,
        texts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        priority: int = 0,
    ) -> list[list[float]]:
        """Return an embedding for each text, by the sentence model if one is configured.

        Without one, an embedding is the mean of the language model's last hidden states. These are
        requests like any others, and what runs besides goes on meanwhile.

        Args:
            texts: one text or several; each a text or a list of token ids.
            pooling_params: how vectors become embeddings; scaled to length 1 by default.
            priority: lower is earlier, under the priority policy.

        Raises:
            ContextLengthError: a text is too long, with the numbers.
            GenerationError: the model computed NaN or infinity, or the request was aborted.
        """
        params = pooling_params or PoolingParams()
        batch = _as_prompts(texts)
        if self._runtime.sentence is not None and self._runtime.sentence_tokenizer is not None:
            return _embed_sentences(
                self._runtime.sentence, self._runtime.sentence_tokenizer, batch, params
            )
        outputs = self._add(batch, params, priority)
        embeddings: dict[int, list[float]] = {}
        for position, delta in self._stream(outputs):
            if delta.embedding is None:
                raise GenerationError(
                    "a text was not embedded", why=delta.error or "it was aborted"
                )
            embeddings[position] = embedding_entries(delta.embedding)
        return [embeddings[position] for position in range(len(batch))]

    def render_chat(self, messages: Sequence[Message], **template_args: Any) -> list[int]:
        """Return the token ids of a conversation up to where the model's answer begins."""
        return self.tokenizer.encode_chat(messages, **template_args)

    def _add(
        self,
        prompts: Sequence[Prompt],
        sampling_params: Params | Sequence[Params] | None,
        priority: int,
    ) -> list[RequestOutput]:
        if sampling_params is None:
            sampling_params = SamplingParams()
        if isinstance(sampling_params, SamplingParams | PoolingParams):
            sampling_params = [sampling_params] * len(prompts)
        if len(sampling_params) != len(prompts):
            raise InvalidRequestError(
                f"{len(prompts)} prompts came with {len(sampling_params)} sampling parameters",
                param="sampling_params",
                fix="Pass one for all prompts or one for each",
            )
        outputs: list[RequestOutput] = []
        try:
            for prompt, params in zip(prompts, sampling_params, strict=True):
                text = prompt if isinstance(prompt, str) else None
                ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
                request_id = next(self._ids)
                grammar = self._runtime.compile_grammar(params)
                self.engine.add_request(request_id, ids, params, grammar=grammar, priority=priority)
                self._inbox[request_id] = []
                num_completions = params.n if isinstance(params, SamplingParams) else 1
                completions = [CompletionOutput(index) for index in range(num_completions)]
                outputs.append(RequestOutput(request_id, text, ids, completions))
        except BaseException:
            self._abandon(outputs)
            raise
        return outputs

    def _stream(self, outputs: list[RequestOutput]) -> Generator[tuple[int, Delta]]:
        """Step until `outputs` are complete. Deltas of other streams wait in their inbox."""
        try:
            while not all(output.finished for output in outputs):
                if not any(self._inbox[output.request_id] for output in outputs):
                    for delta in self.engine.step():
                        if delta.request_id in self._inbox:
                            self._inbox[delta.request_id].append(delta)
                for position, output in enumerate(outputs):
                    arrived, self._inbox[output.request_id] = self._inbox[output.request_id], []
                    for delta in arrived:
                        output.add(delta)
                        yield position, delta
        finally:
            self._abandon(outputs)

    def _finish(self, outputs: list[RequestOutput], show_progress: bool) -> list[RequestOutput]:
        total = sum(len(output.outputs) for output in outputs)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, console=Console(stderr=True), disable=not show_progress) as bar:
            task = bar.add_task("completions", total=total, rate="")
            num_tokens = 0
            for _, delta in self._stream(outputs):
                num_tokens += delta.token_id is not None
                if show_progress:
                    elapsed = bar.tasks[task].elapsed or 0.0
                    rate = f"{num_tokens / elapsed:.0f} tokens/s" if elapsed else ""
                    bar.update(task, advance=delta.finish_reason is not None, rate=rate)
        return outputs

    def _abandon(self, outputs: list[RequestOutput]) -> None:
        """Forget requests; what still runs of them is aborted."""
        for output in outputs:
            self._inbox.pop(output.request_id, None)
            self.engine.abort(output.request_id)


def _embed_sentences(
    encoder: SentenceEncoder,
    tokenizer: SentenceTokenizer,
    texts: Sequence[Prompt],
    params: PoolingParams,
) -> list[list[float]]:
    if not texts:
        return []
    service = EmbeddingService(encoder)
    ids = [tokenizer.encode(text) if isinstance(text, str) else list(text) for text in texts]
    service.submit(0, ids, params)
    embeddings: list[list[float]] = [[]] * len(texts)
    while service.has_work:
        for _, index, embedding in service.step():
            embeddings[index] = embedding_entries(embedding)
    return embeddings


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]  # a single prompt of token ids
    return list(prompts)  # type: ignore[arg-type]


def _as_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    if messages and isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]
