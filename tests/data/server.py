"""A web server on this machine that serves files as those of evaluation campaigns do, and breaks off when told to."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server:
    """Serves the files of a folder, with ranges.

    Attributes:
        url: of the folder.
        requests: (path, Range header) of each.
        break_after: for each path, after how many bytes the next answers end too early.
        busy: for each path, the errors that come before any answer, last first.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: dict[str, list[int]] = {}
        self.busy: dict[str, list[int]] = {}
        self.version = "1"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.requests.append((self.path, asked))
                if server.busy.get(self.path):
                    self.send_error(server.busy[self.path].pop())
                    return
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                etag = f'"{server.version}"' if server.version.isdigit() else f'W/"{server.version}"'
                start = 0
                if asked and self.headers.get("If-Range") in (None, etag):
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                    if start >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(content)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.send_header("ETag", etag)
                self.end_headers()
                breaks = server.break_after.get(self.path)
                end = start + breaks.pop(0) if breaks else len(content)
                self.wfile.write(content[start:end])

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
