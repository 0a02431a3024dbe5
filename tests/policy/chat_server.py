"""A real HTTP server that speaks the chat-completions format; its replies are made up."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Answers ``<last user turn> #<seed>``; what else it does is set by its attributes.

    ``failures``: status, or status and headers, of the next answers; ``refuse``: status of a last turn's.
    """

    def __init__(self):
        self.failures, self.bodies, self.headers = [], [], []
        self.ignores_n, self.finish, self.document = False, "stop", None
        self.refuse = {}
        self.running = self.most = 0
        self.delay = 0.0
        self._lock = threading.Lock()

    def answer(self, body, headers):
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(headers))
            self.running += 1
            self.most = max(self.most, self.running)
            failure = (
                self.failures.pop(0) if self.failures else self.refuse.get(body["messages"][-1]["content"])
            )
        time.sleep(self.delay)
        with self._lock:
            self.running -= 1
        if failure:
            return failure, {"error": {"message": "it is too long, or I am busy"}}
        if self.document is not None:
            return 200, self.document
        count = 1 if self.ignores_n else body["n"]
        said = body["messages"][-1]["content"]
        choices = [
            {
                "index": k,
                "message": {"role": "assistant", "content": f" {said} #{body['seed']}.{k}! And then "},
                "finish_reason": self.finish,
            }
            for k in range(count)
        ]
        return 200, {"id": "x", "object": "chat.completion", "model": body["model"], "choices": choices}


@contextmanager
def chat_server() -> Iterator[Server]:
    """A :class:`Server` at its ``url``."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                status, document = 404, {}
            else:
                status, document = state.answer(body, self.headers)
            payload = document if isinstance(document, bytes) else json.dumps(document).encode()
            status, headers = status if isinstance(status, tuple) else (status, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield state
    http.shutdown()
    http.server_close()
