"""A local chat completions server with scripted responses, for tests of the client.

with serving(Script((429, {}, {}), completion("A red circle."))) as spec:        # "http://127.0.0.1:PORT/v1#m"
    ChatEndpoint.at(spec).complete([...])
with serving_pieces(lambda headers: [b"HTTP/1.1 200 OK\\r\\n", b"Content-Length: 1"]) as spec:       # bytes as they are
    ChatEndpoint.at(spec).complete([...])
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
import time


class Script:
    """Replies of the server, in order, the last one for ever; `requests` are the bodies it received.

    A reply is (status, body, headers), or a function of the request's body that returns one.
    """

    def __init__(self, *replies, models=("m",)):
        self.replies, self.models, self.requests, self.auth, self.times = list(replies), models, [], [], []
        self.lock = threading.Lock()
        self.bytes_at_a_time, self.pause_seconds = 1 << 20, 0.0

    def next(self, body):
        with self.lock:
            self.requests.append(body)
            self.times.append(time.monotonic())
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply(body) if callable(reply) else reply


def completion(text="A red circle moves left.", **more):
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
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*script.next(body))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1#m"
        server.shutdown()


@contextlib.contextmanager
def serving_pieces(pieces, pause_seconds=0.0):
    """Sends what `pieces` yields for the headers of a request, with a pause after each, then closes the connection."""
    stop = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            head = b""
            while line := self.rfile.readline().strip():
                head += line + b"\n"
            headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
            self.rfile.read(int(headers.get("Content-Length", 0)))
            with contextlib.suppress(OSError):
                for piece in pieces(headers):
                    self.wfile.write(piece)
                    if stop.wait(pause_seconds):
                        return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1#m"
        stop.set()
        server.shutdown()
