"""The Hugging Face hub: which files a data set has at a commit, and one of them. No code of it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prometar.data.preparation.digests import digest_of
from prometar.errors import UserError, WorkError, first_line


@dataclass(frozen=True)
class HubFile:
    """A file of a data set: `sha256` is None where the hub keeps none (small texts)."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class HubRepo:
    """A data set of the hub at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]

    def get(self, file: HubFile, folder: Path) -> Path:
        """Download a file to `<folder>/<its path>`; one that is there is kept, an interrupted one goes on.

        Raises:
            WorkError: the hub does not give it, or gives another one than it says.
        """
        with _asking(self.repo):
            path = Path(
                _api().hf_hub_download(
                    self.repo, file.path, repo_type="dataset", revision=self.commit, local_dir=folder
                )
            )
        if path.stat().st_size != file.size or (file.sha256 and digest_of(path) != file.sha256):
            path.unlink()
            raise WorkError(
                f"{file.path} of {self.repo} is not what the hub says it is: it was deleted; "
                "the same command gets it again"
            )
        return path


def look_up(repo: str, revision: str) -> HubRepo:
    """The files of a data set, in the order of their paths.

    Raises:
        UserError: no such data set or revision, or a private or gated one.
        WorkError: the hub does not answer.
    """
    with _asking(repo, revision):
        info = _api().dataset_info(repo, revision=revision, files_metadata=True)
        found = [(each.rfilename, each.size, each.lfs) for each in info.siblings or ()]
        files = [HubFile(path, size or 0, lfs.sha256 if lfs else None) for path, size, lfs in found]
    for file in files:
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise WorkError(
                f"{repo} lists a file '{file.path[:80]}', which leaves its folder: it is not taken"
            )
    return HubRepo(repo, str(info.sha), tuple(sorted(files, key=lambda file: file.path)))


def _api():  # type: ignore[no-untyped-def]
    from huggingface_hub import HfApi  # slow to import, and few commands need it

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextmanager
def _asking(repo: str, revision: str = "") -> Iterator[None]:
    """Tell what the hub's client says in one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{repo} is given only to those who accept its terms: do so on its page, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no data set '{repo}': mend the name, or, if it is private, `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repo} has no revision '{revision}'") from None
    except Exception as error:  # which HTTP library's errors these are depends on the client's version
        raise WorkError(
            f"cannot get {repo} from the hub: {first_line(error)}; the same command goes on"
        ) from None
