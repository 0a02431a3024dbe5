"""A judge behind an OpenAI-compatible ``/chat/completions``."""

import logging
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from flywheel_tasks.evaluation.judging import SYSTEM, TRIAL, JudgeError

_log = logging.getLogger(__name__)
_ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
# Pauses of 1, 2, 4 … seconds, together a minute, as limits of requests are mostly by the minute.
_ATTEMPTS, _PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _TIMEOUT_SECONDS = 7, 1.0, 60.0, 60.0
_AGAIN = frozenset({408, 409, 425, 429})  # and whatever is the server's fault
# What a server says of one prompt: that its filter lets it not through, or that it is too long.
_OF_THE_PROMPT = frozenset({400, 413, 422})
_SHOWN = 200  # characters of a server's words


class EndpointJudge:
    """It answers in a word, so 1 or 0."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        """Nothing is sent yet.

        Args:
            url: base URL, such as ``http://host:8000/v1``.
            model: its name there.
            key: bearer token, or None.
        """
        self.name = model
        self._key = key
        self._told = False
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url.rstrip("/") + "/", headers=headers, timeout=_TIMEOUT_SECONDS)

    def try_out(self) -> None:
        """Ask one harmless question: a wrong URL, key or name shows before anything is made to be judged.

        Raises:
            JudgeError: it refuses, does not answer, or answers neither yes nor no.
        """
        response = self._post(TRIAL)
        if response.status_code != 200:
            raise self._refusal(response)
        if _read(response) is None:
            raise JudgeError(
                f"judge {self.name} answers “{TRIAL}” with neither yes nor no (a model that reasons first cannot "
                f"judge): {self._said(response)}"
            )

    def yes(self, prompts: Sequence[str]) -> list[float | None]:
        """See :class:`flywheel_tasks.evaluation.judging.Judging`; a prompt that the server does not take has no answer.

        Raises:
            JudgeError: it refuses whatever the prompt is, or does not answer after several attempts.
        """
        return [self._ask(prompt) for prompt in prompts]

    def _ask(self, prompt: str) -> float | None:
        response = self._post(prompt)
        if response.status_code == 200:
            return _read(response)
        if response.status_code not in _OF_THE_PROMPT:
            raise self._refusal(response)
        if not self._told:
            self._told = True
            _log.warning("%s; prompts like it have no answer", self._refusal(response))
        return None

    def _post(self, prompt: str) -> httpx.Response:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        body = {"model": self.name, "messages": messages, "temperature": 0, "max_tokens": 3}
        problem, asked = "", 0.0
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(min(_LONGEST_PAUSE_SECONDS, max(asked, _PAUSE_SECONDS * 2 ** (attempt - 1))))
            try:
                response = self._client.post("chat/completions", json=body)
            except httpx.HTTPError as error:
                problem, asked = type(error).__name__, 0.0
                continue
            if response.status_code not in _AGAIN and response.status_code < 500:
                return response
            problem, asked = f"status {response.status_code}{self._said(response)}", _retry_after(response)
        raise JudgeError(f"judge {self.name} does not answer ({problem}; {_ATTEMPTS} attempts)")

    def _refusal(self, response: httpx.Response) -> JudgeError:
        return JudgeError(f"judge {self.name}: status {response.status_code}{self._said(response)}")

    def _said(self, response: httpx.Response) -> str:
        """The server's words: the message of an error, else the body's beginning; the key never."""
        try:
            words = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            words = response.text
        line = " ".join(str(words).split())
        if self._key:
            line = line.replace(self._key, "[key]")
        return f": {line[:_SHOWN]}" if line else ""


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, as a number or until a date; 0 where it does not say."""
    said = response.headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        until = parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    return (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _read(response: httpx.Response) -> float | None:
    """1 or 0; None for anything but a yes or a no: no content (a filter, a model that reasons first), "not sure"."""
    try:
        answer = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    found = _ANSWER.match(answer) if isinstance(answer, str) else None
    return None if found is None else float(found.group(1).lower() == "yes")
