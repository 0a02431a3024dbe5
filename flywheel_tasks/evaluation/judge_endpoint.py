"""A judge behind an OpenAI-compatible ``/chat/completions``."""

import logging
import re
import time
from collections.abc import Sequence

import httpx

from flywheel_tasks.chat.server_answers import REFUSES_ONE, asked_wait, asks_again, said
from flywheel_tasks.evaluation.judging import SYSTEM, TRIAL, JudgeError

_log = logging.getLogger(__name__)
_ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
# Pauses of 1, 2, 4 … seconds, together a minute, as limits of requests are mostly by the minute.
_ATTEMPTS, _PAUSE_SECONDS, _TIMEOUT_SECONDS = 7, 1.0, 60.0


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
        self.identity = "endpoint"  # what answers behind a name is the server's affair
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
                f"judge){said(response)}"
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
        if response.status_code not in REFUSES_ONE:
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
                time.sleep(max(asked, _PAUSE_SECONDS * 2 ** (attempt - 1)))
            try:
                response = self._client.post("chat/completions", json=body)
            except httpx.HTTPError as error:
                problem, asked = type(error).__name__, 0.0
                continue
            if not asks_again(response.status_code):
                return response
            problem, asked = f"status {response.status_code}{said(response)}", asked_wait(response)
        raise JudgeError(f"judge {self.name} does not answer ({problem}; {_ATTEMPTS} attempts)")

    def _refusal(self, response: httpx.Response) -> JudgeError:
        return JudgeError(f"judge {self.name}: status {response.status_code}{said(response)}")


def _read(response: httpx.Response) -> float | None:
    """1 or 0; None for anything but a yes or a no: no content (a filter, a model that reasons first), "not sure"."""
    try:
        answer = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    found = _ANSWER.match(answer) if isinstance(answer, str) else None
    return None if found is None else float(found.group(1).lower() == "yes")
