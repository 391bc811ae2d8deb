"""An S3 store, and a proxy before it that fails as `PUT /fault` says: `KIND FIRST COUNT`."""

import http.client
import logging
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer


class _Plan:
    """Which requests fail, and how."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.set("none", 0, 0)

    def set(self, kind: str, first: int, count: int) -> None:
        with self._lock:
            self._kind, self._first, self._count, self._seen = kind, first, count, 0

    def next(self) -> str:
        """The fault of the next request, or "none"."""
        with self._lock:
            self._seen += 1
            fails = self._first <= self._seen < self._first + self._count
            return self._kind if fails else "none"


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plan = _Plan()
    port = 0

    def _answer(self) -> None:
        body = self._body()
        if self.path == "/fault":
            kind, first, count = body.decode().split()
            self.plan.set(kind, int(first), int(count))
            self._send(200, {}, b"")
            return
        fault = self.plan.next()
        if fault == "reset":
            self.close_connection = True
            return
        if fault.isdigit():
            self._send(int(fault), {}, b"<Error><Code>Fault</Code></Error>")
            return
        if fault == "slow":
            time.sleep(2)
        status, headers, content = self._forwarded(body)
        if fault == "garbage" and content:
            content = bytes(byte ^ 1 for byte in content)
        if fault == "half":
            self.close_connection = True
            self._send(status, headers, content, cut=True)
        else:
            self._send(status, headers, content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailing headers
            pass
        return b"".join(parts)

    def _forwarded(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        chunked = "Transfer-Encoding" in self.headers
        sent = iter([body] if body else []) if chunked else body
        connection.request(
            self.command, self.path, sent, dict(self.headers.items()), encode_chunked=chunked
        )
        response = connection.getresponse()
        headers = {
            name: value
            for name, value in response.getheaders()
            if name.lower() not in ("transfer-encoding", "connection", "date", "server")
        }
        return response.status, headers, response.read()

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        own = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", own or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    _Proxy.port = store.get_host_and_port()[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
