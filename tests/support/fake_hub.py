"""A Hugging Face Hub on loopback for `push_to_hub` and `from_pretrained`, with history, permissions and faults.

Use it inside one process (`huggingface_hub` must not have been imported yet) or for a child:

    with FakeHub() as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(home)})

Every file is a regular one, so clients never ask for LFS or Xet storage. Standard library only.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit


def blob_id(content: bytes) -> str:
    """git's hash of a file's content, which the Hub uses as ETag."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Branches are lists of commits, oldest first; a commit has all files of its tree."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    def commit(self, branch: str, title: str, changes: dict[str, bytes | None]) -> Commit:
        """Adds a commit: new content by path, None deletes (a path ending in "/" deletes the folder)."""
        history = self.branches.setdefault(branch, [])
        files = dict(history[-1].files) if history else {}
        for path, content in changes.items():
            if content is not None:
                files[path] = content
            elif path.endswith("/"):
                files = {name: kept for name, kept in files.items() if not name.startswith(path)}
            else:
                files.pop(path, None)
        parent = history[-1].sha if history else ""
        tree = "".join(f"{blob_id(content)} {name}\n" for name, content in sorted(files.items()))
        made = Commit(hashlib.sha1(f"{parent}\n{branch}\n{title}\n{tree}".encode()).hexdigest(), title, files)
        history.append(made)
        return made

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or a hash."""
        if revision in self.branches:
            return self.branches[revision][-1]
        if revision in self.tags:
            return self.tags[revision]
        return next((c for history in self.branches.values() for c in history if c.sha == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"][-1].files


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches `pattern`.

    Args:
        status: answer with this code.
        cut: send this fraction of the body with the full Content-Length, then close.
        shrink: send this fraction of the body with its own Content-Length.
        delay: seconds to wait first.
    """

    pattern: str
    status: int | None = None
    cut: float | None = None
    shrink: float | None = None
    delay: float = 0.0
    times: int = 1


