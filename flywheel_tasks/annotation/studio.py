"""Label Studio's REST API, as far as handing out tasks and fetching annotations needs it (labelstud.io/guide/api).

The token comes from the environment variable LABEL_STUDIO_API_KEY. A personal access token is a refresh token: it is
exchanged for short-lived access tokens at ``/api/token/refresh/``. A legacy token is sent as it is.
"""

import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx

from flywheel_tasks.settings import LabelStudio

TOKEN = "LABEL_STUDIO_API_KEY"  # noqa: S105 - the variable's name
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_NOT_DONE = frozenset({425, 429, 503})  # those of them after which a request was surely not carried out
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_ATTEMPTS = 5
_PAGE = 100
_IMPORT_ROWS = 500
_POLLS, _POLL_SECONDS = 120, 2.0


class StudioError(RuntimeError):
    """Label Studio cannot be reached, refuses a request, or answers what is not documented."""


class UnsureError(StudioError):
    """A request that must not be sent twice may have been carried out: look before it is sent again."""


class Studio:
    """A Label Studio server.

    Args:
        settings: its address and how long a request may take.
        wait: called with seconds between attempts and polls.

    Raises:
        StudioError: the token is not set.
    """

    def __init__(self, settings: LabelStudio, wait: Callable[[float], None] = time.sleep) -> None:
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise StudioError(f"{settings.url}: the environment variable {TOKEN} is not set")
        self._token, self._personal = token, token.count(".") == 2  # a personal token is a JWT
        self._access: str | None = None
        self._wait = wait
        self.url = settings.url.rstrip("/")
        self._client = httpx.Client(base_url=self.url + "/", timeout=settings.timeout_seconds)

    def __enter__(self) -> "Studio":
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    # Requests

    def _authorization(self) -> str:
        if not self._personal:
            return f"Token {self._token}"
        if self._access is None:
            answer = self._attempts("POST", "api/token/refresh/", None, json={"refresh": self._token})
            if answer.status_code != 200:
                raise StudioError(
                    f"{self.url}: the personal access token is refused (HTTP {answer.status_code})"
                )
            self._access = str(_json(answer, self.url)["access"])
        return f"Bearer {self._access}"

    def _attempts(
        self, method: str, path: str, authorization: str | None, *, once: bool = False, **options: Any
    ) -> httpx.Response:
        """Send a request until the server gives an answer that another attempt would not change.

        Raises:
            UnsureError: ``once``, and it may have been carried out without an answer.
            StudioError: no such answer after several attempts.
        """
        headers = {} if authorization is None else {"Authorization": authorization}
        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.pause(attempt)
            try:
                answer = self._client.request(method, path, headers=headers, **options)
            except httpx.TransportError as error:
                problem, unsure = f"{type(error).__name__}: {error}", not isinstance(error, _NEVER_SENT)
            else:
                if answer.status_code not in _AGAIN:
                    return answer
                problem, unsure = f"HTTP {answer.status_code}", answer.status_code not in _NOT_DONE
            if once and unsure:
                raise UnsureError(f"{self.url}/{path}: {problem}; it may have been carried out")
        raise StudioError(f"{self.url}/{path}: {problem}, {_ATTEMPTS} attempts")

    def pause(self, attempt: int) -> None:
        """Wait before another attempt, the longer the later: 1 s, 2 s, 4 s, at most 30."""
        self._wait(min(30.0, 2.0**attempt))

    def _send(self, method: str, path: str, *, accept: Sequence[int] = (), **options: Any) -> httpx.Response:
        answer = self._attempts(method, path, self._authorization(), **options)
        if answer.status_code == 401 and self._personal:  # the access token has expired
            self._access = None
            answer = self._attempts(method, path, self._authorization(), **options)
        if answer.is_success or answer.status_code in accept:
            return answer
        raise StudioError(f"{self.url}/{path}: {method} gives HTTP {answer.status_code}: {answer.text[:300]}")

    # Projects and tasks

    def projects(self, begin: str) -> list[dict[str, Any]]:
        """The projects whose titles begin with a text."""
        found: list[dict[str, Any]] = []
        page = 1
        while True:
            options = {"title": begin, "page": page, "page_size": _PAGE}  # anywhere in the title, in any case
            document = _json(self._send("GET", "api/projects/", params=options), self.url)
            found += [row for row in document["results"] if row["title"].startswith(begin)]
            if not document.get("next"):
                return found
            page += 1

    def project(self, title: str) -> dict[str, Any] | None:
        """The project of exactly this title, or None.

        Raises:
            StudioError: several projects have it.
        """
        found = [row for row in self.projects(title) if row["title"] == title]
        if len(found) > 1:
            raise StudioError(f"{self.url}: {len(found)} projects are called {title!r}; keep one")
        return found[0] if found else None

    def create_project(self, title: str, interface: str, reviews: int, description: str) -> dict[str, Any]:
        """Create a project whose tasks each get ``reviews`` annotations.

        Raises:
            UnsureError: nobody knows whether it is there.
            StudioError: the server refuses.
        """
        body = {
            "title": title,
            "description": description,
            "label_config": interface,
            "maximum_annotations": reviews,
        }
        project: dict[str, Any] = _json(self._send("POST", "api/projects/", once=True, json=body), self.url)
        return project

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """The tasks of a project, page by page."""
        page, seen = 1, 0
        while True:
            options = {"project": project, "page": page, "page_size": _PAGE}
            answer = self._send("GET", "api/tasks/", params=options, accept=(404,))
            if answer.status_code == 404 and page > 1:  # a page after the last one
                return
            document = _json(answer, self.url)
            if "tasks" not in document:
                raise StudioError(f"{self.url}: the list of tasks of project {project} has no tasks")
            yield from document["tasks"]
            seen += len(document["tasks"])
            if not document["tasks"] or seen >= int(document.get("total", seen)):
                return
            page += 1

    def delete_task(self, number: int) -> None:
        """Delete a task with its annotations; one that is gone already is no error."""
        self._send("DELETE", f"api/tasks/{number}/", accept=(404,))

    def import_tasks(self, project: int, data: Sequence[dict[str, Any]]) -> None:
        """Import tasks; returns when all are in.

        Raises:
            UnsureError: nobody knows whether they arrived.
            StudioError: the server refuses or does not finish.
        """
        for start in range(0, len(data), _IMPORT_ROWS):
            rows = [{"data": row} for row in data[start : start + _IMPORT_ROWS]]
            path = f"api/projects/{project}/import"
            answer = _json(self._send("POST", path, once=True, json=rows), self.url)
            if answer.get("import") is not None:  # editions that import in the background
                self._poll(f"api/projects/{project}/imports/{answer['import']}/")
            elif answer.get("task_count") != len(rows):
                raise StudioError(
                    f"{self.url}: project {project} took {answer.get('task_count')} of {len(rows)} tasks"
                )

    def export(self, project: int) -> bytes:
        """All tasks of a project with their annotations, in the format JSON.

        Editions without the easy export answer 404; they get a snapshot, which is converted and downloaded.
        """
        options = {"exportType": "JSON", "download_all_tasks": "true"}
        answer = self._send("GET", f"api/projects/{project}/export", params=options, accept=(404,))
        if answer.status_code == 404:
            snapshots = f"api/projects/{project}/exports/"
            made = _json(self._send("POST", snapshots, json={"title": "flywheel"}), self.url)
            self._poll(f"{snapshots}{made['id']}")
            answer = self._send(
                "GET",
                f"{snapshots}{made['id']}/download",
                params={"exportType": "JSON"},
                follow_redirects=True,
            )
        return answer.content

    def _poll(self, path: str) -> None:
        for _ in range(_POLLS):
            document = _json(self._send("GET", path), self.url)
            if document.get("status") == "completed":
                return
            if document.get("status") == "failed":
                raise StudioError(f"{self.url}/{path}: failed: {str(document.get('error'))[:300]}")
            self._wait(_POLL_SECONDS)
        raise StudioError(f"{self.url}/{path}: not completed after {_POLLS * _POLL_SECONDS:.0f} seconds")


def _json(answer: httpx.Response, url: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise StudioError(f"{url}: {answer.request.url.path} does not answer in JSON") from error


def same_interface(first: str, second: str) -> bool:
    """Whether two configurations are the same but for layout."""
    return ET.canonicalize(first, strip_text=True) == ET.canonicalize(second, strip_text=True)
