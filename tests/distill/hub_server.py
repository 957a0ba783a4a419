"""A server on loopback that answers what the Hub's own client asks for: one repository, real files, real headers."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "a" * 40
ID = "some/model"


class Handler(BaseHTTPRequestHandler):
    """Answers for `server.folder`; `server.refusal` is the Hub's error code for its files, or None."""

    def log_message(self, *arguments) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        files = {one.name: one for one in self.server.folder.iterdir()}
        if path == f"/api/models/{ID}/revision/{REVISION}":
            found = {"id": ID, "sha": REVISION, "siblings": [{"rfilename": name} for name in files]}
            return self.send(200, json.dumps(found).encode(), body)
        if path == f"/api/models/{ID}/tree/{REVISION}":
            found = [
                {"type": "file", "path": name, "size": one.stat().st_size, "oid": digest(one)}
                for name, one in files.items()
            ]
            return self.send(200, json.dumps(found).encode(), body)
        prefix = f"/{ID}/resolve/{REVISION}/"
        if path.startswith(prefix) and self.server.refusal:
            return self.send(403, b"", body, {"X-Error-Code": self.server.refusal})
        if path.startswith(prefix) and path.removeprefix(prefix) in files:
            one = files[path.removeprefix(prefix)]
            headers = {"X-Repo-Commit": REVISION, "ETag": f'"{digest(one)}"'}
            return self.send(200, one.read_bytes(), body, headers)
        known = path.startswith(f"/api/models/{ID}/")
        return self.send(404, b"", body, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    def send(self, status: int, content: bytes, body: bool, headers=()) -> None:
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving(folder: Path, refusal: str | None = None):
    """Serve a folder as some/model; yields the server, whose `url` is the endpoint and `asked` what was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.refusal, server.asked = folder, refusal, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
