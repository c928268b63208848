"""A loopback stand-in for the W&B server: as much of its private protocol as runs of wandb 0.31 and saved views use,
and troubles."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4  # of the form that W&B takes for one
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class FakeRun:
    """What the server holds of one run.

    Attributes:
        created: variables of the first request that made it.
        lines: history rows by their line number, which the client gives; a line sent twice is stored once.
        rewritten: line numbers that were sent again with other content: rows of one start lie over those of another.
        files: uploaded files by name.
        exit_code: what the client said when it ended the run; None while it runs.
    """

    created: dict[str, Any]
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    rewritten: list[int] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.lines[number] for number in sorted(self.lines)]

    def keys(self, key: str) -> list[Any]:
        return [row[key] for row in self.rows if key in row]

    def stream(self, message: dict[str, Any]) -> None:
        sent = message.get("files", {})
        history = sent.get(HISTORY, {"offset": 0, "content": []})
        for number, line in enumerate(history["content"], start=history["offset"]):
            row = json.loads(line)
            if self.lines.get(number, row) != row:
                self.rewritten.append(number)
            self.lines[number] = row
        for line in sent.get(SUMMARY, {}).get("content", []):
            self.summary = json.loads(line)
        if message.get("complete"):
            self.exit_code = message["exitcode"]


class FakeServer:
    """Answers as the W&B server does, and keeps what it was sent.

    Attributes:
        runs: by id.
        tables: digests of the artifacts that logged tables come with; one content is one artifact.
        views: workspaces and reports by id, each as it was saved last.
        projects: names; a run makes its own.
        requests: how often each path, or GraphQL operation, was asked for.
        delay: seconds by which every answer is late; `release` lets the late ones go.
        status: HTTP status of every answer while it is set, e.g. 401 or 500.
        refused_path: only paths that hold this get that status.
        refused: GraphQL operations that are answered with an error.
    """

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.tables: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.projects: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.delay = 0.0
        self.status: int | None = None
        self.refused_path = ""
        self.refused: tuple[str, ...] = ()
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._port = 0
        self.open()
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def run(self) -> FakeRun:
        """The only run."""
        (run,) = self.runs.values()
        return run

    def open(self) -> None:
        """Listen; after `close` on the same port as before."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if fake.delay:
                    fake._released.wait(fake.delay)
                with fake._lock:
                    status, value = fake.answer(self.path, body)
                payload = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_PUT = do_CONNECT = serve  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                pass  # a client that left

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Go down: connections are refused from here on, what was kept stays."""
        self._server.shutdown()
        self._server.server_close()

    def release(self) -> None:
        """End every delay, also those that are being waited for."""
        self.delay = 0.0
        self._released.set()

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        operation = re.search(r"(?:query|mutation)\s+(\w+)", json.loads(body)["query"]) if path == "/graphql" else None
        name = operation[1] if operation else path
        self.requests[name] += 1
        if self.status is not None and self.refused_path in path:
            return self.status, {"errors": [{"message": f"the fake answers {self.status}"}]}
        if path == "/graphql":
            return 200, self.graphql(name, json.loads(body).get("variables") or {})
        if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            self.runs[stream[1]].stream(json.loads(body))
        elif upload := re.fullmatch(r"/upload/([^/]+)/(.+)", path):
            self.runs[upload[1]].files[upload[2]] = body
        return 200, {}

    def graphql(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        if name in self.refused:
            return {"errors": [{"message": f"the fake refuses {name}"}]}
        if name in ("Viewer", "GetDefaultEntity"):
            return {"data": {"viewer": {"id": "v", "entity": "lab", "username": "lab", "flags": "{}", "teams": {}}}}
        if name == "UpsertBucket":
            inserted = variables["name"] not in self.runs
            run = self.runs.setdefault(variables["name"], FakeRun(variables))
            self.projects.add(variables["project"])
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "lab"}}
            shown = {"id": "b", "name": variables["name"], "displayName": run.created.get("displayName")}
            counts = {"historyLineCount": len(run.lines), "sweepName": None}
            bucket = {**shown, "description": "", "config": "{}", **counts, "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": inserted}}}
        if name == "RunResumeStatus":
            run_name = variables["name"]
            return {"data": {"model": {"id": "p", "name": variables["project"], "bucket": self.resumable(run_name)}}}
        if name == "ServerFeaturesQuery":
            return {"data": {"serverInfo": {"features": []}}}
        if name == "CreateRunFiles":
            run_name = variables["run"]
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{run_name}/{f}"} for f in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        if "Artifact" in name:
            return self.artifact(name, variables)
        if name == "GetProjects":
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            edges = [{"node": self.project(project), "cursor": project} for project in sorted(self.projects)]
            return {"data": {"models": {"edges": edges, "pageInfo": page}}}
        if name == "CreateProject":
            self.projects.add(variables["input"]["name"])
            model = {"project": self.project(variables["input"]["name"]), "inserted": True}
            return {"data": {"upsertModel": {**model, "model": model["project"]}}}
        if name in ("UpsertView2", "upsertView"):
            return self.save(variables)
        return {"errors": [{"message": f"the fake knows nothing of {name}"}]}

    def artifact(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The artifact that a logged table comes with: made, sent in two files, committed; once for each content."""
        if name == "ArtifactType":
            return {"data": {"project": {"artifact": None}}}
        if name == "CreateArtifact":
            identity = variables["input"]["digest"]
            state = "COMMITTED" if identity in self.tables else "PENDING"
            made = {"id": identity, "state": state, "artifactSequence": {"latestArtifact": None}}
            return {"data": {"createArtifact": {"artifact": made}}}
        if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            key = name[0].lower() + name[1:]
            file = {"id": "f", "uploadUrl": f"{self.url}/artifacts/manifest", "uploadHeaders": []}
            return {"data": {key: {"artifactManifest": {"id": "m", "file": file}}}}
        if name == "CreateArtifactFiles":
            asked = variables["input"]["artifactFiles"]
            nodes = [
                {
                    "storagePath": file["name"],
                    "uploadUrl": f"{self.url}/artifacts/{file['artifactID']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
                for file in asked
            ]
            return {"data": {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}}
        if name == "CommitArtifact":
            self.tables.append(variables["artifactID"])
            return {"data": {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}}
        return {"errors": [{"message": f"the fake knows nothing of {name}"}]}

    def project(self, name: str) -> dict[str, Any]:
        """A project as the server describes it."""
        kind = {"__typename": "Project", "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
        return {**kind, "id": "p", "name": name, "entityName": "lab"}

    def save(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Keep a new view, or put it in the place of the one whose id it gives."""
        given = variables.get("id")
        if given is not None and given not in self.views:
            return {"errors": [{"message": f"view {given} not found"}]}
        if variables["projectName"] not in self.projects:
            return {"errors": [{"message": f"project {variables['projectName']} not found"}]}
        identity = given or f"view{len(self.views)}"
        view = {**variables, "id": identity, "project": self.project(variables["projectName"])}
        self.views[identity] = view
        return {"data": {"upsertView": {"view": {**view, "updatedAt": None}, "inserted": given is None}}}

    def resumable(self, name: str) -> dict[str, Any] | None:
        """A run as a client sees it that wants to go on with it."""
        run = self.runs.get(name)
        if run is None:
            return None
        tail = [json.dumps(row) for row in run.rows[-1:]]
        return {
            "id": "b",
            "name": name,
            "displayName": run.created.get("displayName"),
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(run.summary),
            "config": run.created.get("config") or "{}",
            "tags": run.created.get("tags") or [],
            "wandbConfig": '{"t": 1}',
        }
