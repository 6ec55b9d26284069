"""What huggingface_hub says to the Hub server of the tests, up and down: the server answers it as the Hub would.

HF_ENDPOINT, HF_TOKEN and HF_HOME are set by hub.sh, and HF_HUB_DISABLE_XET=1 where LFS is meant.
"""

import hashlib
import inspect
import os
import pathlib
import random
import sys
import tempfile

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

xet = os.environ.get("HF_HUB_DISABLE_XET") != "1"
api = HfApi()
repo = f"writer/check-{random.getrandbits(32):08x}"
folder = pathlib.Path(tempfile.mkdtemp())
large = random.Random(1).randbytes(21_000_000)
weights = random.Random(2).randbytes(3_000_000)
checks = 0


def check(what, holds):
    global checks
    checks += 1
    if not holds:
        sys.exit(f"huggingface_hub {huggingface_hub.__version__}: {what}: no")


def raises(kind, call, status=None):
    try:
        call()
    except kind as error:
        return status is None or error.response.status_code == status
    return False


def fetch(path, **settings):
    settings.setdefault("repo_id", repo)
    return pathlib.Path(hf_hub_download(filename=path, cache_dir=tempfile.mkdtemp(dir=folder), **settings)).read_bytes()


def sha(data):
    return hashlib.sha256(data).hexdigest()


check("whoami", api.whoami()["name"] == "writer")
check("create_repo", api.create_repo(repo).repo_id == repo)
check("create_repo again", api.create_repo(repo, exist_ok=True).repo_id == repo)
check("create_repo twice is a conflict", raises(HfHubHTTPError, lambda: api.create_repo(repo), 409))
first = api.upload_file(path_or_fileobj=b'{"a": 1}\n', path_in_repo="config.json", repo_id=repo)
check("a small file", fetch("config.json") == b'{"a": 1}\n')
api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n# A card\n", path_in_repo="README.md", repo_id=repo)
check("a card", b"licence" not in fetch("README.md"))
(folder / "large.bin").write_bytes(large)
api.upload_file(path_or_fileobj=folder / "large.bin", path_in_repo="large.bin", repo_id=repo)
check("a large file", fetch("large.bin") == large)

source = folder / "source"
(source / "deep" / "er").mkdir(parents=True)
(source / "model.safetensors").write_bytes(weights)
(source / "deep" / "er" / "a name with spaces & signs.txt").write_text("hello\n")
(source / "empty.txt").write_bytes(b"")
# What the large file holds already, under another name: nothing is sent, or little.
(source / "again.bin").write_bytes(large)
head = api.upload_folder(repo_id=repo, folder_path=source, commit_message="A folder")
snapshot = pathlib.Path(snapshot_download(repo, cache_dir=folder / "cache"))
for path in source.rglob("*"):
    if path.is_file():
        check(f"{path.name} of a snapshot", (snapshot / path.relative_to(source)).read_bytes() == path.read_bytes())
check("the snapshot has the name of the commit", snapshot.name == head.oid)
check("a snapshot of patterns", len(list(pathlib.Path(snapshot_download(repo, cache_dir=folder / "few", allow_patterns="*.json")).iterdir())) == 1)
local = pathlib.Path(snapshot_download(repo, local_dir=folder / "local"))
check("a snapshot in a folder", (local / "model.safetensors").read_bytes() == weights)

api.upload_file(path_or_fileobj=b'{"a": 2}\n', path_in_repo="config.json", repo_id=repo)
check("a pinned revision", fetch("config.json", revision=first.oid) == b'{"a": 1}\n')
check("the newest", fetch("config.json") == b'{"a": 2}\n')
api.create_tag(repo, tag="v1", revision=first.oid)
check("a tag", fetch("config.json", revision="v1") == b'{"a": 1}\n')
api.create_branch(repo, branch="side/way", revision="v1")
api.upload_file(path_or_fileobj=b"[]\n", path_in_repo="config.json", repo_id=repo, revision="side/way")
check("a branch", fetch("config.json", revision="side/way") == b"[]\n" and fetch("config.json") == b'{"a": 2}\n')
check("a branch again is a conflict", raises(HfHubHTTPError, lambda: api.create_branch(repo, branch="side/way"), 409))

