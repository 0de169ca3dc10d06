"""Downloads a GGUF from Hugging Face's hub into its cache, with the library huggingface_hub.

That library asks the hub, knows tokens and proxies, and lays out the cache. The files themselves are fetched here: its
own download begins anew after a kill, and compares sizes but not checksums where it does not use Xet.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf_export.errors import ConvertError, reason, several
from gguf_export.hub_cache import PREFIX, main_commit
from gguf_export.metadata import ARCH
from gguf_export.outputs import check_space, write_output
from gguf_export.stores.repository import REPOSITORY, FileSet, choose, file_sets, label, labels, split_name
from gguf_export.workplace import ResumableWorkplace, flush

Progress = Callable[[int, int], None]
Say = Callable[[str], None]

_REQUEST_BYTES = 4 << 30  # of one request: a content network may have a limit, and an address may expire
_NOTE_BYTES = 64 << 20  # the most that a kill loses
_CHUNK = 1 << 20
_TRIES = 5  # without a byte between them
_PAUSE = 1.0  # seconds before the first new try, then doubled
_PATIENCE = 30.0  # seconds without a byte


@dataclass(frozen=True)
class RemoteFile:
    """path: in the repository. key: its checksum, which is its name in the cache: SHA-256, or Git's of a small file."""

    path: str
    size: int
    key: str


@dataclass(frozen=True)
class PullPlan:
    """What is to be downloaded. name: what find_model() takes for it afterwards. here: the paths that are in the cache.

    folder: of this repository in the cache. left_bytes: what has to be fetched.
    """

    name: str
    repository: str
    commit: str
    files: tuple[RemoteFile, ...]
    folder: Path
    here: frozenset[str]
    left_bytes: int

    @property
    def n_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def place(self, file: RemoteFile) -> Path:
        return self.folder.joinpath("snapshots", self.commit, *file.path.split("/"))


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise ConvertError("downloading needs huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


def plan_pull(name: str) -> PullPlan:
    """Asks the hub what ORG/REPO:QUANT is. ConvertError where it means nothing, several files, or another model."""
    split = split_name(name.removeprefix("hf:"))
    if split is None:
        raise ConvertError(f"{name!r} is no name on the hub: write ORG/REPO:QUANT")
    repository, quant = split
    hub = _hub()
    with _hub_errors(repository):
        info = hub.HfApi(library_name="pyflash").model_info(repository, files_metadata=True)
    if REPOSITORY.fullmatch(info.id or ""):  # as it is spelt, or called today
        repository = info.id
    kind = (getattr(info, "gguf", None) or {}).get("architecture")
    if kind not in (None, ARCH):
        raise ConvertError(f"{repository} holds a model of architecture {kind!r}: pyflash runs {ARCH} only")
    files = {each.rfilename: _remote(each) for each in info.siblings or () if each.size is not None}
    sizes = {path: file.size for path, file in files.items()}
    chosen = _one(repository, quant, file_sets(files), sizes)
    wanted = tuple(files[path] for path in chosen.files)
    for file in wanted:
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.key) or ".." in file.path.split("/"):
            raise ConvertError(f"{repository} gives no checksum for {file.path}: it is not downloaded")
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise ConvertError(f"the hub names no commit of {repository}: it is not downloaded")
    cache = Path(hub.constants.HF_HUB_CACHE).expanduser().absolute()
    folder = cache / (PREFIX + repository.replace("/", "--"))
    called = f"{repository}:{label(chosen, file_sets(files))}"
    plan = PullPlan(called, repository, info.sha, wanted, folder, frozenset(), 0)
    here = frozenset(file.path for file in wanted if _size(plan.place(file)) == file.size)
    left = sum(file.size - max(_size(_blob(plan, file)), _begun(plan, file))
               for file in wanted if file.path not in here)
    return replace(plan, here=here, left_bytes=left)


def _remote(sibling: Any) -> RemoteFile:
    return RemoteFile(sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else str(sibling.blob_id))


def _one(repository: str, quant: str, sets: list[FileSet], sizes: dict[str, int]) -> FileSet:
    chosen = choose(sets, quant)
    if len(chosen) == 1 and not chosen[0].missing:
        return chosen[0]
    if chosen and chosen[0].missing:
        raise ConvertError(f"{repository} lacks shards of {chosen[0].stem} itself: take another file")
    models = chosen or choose(sets, "")
    if not models:
        raise ConvertError(f"{repository} holds no GGUF model: take a repository that does")
    what = f"{repository} holds {len(models)} models"
    if quant:
        what = f"{quant} means {len(chosen)} models of {repository}" if chosen else f"{repository} has no {quant}"
    raise several(f"{what}; give one of these", labels(models, sets, sizes))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _blob(plan: PullPlan, file: RemoteFile) -> Path:
    return plan.folder / "blobs" / file.key


def _begun(plan: PullPlan, file: RemoteFile) -> int:
    """Bytes that an interrupted download has left."""
    return min(_size(plan.folder / "blobs" / f".{file.key}.partial" / "0"), file.size)


