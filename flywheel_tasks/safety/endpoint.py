"""A classifier behind HTTP: ``POST {"texts": [...]}`` is answered by ``{"scores": [{category: score}, ...]}``."""

import os
import time
from collections.abc import Sequence
from typing import Any

import httpx

from flywheel_tasks.chat.server_answers import asks_again
from flywheel_tasks.safety.classifier import SafetyError, Scores

TOKEN = "FLYWHEEL_SAFETY_TOKEN"  # noqa: S105 (the name of a variable)
_PAUSE = 0.2  # seconds before the first repeat; doubled each time


class HttpClassifier:
    """Asks an endpoint in batches.

    Server errors, refused connections, timeouts and "not now" are tried again, soon, however long the server would have
    it wait: the gateway asks within a request of a user's. Anything else is final. What a server says beside its status
    is not shown, for it may repeat the texts. The bearer token, if there is one, comes from ``FLYWHEEL_SAFETY_TOKEN``.

    Args:
        url: of the endpoint.
        timeout: seconds for one answer.
        retries: further attempts after the first one.
        batch_size: texts in one request.
    """

    def __init__(self, url: str, timeout: float, retries: int, batch_size: int) -> None:
        self._url, self._retries, self._batch_size = url, retries, batch_size
        token = os.environ.get(TOKEN)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)

    def classify(self, texts: Sequence[str]) -> Sequence[Scores]:
        """See :class:`flywheel_tasks.safety.classifier.SafetyClassifier`."""
        found: list[Scores] = []
        for start in range(0, len(texts), self._batch_size):
            batch = list(texts[start : start + self._batch_size])
            scores = self._ask(batch)
            if not isinstance(scores, list) or len(scores) != len(batch):
                raise SafetyError(
                    f"{self._url}: expected a list `scores` of {len(batch)} items, one for each text"
                )
            found += scores
        return found

    def _ask(self, texts: list[str]) -> Any:
        problem = ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(_PAUSE * 2 ** (attempt - 1))
            try:
                answer = self._client.post(self._url, json={"texts": texts})
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if asks_again(answer.status_code):
                problem = f"status {answer.status_code}"
                continue
            return self._scores(answer)
        raise SafetyError(
            f"{self._url}: no answer from the safety classifier in {self._retries + 1} attempts ({problem}); "
            "nothing goes on unjudged"
        )

    def _scores(self, answer: httpx.Response) -> Any:
        if answer.status_code != 200:
            raise SafetyError(f"{self._url}: the safety classifier answered with status {answer.status_code}")
        try:
            return answer.json()["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise SafetyError(f'{self._url}: the answer is not {{"scores": [...]}}') from error