tree = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}
check("a recursive tree", {"deep", "deep/er", "deep/er/a name with spaces & signs.txt", "empty.txt", "large.bin"} <= tree.keys())
check("hashes in the tree", tree["large.bin"].lfs.sha256 == sha(large) and tree["large.bin"].size == len(large))
check("blob ids in the tree", tree["deep/er/a name with spaces & signs.txt"].blob_id == "ce013625030ba8dba906f756967f9e9ca394464a")
check("a folder of the tree", [entry.path for entry in api.list_repo_tree(repo, path_in_repo="deep")] == ["deep/er"])
refs = api.list_repo_refs(repo)
check("refs", {b.name for b in refs.branches} == {"main", "side/way"} and [(t.name, t.target_commit) for t in refs.tags] == [("v1", first.oid)])
paths = {entry.path: entry for entry in api.get_paths_info(repo, ["deep", "large.bin", "nothing"])}
check("paths", set(paths) == {"deep", "large.bin"} and paths["large.bin"].lfs.sha256 == sha(large))
info = api.model_info(repo, files_metadata=True)
check("information", next(s for s in info.siblings if s.rfilename == "large.bin").lfs.sha256 == sha(large))
commits = api.list_repo_commits(repo)
check("commits", commits[0].commit_id == info.sha and commits[-1].title == "initial commit" and len(commits) == 6)
metadata = get_hf_file_metadata(hf_hub_url(repo, "large.bin"))
check("metadata of a file", (metadata.etag, metadata.size, metadata.commit_hash) == (sha(large), len(large), info.sha))
check("Xet where it was uploaded over Xet", (metadata.xet_file_data is not None) == xet)
if hasattr(tree["large.bin"], "xet_hash"):
    check("Xet hashes in the tree", tree["large.bin"].xet_hash == (metadata.xet_file_data.file_hash if xet else None))

pull = api.upload_file(path_or_fileobj=b"proposed\n", path_in_repo="proposal.txt", repo_id=repo, create_pr=True)
number = int(pull.pr_url.rsplit("/", 1)[1])
check("a pull request", fetch("proposal.txt", revision=f"refs/pr/{number}") == b"proposed\n")
check("it is open", api.get_discussion_details(repo, number).status == "open")
check("refs of pull requests", [p.ref for p in api.list_repo_refs(repo, include_pull_requests=True).pull_requests] == [f"refs/pr/{number}"])
api.merge_pull_request(repo, number)
check("merged", fetch("proposal.txt") == b"proposed\n" and api.get_discussion_details(repo, number).status == "merged")
(folder / "more").mkdir()
(folder / "more" / "more.safetensors").write_bytes(weights[::-1])
pull = api.upload_folder(repo_id=repo, folder_path=folder / "more", create_pr=True)
check("a folder as a pull request", fetch("more.safetensors", revision=pull.pr_revision) == weights[::-1])

api.create_commit(repo, [CommitOperationDelete("proposal.txt"), CommitOperationDelete("deep/")], commit_message="Fewer")
check("deleted", not any(path.startswith("deep") or path == "proposal.txt" for path in api.list_repo_files(repo)))
add = CommitOperationAdd("late.txt", b"late\n")
check("a parent that is not the head", raises(HfHubHTTPError, lambda: api.create_commit(repo, [add], commit_message="Late", parent_commit=first.oid), 412))
check("no such entry", raises(EntryNotFoundError, lambda: fetch("nothing.txt")))
check("no such revision", raises(RevisionNotFoundError, lambda: fetch("config.json", revision="nowhere")))
check("no such repository", raises(RepositoryNotFoundError, lambda: fetch("config.json", repo_id="writer/nothing")))
check("a wrong token", raises(HfHubHTTPError, lambda: api.model_info(repo, token="hf_wrong"), 401))
read = HfApi(token="hf_readreadreadreadreadreadreadreadre")
check("a token that only reads", raises(HfHubHTTPError, lambda: read.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=repo), 403))
parameter = "visibility" if "visibility" in inspect.signature(api.create_repo).parameters else "private"
api.create_repo(f"{repo}-private", **{parameter: "private" if parameter == "visibility" else True})
check("a private repository", api.model_info(f"{repo}-private").private)
outsider = "hf_outsideroutsideroutsideroutsidero"
check("hidden from others", raises(RepositoryNotFoundError, lambda: api.model_info(f"{repo}-private", token=outsider)))
check("a gated repository", raises(GatedRepoError, lambda: fetch("config.json", repo_id="org/gated", token=outsider)))
with HfFileSystem(skip_instance_cache=True).open(f"{repo}/large.bin", "rb", block_size=1 << 16) as file:
    file.seek(12_345_678)
    check("a range", file.read(1000) == large[12_345_678:12_346_678])
api.delete_repo(repo)
check("deleted altogether", raises(RepositoryNotFoundError, lambda: api.model_info(repo)))
print(f"huggingface_hub {huggingface_hub.__version__}, {'Xet' if xet else 'LFS'}: {checks} checks hold")