def pull(plan: PullPlan, progress: Progress | None = None, say: Say | None = None) -> Path:
    """Downloads what is not there; returns the file's place, or the first shard's.

    An interrupted download goes on where it was. Each file is compared with the hub's checksum before it has its name.
    progress: bytes done and in all. say: gets a line where the network fails and it is tried again.
    """
    hub = _hub()
    blobs = plan.folder / "blobs"
    try:
        blobs.mkdir(parents=True, exist_ok=True)
        check_space({str(blobs): plan.left_bytes})
        done = 0
        for file in plan.files:
            def report(n: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + n, plan.n_bytes)

            if file.path not in plan.here:
                if _size(_blob(plan, file)) != file.size:
                    _Download(hub, plan, file, report, say or (lambda line: None)).run()
                with _hub_errors(plan.repository):  # finds the blob, and links it where the commit has it
                    hub.hf_hub_download(plan.repository, file.path, revision=plan.commit, cache_dir=plan.folder.parent,
                                        library_name="pyflash")
            done += file.size
            report(0, done)
        if main_commit(plan.folder) != plan.commit:
            refs = plan.folder / "refs"
            refs.mkdir(exist_ok=True)
            write_output(refs / "main", plan.commit.encode("ascii"), streams=False)
    except OSError as error:
        raise ConvertError(f"cannot write to {plan.folder}: {reason(error)}") from error
    return plan.place(plan.files[0])


class _Download:
    """One file, to blobs/KEY."""

    def __init__(self, hub: Any, plan: PullPlan, file: RemoteFile, report: Callable[[int], None], say: Say) -> None:
        self._hub, self._plan, self._file = hub, plan, file
        self._report, self._say = report, say
        self._url = hub.hf_hub_url(plan.repository, file.path, revision=plan.commit)

    def run(self) -> None:
        blob = _blob(self._plan, self._file)
        with ResumableWorkplace(str(blob.parent), self._file.key, {"size": self._file.size}) as work:
            path = work.file(0)
            with open(path, "r+b" if os.path.exists(path) else "w+b") as out:
                digest = self._begin(out, work.done or 0)
                self._fetch(out, digest, work)
                if digest.hexdigest() != self._file.key:
                    out.truncate(0)
                    work.record(0)
                    raise ConvertError(f"{self._file.path} arrived damaged: its checksum is another than the hub's; "
                                       "pull it again")
            flush(path)
            os.replace(path, blob)

    def _begin(self, out: Any, done: int) -> Any:
        """The checksum of what an earlier run has left, which the file is cut to."""
        git = len(self._file.key) == 40
        digest = hashlib.sha1(f"blob {self._file.size}\0".encode(), usedforsecurity=False) if git else hashlib.sha256()
        n = 0
        while n < done and (piece := out.read(min(_CHUNK, done - n))):
            digest.update(piece)
            n += len(piece)
            self._report(n)
        out.truncate(n)
        out.seek(n)
        return digest

    def _fetch(self, out: Any, digest: Any, work: ResumableWorkplace) -> None:
        tries, noted = 0, out.tell()
        try:
            while (start := out.tell()) < self._file.size:
                try:
                    for piece in self._request(start):
                        out.write(piece)
                        digest.update(piece)
                        self._report(out.tell())
                        if out.tell() - noted >= _NOTE_BYTES:
                            noted = self._note(out, work)
                except self._hub.errors.HTTPError as error:
                    tries = tries + 1 if out.tell() == start else 1
                    if tries == _TRIES or _is_final(error):
                        raise
                    self._say(f"the connection broke ({_first_line(error)}): trying again")
                    time.sleep(_PAUSE * 2 ** (tries - 1))
                else:
                    if out.tell() == start:
                        raise ConvertError(f"the hub sends nothing of {self._file.path}: pull it again later")
        except self._hub.errors.HTTPError as error:
            self._note(out, work)
            with _hub_errors(self._plan.repository):
                raise error from None
        except BaseException:
            self._note(out, work)
            raise

    @staticmethod
    def _note(out: Any, work: ResumableWorkplace) -> int:
        out.flush()
        os.fsync(out.fileno())
        n = int(out.tell())
        work.record(n)
        return n

    def _request(self, start: int) -> Iterator[bytes]:
        """The next bytes from start on. ConvertError for an answer to something else."""
        end = min(start + _REQUEST_BYTES, self._file.size)
        headers = {**self._hub.utils.build_hf_headers(library_name="pyflash"), "Accept-Encoding": "identity",
                   "Range": f"bytes={start}-{end - 1}"}
        with self._hub.get_session().stream("GET", self._url, headers=headers, timeout=_PATIENCE) as response:
            self._hub.utils.hf_raise_for_status(response)
            sent = response.headers.get("Content-Range", "")
            whole = response.status_code == 200 and start == 0
            if not whole and (response.status_code != 206 or not sent.startswith(f"bytes {start}-")):
                raise ConvertError(f"the hub cannot go on with {self._file.path} from byte {start:,}: pull it later")
            left = (self._file.size if whole else end) - start
            for piece in response.iter_bytes():
                if len(piece) > left:
                    raise ConvertError(f"{self._file.path} is longer on the hub than it says: pull it again later")
                left -= len(piece)
                yield piece


def _is_final(error: Any) -> bool:
    """Whether asking again would get the same answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What the library raises, in a sentence."""
    errors = _hub().errors
    try:
        yield
    except errors.GatedRepoError:
        raise ConvertError(f"{repository} wants its terms accepted: do that on its page, then log in (hf auth login)"
                           ) from None
    except errors.RepositoryNotFoundError:
        raise ConvertError(f"the hub has no {repository}, or it is private: check the name, or log in (hf auth login)"
                           ) from None
    except errors.OfflineModeIsEnabled:
        raise ConvertError("HF_HUB_OFFLINE forbids downloads: unset it") from None
    except errors.HFValidationError as error:
        raise ConvertError(f"{repository} is no name on the hub: {_first_line(error)}") from None
    except (errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError, errors.FileMetadataError) as error:
        endpoint = _hub().constants.ENDPOINT
        raise ConvertError(f"cannot download from {endpoint}: {_first_line(error).rstrip('.')}; try again, what is "
                           "there is kept") from None
