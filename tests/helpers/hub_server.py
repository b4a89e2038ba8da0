"""A Hub in a thread: as much of its protocol as the client needs to make, fill and read repositories.

It believes nothing: an LFS object must have the content that its name says, and a commit that names a missing object,
or another parent than the last commit, is refused. Git is a list of commits, each with the files of its tree.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".png", ".bin")
BLOCK = 2**16


@dataclass
class Repository:
    """Commits of a model's repository: of main, and of pull requests by number; each has an id and a tree."""

    private: bool
    commits: list[tuple[str, dict]] = field(default_factory=list)
    pull_requests: list[tuple[str, dict]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def tree(self, revision: str) -> tuple[str, dict] | None:
        """Id and files (name → bytes, or an LFS object's (sha256, size)) of a revision."""
        if revision == "main":
            return self.commits[-1]
        if match := re.fullmatch(r"refs/pr/(\d+)", revision):
            return self.pull_requests[int(match[1]) - 1]
        return next((each for each in self.commits + self.pull_requests if each[0] == revision), None)


@dataclass
class Fault:
    """What to answer instead, `times` times: a status, or None to hang up in the middle of the request."""

    method: str
    path: str
    status: int | None
    times: int
    after: bool  # the request has been carried out


class HubServer:
    """
    Args:
        tokens: and whose they are.

    Attributes:
        endpoint: URL of the server, for HF_ENDPOINT.
        repositories: by `user/name`.
        objects: LFS objects by their sha256.
        requests: method, path and length of the body of all requests so far.
    """

    def __init__(self, tokens: dict[str, str]):
        self.tokens, self.repositories, self.objects = tokens, {}, {}
        self.requests: list[tuple[str, str, int]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"  # another host, which gets no token

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, status: int | None, times: int = 1000, after: bool = False) -> None:
        """Let requests whose path matches fail; with `after`, once they have been carried out."""
        self.faults.append(Fault(method, path, status, times, after))

    def fault(self, method: str, path: str, after: bool) -> Fault | None:
        with self.lock:
            for each in self.faults:
                if each.times and (each.method, each.after) == (method, after) and re.search(each.path, path):
                    each.times -= 1
                    return each
        return None

    def create(self, repo_id: str, private: bool = False, files: dict[str, bytes] | None = None) -> Repository:
        repository = self.repositories[repo_id] = Repository(private)
        self.commit(repository, {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}, "initial commit")
        return repository

    def commit(self, repository: Repository, tree: dict, message: str, pull_request: bool = False) -> str:
        history = repository.pull_requests if pull_request else repository.commits
        seed = json.dumps([message, len(history), pull_request, sorted((name, repr(c)) for name, c in tree.items())])
        history.append((hashlib.sha1(seed.encode()).hexdigest(), tree))
        repository.messages.append(message)
        return history[-1][0]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Content of all files of a repository."""
        _, tree = self.repositories[repo_id].tree(revision)
        return {name: self.content(stored) for name, stored in tree.items()}

    def content(self, stored: bytes | tuple[str, int]) -> bytes:
        return stored if isinstance(stored, bytes) else self.objects[stored[0]]


def in_a_process(hub: HubServer, folder: Path, *command) -> subprocess.CompletedProcess:
    """Run a script in a folder, whose Hub is that one."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_right", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self):
        length = int(self.headers.get("Content-Length", 0))
        self.path = unquote(self.path)
        self.hub.requests.append((self.command, self.path, length))
        fault = self.hub.fault(self.command, self.path, after=False)
        if fault is not None and fault.status is None:
            self.rfile.read(min(length // 2, BLOCK))
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length)
        try:
            if fault is not None:
                raise HubError(fault.status, "a fault")
            status, headers, content = self.dispatch(urlsplit(self.path), body)
            if (fault := self.hub.fault(self.command, self.path, after=True)) is not None:
                if fault.status is not None:
                    raise HubError(fault.status, "a fault")
                self.close_connection = True
                self.connection.close()
                return
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            status, content = error.status, json.dumps({"error": error.message}).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def dispatch(self, url, body: bytes):
        query = parse_qs(url.query)
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and self.command in method.split("|"):
                out = action(self, *match.groups(), body=body, query=query)
                return (200, {"Content-Type": "application/json"}, json.dumps(out).encode()) if _is_json(out) else out
        raise HubError(404, f"no {self.command} {url.path}")

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        user, repository = self.user(), self.hub.repositories.get(repo_id)
        owner = repo_id.split("/")[0]
        if repository is None or (repository.private and user != owner):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != owner:
            raise HubError(403, f"You don't have the rights to write to {repo_id}")
        return repository

    def revision(self, repo_id: str, revision: str) -> tuple[str, dict]:
        found = self.repository(repo_id).tree(revision)
        if found is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def whoami(self, body, query):
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": []}

    def validate(self, body, query):
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        data = yaml.safe_load(match[1]) if match else {}
        licence = data.get("license", "mit")
        if licence not in ("apache-2.0", "mit", "other"):
            errors = [{"message": f'"license" must be one of those that are known, not {licence}'}]
            return 400, {}, json.dumps({"errors": errors, "warnings": []}).encode()
        return {"errors": [], "warnings": []}

    def create(self, body, query):
        asked, user = json.loads(body), self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        owner = asked.get("organization") or user
        repo_id = f"{owner}/{asked['name']}"
        if owner != user:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if repo_id in self.hub.repositories:
            error = {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{repo_id}"}
            return 409, {}, json.dumps(error).encode()
        self.hub.create(repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id, "name": repo_id}

    def info(self, repo_id, revision=None, *, body, query):
        commit, tree = self.revision(repo_id, revision or "main")
        siblings = [{"rfilename": name} for name in sorted(tree)]
        private = self.hub.repositories[repo_id].private
        return {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": commit, "private": private, "siblings": siblings}

    def tree(self, repo_id, revision, *, body, query):
        _, tree = self.revision(repo_id, revision)
        out = []
        for name, stored in sorted(tree.items()):
            content = self.hub.content(stored)
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
            if not isinstance(stored, bytes):
                entry["lfs"] = {"oid": stored[0], "size": stored[1], "pointerSize": 130}
            out.append(entry)
        return out

    def preupload(self, repo_id, revision, *, body, query):
        self.repository(repo_id, write="create_pr" not in query)
        _, tree = self.revision(repo_id, revision)
        out = []
        for each in json.loads(body)["files"]:
            stored, lfs = tree.get(each["path"]), each["path"].endswith(LFS_SUFFIXES)
            oid = None if stored is None else git_hash(stored) if isinstance(stored, bytes) else stored[0]
            mode = "lfs" if lfs else "regular"
            out.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": out}

    def batch(self, repo_id, *, body, query):
        self.repository(repo_id)
        out = []
        for each in json.loads(body)["objects"]:
            if each["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/lfs/{repo_id}/{each['oid']}"
                each["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            out.append(each)
        return {"transfer": "basic", "objects": out}

    def upload(self, repo_id, oid, *, body, query):
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, f"The content is not that of {oid}")
        self.hub.objects[oid] = body
        return {}

    def verify(self, repo_id, oid, *, body, query):
        self.check_object(oid, json.loads(body)["size"])
        return {}

    def check_object(self, oid: str, size: int) -> None:
        if len(self.hub.objects.get(oid, b"")) != size:
            raise HubError(400, f"There is no LFS object {oid} of {size} bytes")

    def commit(self, repo_id, revision, *, body, query):
        pull_request = "create_pr" in query
        repository = self.repository(repo_id, write=not pull_request)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        with self.hub.lock:
            last, tree = repository.tree(revision)
            if header.get("parentCommit") not in (None, last) and not pull_request:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(tree)
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.check_object(value["oid"], value["size"])
                    tree[value["path"]] = (value["oid"], value["size"])
                elif line["key"] == "deletedFile":
                    if tree.pop(value["path"], None) is None:
                        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                else:
                    raise HubError(400, f"unknown operation {line['key']}")
            commit = self.hub.commit(repository, tree, header["summary"], pull_request)
        number = len(repository.pull_requests)
        out = {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{commit}"}
        return out | {"pullRequestUrl": f"{self.hub.endpoint}/{repo_id}/discussions/{number}" if pull_request else None}

    def resolve(self, repo_id, revision, name, *, body, query):
        commit, tree = self.revision(repo_id, revision)
        if name not in tree:
            raise HubError(404, "Entry not found", "EntryNotFound")
        stored = tree[name]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if isinstance(stored, bytes):
            return self.serve(stored, headers | {"ETag": f'"{git_hash(stored)}"'})
        headers |= {"X-Linked-Etag": f'"{stored[0]}"', "X-Linked-Size": stored[1]}
        return 302, headers | {"Location": f"{self.hub.cdn}/{stored[0]}"}, b""

    def cdn(self, oid, *, body, query):
        if "Authorization" in self.headers:
            raise HubError(400, "A token was sent to the CDN")
        return self.serve(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def serve(self, content: bytes, headers: dict):
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return 206, headers, content[first : last + 1]
        return 200, headers, content


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_json(out) -> bool:
    return isinstance(out, dict | list)


REPO = r"([^/]+/[^/]+)"
REVISION = r"(refs/pr/\d+|[^/]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", "/api/repos/create", Handler.create),
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", Handler.info),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}", Handler.tree),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", f"/lfs/{REPO}/([0-9a-f]+)", Handler.upload),
    ("POST", f"/lfs/{REPO}/([0-9a-f]+)/verify", Handler.verify),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("GET|HEAD", f"/{REPO}/resolve/{REVISION}/(.+)", Handler.resolve),
    ("GET|HEAD", "/cdn/([0-9a-f]+)", Handler.cdn),
)
