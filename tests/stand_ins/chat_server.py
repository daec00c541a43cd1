"""A chat endpoint on this machine that answers as a script says.

with serving(Script((429, {}, {}), said("A red circle."))) as spec:        # "http://127.0.0.1:PORT/v1#m"
    ChatEndpoint.at(spec).ask([...])
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time


class Script:
    """What a server does with each question; `seen` is what it was asked."""

    def __init__(self, *replies, models=("m",)):
        self.replies, self.models, self.seen, self.auth, self.times = list(replies), models, [], [], []
        self.lock = threading.Lock()
        self.bytes_at_a_time, self.pause_seconds = 1 << 20, 0.0

    def next(self, asked):
        with self.lock:
            self.seen.append(asked)
            self.times.append(time.monotonic())
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply(asked) if callable(reply) else reply


def said(text="A red circle moves left.", **more):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return 200, {"choices": [choice], "usage": {"completion_tokens": 6}}, {}


@contextlib.contextmanager
def serving(script):
    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, status, body, headers):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for start in range(0, len(body), script.bytes_at_a_time):
                    self.wfile.write(body[start : start + script.bytes_at_a_time])
                    self.wfile.flush()
                    time.sleep(script.pause_seconds)

        def do_GET(self):
            script.auth.append(self.headers.get("Authorization"))
            self.reply(200, {"data": [{"id": name} for name in script.models]}, {})

        def do_POST(self):
            script.auth.append(self.headers.get("Authorization"))
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*script.next(asked))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1#m"
        server.shutdown()
