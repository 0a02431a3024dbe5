"""A stand-in for a Label Studio server: a real HTTP server with the documented paths, parameters and answers.

It is not Label Studio. It holds projects and tasks in memory, checks tokens of both kinds, validates what is imported
with Label Studio's own LabelInterface, and exports what ``annotate`` enters, in the format JSON.
"""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, urlsplit

from label_studio_sdk.label_interface import LabelInterface

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(kind, number=0):
    """An unsigned token of the shape that Label Studio gives out."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"token_type": kind, "exp": int(time.time()) + 300, "n": number}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


class StandIn:
    """The server's state.

    Args:
        background: import and export as the editions do that answer with a job to poll.
    """

    def __init__(self, background=False):
        self.personal = jwt("refresh")
        self.background = background
        self.access, self.refreshed = None, 0
        self.projects, self.tasks, self.jobs = {}, {}, {}
        self.failures, self.requests, self.numbers = [], [], count(1)
        self.lost = []  # answers in place of those to POST requests that were carried out

    def annotate(self, task_id, annotation):
        """Enter an annotation for one of our tasks."""
        task = next(row for row in self.tasks.values() if row["data"]["task_id"] == task_id)
        task["annotations"].append(annotation)

    def authorized(self, header):
        return header == f"Token {LEGACY}" or (self.access is not None and header == f"Bearer {self.access}")

    def refresh(self, body):
        if body.get("refresh") != self.personal:
            return 401, {"detail": "Token is invalid", "code": "token_not_valid"}
        self.refreshed += 1
        self.access = jwt("access", self.refreshed)
        return 200, {"access": self.access}

    def _page(self, rows, query):
        page, size = int(query.get("page", 1)), int(query.get("page_size", 30))
        return rows[(page - 1) * size : page * size], page * size < len(rows)

    def list_projects(self, query):
        wanted = query.get("title", "").lower()
        rows = [row for row in self.projects.values() if wanted in row["title"].lower()]
        shown, more = self._page(rows, query)
        return 200, {"count": len(rows), "next": "http://next" if more else None, "results": shown}

    def create_project(self, body):
        if not 3 <= len(body["title"]) <= 50:
            return 400, {"validation_errors": {"title": ["between 3 and 50 characters"]}}
        LabelInterface(body["label_config"]).validate()
        number = len(self.projects) + 1
        self.projects[number] = {"id": number, **body}
        return 201, self.projects[number]

    def list_tasks(self, query):
        rows = [row for row in self.tasks.values() if row["project"] == int(query["project"])]
        shown, _ = self._page(rows, query)
        shown = [{**row, "total_annotations": len(row["annotations"])} for row in shown]
        if not shown and int(query.get("page", 1)) > 1:
            return 404, {"detail": "Invalid page."}
        return 200, {"tasks": shown, "total": len(rows), "total_annotations": 0, "total_predictions": 0}

    def import_tasks(self, project, body):
        interface = LabelInterface(self.projects[project]["label_config"])
        for row in body:
            if not interface.validate_task(row):
                return 400, {"detail": "task has no value for a variable of the interface"}
            number = next(self.numbers)
            self.tasks[number] = {"id": number, "project": project, "data": row["data"], "annotations": []}
        if self.background:
            return 201, self._job()
        return 201, {"task_count": len(body), "annotation_count": 0, "predictions_count": 0, "duration": 0.1}

    def delete_task(self, number):
        return (204, None) if self.tasks.pop(number, None) else (404, {"detail": "Not found."})

    def _job(self):
        self.jobs[len(self.jobs) + 1] = 2
        return {"import": len(self.jobs)}

    def job(self, number):
        self.jobs[number] -= 1
        return 200, {
            "id": number,
            "status": "completed" if self.jobs[number] <= 0 else "in_progress",
            "error": None,
        }

    def export(self, project):
        rows = [row for row in self.tasks.values() if row["project"] == project]
        return 200, [{**row, "drafts": [], "predictions": [], "meta": {}} for row in rows]

    def answer(self, method, path, query, body):
        """Status and document for a request that may be made."""
        parts = [part for part in path.split("/") if part][1:]
        match method, parts:
            case "GET", ["projects"]:
                return self.list_projects(query)
            case "POST", ["projects"]:
                return self.create_project(body)
            case "GET", ["tasks"]:
                return self.list_tasks(query)
            case "DELETE", ["tasks", number]:
                return self.delete_task(int(number))
            case "POST", ["projects", project, "import"]:
                return self.import_tasks(int(project), body)
            case "GET", ["projects", _, "imports" | "exports", number]:
                return self.job(int(number))
            case "GET", ["projects", project, "export"]:
                assert query == {"exportType": "JSON", "download_all_tasks": "true"}
                return (404, {"detail": "use exports"}) if self.background else self.export(int(project))
            case "POST", ["projects", _, "exports"]:
                return 201, {"id": self._job()["import"], "title": body["title"]}
            case "GET", ["projects", project, "exports", _, "download"]:
                return self.export(int(project))
        return 404, {"detail": "Not found."}


def serve(stand_in):
    """Start the server; returns it. Its address is ``http://127.0.0.1:<server_port>``."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def handle_any(self):
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            stand_in.requests.append((self.command, url.path))
            if stand_in.failures:
                status, document = stand_in.failures.pop(0), {"detail": "not now"}
            elif url.path == "/api/token/refresh/":
                status, document = stand_in.refresh(body)
            elif not stand_in.authorized(self.headers.get("Authorization", "")):
                status, document = 401, {"detail": "Invalid token."}
            else:
                status, document = stand_in.answer(self.command, url.path, query, body)
                if self.command == "POST" and stand_in.lost:
                    status, document = stand_in.lost.pop(0), {"detail": "done, but the answer is lost"}
            payload = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_DELETE = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
