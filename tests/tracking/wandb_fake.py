"""A loopback stand-in for the W&B server: enough of its private protocol for one online run (wandb 0.31)."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer:
    """Remembers what was sent: GraphQL variables of runs, streamed rows, uploaded files, exit code."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.exit_code: int | None = None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def answer(self, value: Any) -> None:
                payload = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def do_POST(self) -> None:
                body = self.body()
                if self.path == "/graphql":
                    self.answer(fake.graphql(json.loads(body)))
                elif self.path.endswith("/file_stream"):
                    fake.stream(json.loads(body))
                    self.answer({})
                else:
                    self.answer({})

            def do_PUT(self) -> None:
                fake.files[self.path.removeprefix("/upload/")] = self.body()
                self.answer({})

            def do_GET(self) -> None:
                self.answer({})

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name, variables = match.group(1) if match else "", request.get("variables") or {}
        if name == "Viewer":
            return {"data": {"viewer": {"id": "v", "entity": "lab", "username": "lab", "flags": "{}", "teams": {}}}}
        if name == "UpsertBucket":
            self.runs.append(variables)
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "lab"}}
            shown = {"id": "b", "name": variables["name"], "displayName": variables.get("displayName")}
            bucket = {**shown, "description": "", "config": "{}", "sweepName": None, "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}}
        if name == "ServerFeaturesQuery":
            return {"data": {"serverInfo": {"features": []}}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        return {"errors": [{"message": f"the fake knows nothing of {name}"}]}

    def stream(self, message: dict[str, Any]) -> None:
        for line in message.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            self.rows.append(json.loads(line))
        if message.get("complete"):
            self.exit_code = message.get("exitcode")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
