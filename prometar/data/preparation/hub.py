"""The Hugging Face hub: which files a data set has at a commit, and one of them. No code of it runs."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prometar.data.preparation.digests import digest_of
from prometar.errors import WorkError
from prometar.io.hub import TIMEOUT_SECONDS, asking, client


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
        """Download a file to `<folder>/<its path>`; one that is there whole is kept.

        Raises:
            WorkError: the hub does not give it, or gives another one than it says.
        """
        with asking(f"the data set {self.repo}", file.path):
            found = client().hf_hub_download(
                self.repo, file.path, repo_type="dataset", revision=self.commit, local_dir=folder
            )
        path = Path(found)
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
    with asking(f"the data set {repo} (revision {revision})"):
        info = client().dataset_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
        found = [(each.rfilename, each.size, each.lfs) for each in info.siblings or ()]
        files = [HubFile(path, size or 0, lfs.sha256 if lfs else None) for path, size, lfs in found]
    for file in files:
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise WorkError(
                f"{repo} lists a file '{file.path[:80]}', which leaves its folder: it is not taken"
            )
    return HubRepo(repo, str(info.sha), tuple(sorted(files, key=lambda file: file.path)))
