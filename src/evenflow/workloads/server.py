"""What the load tool asks a server before the load starts: is it there, its model, token counts.

Knows: /v1/models, /tokenize, and how to ask for one token.
Does not know: the load.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from evenflow.core.errors import EvenflowError

_TIMEOUT_S = 30.0
_RETRY_S = 0.2


class ServerError(EvenflowError):
    """The server under test does not answer, or not with what is needed."""

    code = "server_unusable"


class Server:
    """A server that speaks OpenAI's API.

    Args:
        base_url: without the /v1.
        headers: sent with every request, the API key among them.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = headers

    def wait_until_ready(
        self, path: str, model: str | None, *, is_chat: bool, timeout_s: float
    ) -> None:
        """Return when the server has answered a request for one token.

        A server may list its model long before the model can answer.

        Args:
            path: the endpoint to ask.
            model: the model to ask; None for the first listed.
            is_chat: the endpoint takes messages.
            timeout_s: how long to go on asking.

        Raises:
            ServerError: it does not within `timeout_s`.
        """
        messages = [{"role": "user", "content": "Hi"}]
        body = {"messages": messages} if is_chat else {"prompt": "Hi"}
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                self._fetch(path, {"model": model or self.model_id(), "max_tokens": 1, **body})
                return
            except ServerError:
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(_RETRY_S)

    def model_id(self) -> str:
        """Return the first model the server lists.

        Raises:
            ServerError: it lists none.
        """
        try:
            return str(self._fetch("/v1/models")["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(
                f"{self._base_url}/v1/models lists no model", fix="Name one with --model"
            ) from error

    def count_tokens(self, model: str, text: str) -> int:
        """Return the number of tokens of a text.

        Raises:
            ServerError: the server has no /tokenize.
        """
        answer = self._fetch("/tokenize", {"model": model, "prompt": text})
        try:
            return int(answer["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self._base_url}/tokenize returns no count") from error

    def _fetch(self, path: str, body: dict[str, Any] | None = None) -> Any:
        url = self._base_url + path
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                return json.load(response)
        except (OSError, ValueError) as error:
            raise ServerError(
                f"{url} does not answer as expected",
                why=str(error),
                fix=""
                if isinstance(error, urllib.error.HTTPError)
                else "Start the server first, or point --base-url (--host, --port) at it",
            ) from error