class FakeHub:
    """The server. `repos` (id -> Repository) and `log` ("METHOD /path") can be read and changed at any time."""

    def __init__(self, tokens: dict[str, str] | None = None):
        self.tokens = tokens or {"hf_alice_secret": "alice"}  # token -> user; a user writes to own repositories only
        self.repos: dict[str, Repository] = {}
        self.log: list[str] = []
        self.faults: list[Fault] = []
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home, token: str | None = None) -> dict[str, str]:
        """Environment variables for a process that uses this Hub, with all caches under `home`.

        The token is the first one by default.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": next(iter(self.tokens)) if token is None else token,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def create(self, repo_id: str, folder=None, private: bool = False) -> Repository:
        """Creates a repository without a client, from the files of a local folder."""
        repo = self.repos[repo_id] = Repository(private)
        repo.commit("main", "initial commit", {})
        if folder is not None:
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
            repo.commit("main", "upload", files)
        return repo

    def fault(self, pattern: str, **what) -> Fault:
        """Adds a `Fault`; see there for the keywords."""
        self.faults.append(Fault(pattern, **what))
        return self.faults[-1]

    def requests(self, pattern: str) -> list[str]:
        """The logged requests that match."""
        return [line for line in self.log if re.search(pattern, line)]

    def _next_fault(self, request: str) -> Fault | None:
        with self._lock:
            self.log.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args):
        pass

    # ---- answering

    def answer(self, status: int, body=b"", fault: Fault | None = None, **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content_Type", "application/json")
        announced = len(body)
        if fault and fault.shrink is not None:
            body = body[: int(len(body) * fault.shrink)]
            announced = len(body)
        headers.setdefault("Content_Length", str(announced))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.cut is not None:
            self.wfile.write(body[: int(len(body) * fault.cut)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str | None = None):
        headers = {"X_Error_Message": message} | ({"X_Error_Code": code} if code else {})
        if status == 429:
            headers["Retry_After"] = "0"
        self.answer(status, {"error": message}, **headers)

    @property
    def user(self) -> str | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    # ---- routing

    def serve(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.hub._next_fault(f"{self.command} {path}")
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.status:
            return self.refuse(fault.status, f"fault injected: {fault.status}")
        for pattern, action in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                with self.hub._lock:
                    reply = action(self, body, **match.groupdict())
                if reply is not None:
                    self.answer(*reply[:2], fault=fault, **(reply[2] if len(reply) > 2 else {}))
                return
        self.refuse(404, f"no such endpoint: {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def readable(self, repo_id: str) -> Repository | None:
        """The repository, or None after an error was sent: private repositories look like missing ones."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.user != repo_id.split("/")[0]):
            self.refuse(404 if self.user else 401, "Repository not found", "RepoNotFound")
            return None
        return repo

    def writable(self, repo_id: str) -> Repository | None:
        if self.user is None:
            self.refuse(401, "Invalid username or password.")
        elif self.user != repo_id.split("/")[0]:
            self.refuse(403, f"You don't have the rights to write to {repo_id}")
        else:
            return self.readable(repo_id)
        return None

    def commit_of(self, repo_id: str, revision: str) -> Commit | None:
        repo = self.readable(repo_id)
        if repo is None:
            return None
        commit = repo.at(revision)
        if commit is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def whoami(self, body):
        if self.user is None:
            return self.refuse(401, "Invalid credentials in Authorization header")
        return 200, {"name": self.user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def create_repo(self, body):
        wanted = json.loads(body)
        if self.user is None:
            return self.refuse(401, "Invalid username or password.")
        repo_id = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        if self.user != repo_id.split("/")[0]:
            return self.refuse(403, f"You don't have the rights to create a model under the namespace of {repo_id}")
        reply = {"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id, "name": repo_id}
        if repo_id in self.hub.repos:
            return 409, {**reply, "error": "You already created this model repo"}
        self.hub.create(repo_id, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return 200, reply

    def delete_repo(self, body):
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        if self.writable(repo_id) is None:
            return None
        del self.hub.repos[repo_id]
        return 200, {}

    def info(self, body, repo_id, revision="main"):
        commit = self.commit_of(repo_id, revision)
        if commit is None:
            return None
        reply = {
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit.sha,
            "private": self.hub.repos[repo_id].private,
            "tags": [],
            "siblings": [{"rfilename": name} for name in sorted(commit.files)],
            "downloads": 0,
            "likes": 0,
        }
        # Of the card's metadata, what the Hub repeats beside it.
        metadata = commit.files.get("README.md", b"").decode().partition("---\n")[2].partition("\n---")[0]
        found = dict(re.findall(r"^(pipeline_tag|library_name): (\S+)$", metadata, re.MULTILINE))
        return 200, reply | found

    def refs(self, body, repo_id):
        repo = self.readable(repo_id)
        if repo is None:
            return None
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": c[-1].sha} for name, c in repo.branches.items()
        ]
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": c.sha} for name, c in repo.tags.items()]
        return 200, {"branches": branches, "tags": tags, "converts": []}

    def history(self, body, repo_id, revision):
        commit = self.commit_of(repo_id, revision)
        if commit is None:
            return None
        commits = next(h for h in self.hub.repos[repo_id].branches.values() if commit in h)
        shown = reversed(commits[: commits.index(commit) + 1])
        date = "2026-01-01T00:00:00.000Z"
        return 200, [{"id": c.sha, "title": c.title, "message": "", "authors": [], "date": date} for c in shown]

    def tree(self, body, repo_id, revision, folder=None):
        commit = self.commit_of(repo_id, revision)
        if commit is None:
            return None
        prefix = f"{folder}/" if folder else ""
        inside = {name: content for name, content in commit.files.items() if name.startswith(prefix)}
        if prefix and not inside:
            return self.refuse(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        entries = {}
        for name, content in sorted(inside.items()):
            head, slash, _ = name[len(prefix) :].partition("/")
            if slash and not recursive:
                entries[prefix + head] = {"type": "directory", "path": prefix + head, "oid": "0" * 40, "size": 0}
            else:
                entries[name] = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
        return 200, list(entries.values())

    def paths_info(self, body, repo_id, revision):
        commit = self.commit_of(repo_id, revision)
        if commit is None:
            return None
        wanted = json.loads(body)["paths"]
        known = {name: commit.files[name] for name in wanted if name in commit.files}
        return 200, [{"type": "file", "path": n, "size": len(c), "oid": blob_id(c)} for n, c in known.items()]

    def make_branch(self, body, repo_id, name):
        repo = self.writable(repo_id)
        if repo is None:
            return None
        if name in repo.branches:
            return 409, {"error": f"Reference {name} already exists"}
        start = repo.at(json.loads(body or b"{}").get("startingPoint") or "main")
        repo.branches[name] = [start]
        return 200, {}

    def make_tag(self, body, repo_id, revision):
        repo = self.writable(repo_id)
        if repo is None:
            return None
        repo.tags[json.loads(body)["tag"]] = repo.at(revision)
        return 200, {}

    def preupload(self, body, repo_id, revision):
        repo = self.writable(repo_id)
        if repo is None:
            return None
        commit = repo.at(revision)
        if commit is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = []
        for wanted in json.loads(body)["files"]:
            reply = {"path": wanted["path"], "uploadMode": "regular", "shouldIgnore": False}
            if wanted["path"] in commit.files:
                reply["oid"] = blob_id(commit.files[wanted["path"]])
            files.append(reply)
        return 200, {"files": files}

    def make_commit(self, body, repo_id, revision):
        repo = self.writable(repo_id)
        if repo is None:
            return None
        title, changes = "", {}
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") and value["parentCommit"] != repo.branches[revision][-1].sha:
                    return self.refuse(412, "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "deletedFile":
                changes[value["path"]] = None
            elif item["key"] == "deletedFolder":
                changes[value["path"].rstrip("/") + "/"] = None
            else:
                return self.refuse(400, f"unsupported operation {item['key']}")
        branch, pull_request = revision, None
        if "create_pr=1" in urlsplit(self.path).query:
            branch = f"refs/pr/{sum(name.startswith('refs/pr/') for name in repo.branches) + 1}"
            repo.branches[branch] = list(repo.branches[revision])
            pull_request = f"{self.hub.endpoint}/{repo_id}/discussions/{branch.rsplit('/')[-1]}"
        commit = repo.commit(branch, title, changes)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit.sha}"
        return 200, {"commitUrl": url, "commitOid": commit.sha, "pullRequestUrl": pull_request}

    def validate_yaml(self, body):
        return 200, {"errors": [], "warnings": []}

    def resolve(self, body, repo_id, rest):
        revision, _, name = rest.partition("/")
        if revision == "refs":  # refs/pr/1/config.json
            revision, name = "/".join(rest.split("/")[:3]), "/".join(rest.split("/")[3:])
        commit = self.commit_of(repo_id, revision)
        if commit is None:
            return None
        headers = {"X_Repo_Commit": commit.sha}
        if name not in commit.files:
            return 404, b"Entry not found", {**headers, "X_Error_Code": "EntryNotFound"}
        content = commit.files[name]
        headers |= {
            "ETag": f'"{blob_id(content)}"',
            "Content_Type": "application/octet-stream",
            "Accept_Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return 200, content, headers
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, content[first : last + 1], headers

    _REPO = r"(?P<repo_id>[^/]+/[^/]+)"
    ROUTES = [
        (r"/api/whoami-v2", whoami),
        (r"/api/repos/create", create_repo),
        (r"/api/repos/delete", delete_repo),
        (r"/api/validate-yaml", validate_yaml),
        (rf"/api/models/{_REPO}", info),
        (rf"/api/models/{_REPO}/revision/(?P<revision>.+)", info),
        (rf"/api/models/{_REPO}/refs", refs),
        (rf"/api/models/{_REPO}/commits/(?P<revision>.+)", history),
        (rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", tree),
        (rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)/(?P<folder>.+)", tree),
        (rf"/api/models/{_REPO}/paths-info/(?P<revision>.+)", paths_info),
        (rf"/api/models/{_REPO}/branch/(?P<name>.+)", make_branch),
        (rf"/api/models/{_REPO}/tag/(?P<revision>.+)", make_tag),
        (rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", preupload),
        (rf"/api/models/{_REPO}/commit/(?P<revision>.+)", make_commit),
        (rf"/{_REPO}/resolve/(?P<rest>.+)", resolve),
    ]


@contextlib.contextmanager
def hub_in_this_process(home):
    """For fixtures: a `FakeHub` for this process, which has already imported `huggingface_hub`; caches in `home`."""
    from unittest.mock import patch

    from huggingface_hub import constants, hf_api
    from transformers.utils import hub as transformers_hub

    with FakeHub() as hub, contextlib.ExitStack() as changes:
        cache = str(Path(home) / "hub")
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": cache,
            "HUGGINGFACE_HUB_CACHE": cache,
            "HF_TOKEN_PATH": str(Path(home) / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            changes.enter_context(patch.object(constants, name, value))
        changes.enter_context(patch.object(hf_api.api, "endpoint", hub.endpoint))
        changes.enter_context(patch.object(transformers_hub, "_hf_api", None))
        no_waiting = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
        changes.enter_context(patch("huggingface_hub.utils._http.time", no_waiting))  # between its attempts
        changes.enter_context(patch.dict(os.environ, hub.environment(home)))
        yield hub
