"""An image data set of the hub: its Parquet files are read once and written as a prepared copy.

Only names, columns and bytes are read; no code that lies beside them runs.
"""

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePosixPath

from prometar.data.datasets.benchmarks import TEMPLATE
from prometar.data.datasets.catalog import place_of, problems_of
from prometar.data.datasets.dataset import Dataset, Item, same_class
from prometar.data.datasets.hubname import HubName, hub_folder, is_hub, parse_hub
from prometar.data.datasets.listing import SPLITS, read_text
from prometar.data.datasets.manifest import find_manifest
from prometar.data.preparation.archives import MAX_FILES
from prometar.data.preparation.download import WORK
from prometar.data.preparation.http import Progress, require_space, unwatched
from prometar.data.preparation.hub import HubFile, HubRepo, look_up
from prometar.data.preparation.hubparquet import HubSource, ImageFile, forget
from prometar.data.preparation.prepare import PrepareResult, target_of, write_copy
from prometar.data.streaming.transforms import BrokenImage, decode
from prometar.errors import UserError, WorkError
from prometar.io.hub import SCHEME
from prometar.io.lock import leave, locked
from prometar.io.stores import masked

VAL_NAMES = ("validation", "val", "valid")
COMMIT_DIGITS = 12  # of a commit, in the paths of its images
Files = dict[str, list[HubFile]]
"""Parquet files by split."""


def obtain(name: str, root: Path | str | None, progress: Progress = unwatched) -> PrepareResult | None:
    """Have a data set of the hub lie below `root`; None if it does already, or is not of the hub.

    Its files are downloaded to `<root>/.download`, every image is decoded, and the copy is written as
    `prometar data prepare` writes one; the same call goes on, and a second one at a time is refused. A copy
    that is there is used as it is, whatever has become of the data set since: its note says which commit it
    is of.

    Args:
        name: hf://owner/name, see `HubName`.
        root: The data root, a local folder.
        progress: Called with (shards done, shards in all).
    Raises:
        UserError: a wrong name, split or column; labels without names.
        WorkError: the hub does not answer, a file is damaged, images are broken or too many, no space,
            another process gets it.
    """
    if not is_hub(name):
        return None
    wanted = parse_hub(name)
    if root is None:
        raise UserError(f"{name} needs a place for its copy: pass --data-root DIR")
    place, work = place_of(name, root), Path(root, WORK, hub_folder(f"{SCHEME}{wanted.repo}"))
    remote, what = "://" in place, f"the download of {wanted.repo}"
    if find_manifest(place) is not None:
        if not remote and work.exists():  # a process ended between its copy and this, or has still to end
            with suppress(WorkError, OSError), locked(work, what):
                _clear(work)
            leave(work)
        return None
    if remote:
        raise UserError(
            f"there is no copy of {name} at {masked(place)}: `prometar data download` it to a "
            "folder, then `prometar data prepare` it from there"
        )
    target, repo = target_of(name, None, root), look_up(wanted.repo, wanted.revision)
    files = _splits(wanted, repo)
    with locked(work, what):
        result = None
        if find_manifest(place) is None:  # else another process has made it since
            require_space(work, _to_come(files, work, Path(target)))
            result = _copy(_read(name, wanted, repo, files, work), target, progress)
        _clear(work)
    leave(work)
    return result


def _to_come(files: Files, work: Path, target: Path) -> int:
    """Bytes of downloads and copy that are still to be written; an earlier try may have left a part."""
    for stranded in work.glob(".cache/**/*.*.*.incomplete"):  # no client goes on with those of one process
        stranded.unlink()
    wanted = list(chain(*files.values()))
    left = [work / file.path for file in wanted]
    left += [*work.glob(".cache/**/*.incomplete"), *target.glob("*.parquet")]
    return 2 * sum(file.size for file in wanted) - sum(path.stat().st_size for path in left if path.exists())


def _copy(dataset: Dataset, target: str, progress: Progress) -> PrepareResult:
    for problem in problems_of(dataset):
        raise UserError(problem)
    try:
        return write_copy(dataset, target, progress=progress)
    finally:
        forget()


def _clear(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)  # on NFS the lock stays until it is let go


def _read(name: str, wanted: HubName, repo: HubRepo, files: Files, work: Path) -> Dataset:
    """The data set of downloaded files."""
    tables = {
        split: [ImageFile.open(repo.get(file, work), file, wanted) for file in part]
        for split, part in files.items()
    }
    total = sum(table.rows for table in chain(*tables.values()))
    if total > MAX_FILES:
        raise WorkError(f"{wanted.repo} has {total:,} images: at most {MAX_FILES:,} are taken")
    for table in chain(*tables.values()):
        table.require_bounded()
    names = _class_names(wanted, list(chain(*tables.values())))
    # the commit in every path is what tells runs on two commits apart: they compare paths, not images
    folders = {split: f"{repo.commit[:COMMIT_DIGITS]}/{split}" for split in tables}
    items = {split: _items(folders[split], part, names, wanted) for split, part in tables.items()}
    source = HubSource.of(wanted.image, {folders[split]: part for split, part in tables.items()})
    for part in items.values():
        _require_image(part[0].path, source, wanted)
    train, val, test = (items.get(split, ()) for split in SPLITS)
    note = f"{wanted.repo} of the hub at commit {repo.commit}"
    return Dataset(name, wanted.repo, train, val, test, source, TEMPLATE, note, note)


def _splits(wanted: HubName, repo: HubRepo) -> Files:
    """The Parquet files of each split.

    Raises:
        UserError: none of a split, not all of one, or of several folders.
    """
    found: Files = {}
    for file in repo.files:
        if file.path.endswith(".parquet") and PurePosixPath(file.path).is_relative_to(wanted.folder or "."):
            found.setdefault(_split_of(file.path), []).append(file)
    if not found:
        where = f" in {wanted.folder}/" if wanted.folder else ""
        raise UserError(
            f"{wanted.repo} has no Parquet files{where}: "
            "try ?revision=refs/convert/parquet, the hub's own conversion"
        )
    vals = (each for each in VAL_NAMES if each in found and each not in (wanted.train, wanted.test))
    asked = {"train": wanted.train, "val": wanted.val or next(vals, ""), "test": wanted.test}
    chosen: Files = {}
    for split, called in asked.items():
        if called and called not in found:
            raise UserError(
                f"{wanted.repo} has no Parquet files of a split '{called}', only of "
                f"{', '.join(sorted(found))}: choose one with ?{split}=NAME"
            )
        if called:
            chosen[split] = found[called]
    if len(set(filter(None, asked.values()))) < len(chosen):
        raise UserError(f"{wanted.repo}: train, val and test must be three splits, found {asked}")
    folders = sorted({_folder_of(file.path) for part in chosen.values() for file in part})
    if len(folders) > 1:
        raise UserError(f"{wanted.repo} has files in {', '.join(folders)}: choose one with ?folder=NAME")
    for part in chosen.values():
        _require_whole(wanted, part)
    return chosen


def _require_whole(wanted: HubName, part: Sequence[HubFile]) -> None:
    """Raises a UserError where files say which of a split they are, and one is there twice or missing."""
    numbers = [found.groups() for file in part if (found := _OF.search(PurePosixPath(file.path).name))]
    once = len(set(numbers)) == len(numbers)
    if numbers and not (once and {int(total) for _, total in numbers} == {len(numbers)}):
        raise UserError(
            f"{wanted.repo}: of the files that are numbered as {part[0].path} is, there "
            f"{'is' if len(numbers) == 1 else 'are'} {len(numbers)}, so one is missing or there twice: "
            "choose another with ?revision=NAME"
        )


_OF = re.compile(r"(\d{1,9})-of-(\d{1,9})")
_PART = re.compile(r"(.+?)([-_.]\d+(-of-\d+(-[0-9a-f]+)?)?)?\.parquet")


def _split_of(path: str) -> str:
    """What the hub's naming calls the split of a file.

    Example:
        >>> _split_of("data/train-00000-of-00002.parquet"), _split_of("default/test/0000.parquet")
        ('train', 'test')
    """
    *folders, file = path.split("/")
    stem = file.removesuffix(".parquet")
    if stem.isdigit() and folders:
        return folders[-1]
    matched = _PART.fullmatch(file)
    return matched[1] if matched else stem


def _folder_of(path: str) -> str:
    """The folder of a configuration: that of the file, or above it where a folder is a split."""
    *folders, file = path.split("/")
    return "/".join(folders[:-1] if file.removesuffix(".parquet").isdigit() else folders) or "."


def _require_image(path: str, source: HubSource, wanted: HubName) -> None:
    """Whether the column holds images at all, before each is looked at."""
    try:
        decode(source.read_many([path])[0], path)
    except BrokenImage as error:
        raise WorkError(f"the column '{wanted.image}' of {wanted.repo} holds no images: {error}") from None


def _class_names(wanted: HubName, tables: Sequence[ImageFile]) -> tuple[str, ...]:
    """Class names by label: of the file of names, of the columns' descriptions, or the texts themselves.

    Raises:
        UserError: numbers without names, texts that CLIP reads alike, or files that disagree about what a
            label means.
    """
    labels = {table.path: set(table.labels()) - {None} for table in tables}
    kinds = {isinstance(one, str): path for path, found in labels.items() for one in found}
    if len(kinds) > 1:
        raise UserError(
            f"the labels are text in {kinds[True]} and numbers in {kinds[False]}: choose other files or "
            "another column with ?folder=NAME or ?label=NAME"
        )
    if wanted.names:
        return _names_in(Path(wanted.names))
    if True in kinds:
        texts = tuple(sorted(map(str, set().union(*labels.values()))))
        if same := same_class(texts):
            raise UserError(
                f"the labels {same[0]!a:.60} and {same[1]!a:.60} of {wanted.repo} name the same class: "
                "choose another column with ?label=NAME"
            )
        return texts
    named = {names: table.path for table in tables if (names := table.classnames())}
    if len(named) > 1:
        first, second, *_ = named.values()
        raise UserError(
            f"{first} and {second} call the labels by other names, or in another order: if numbers mean "
            "the same in both, pass ?names=FILE, a text file with a class name a line"
        )
    if not named:
        raise UserError(
            f"the labels of {wanted.repo} are numbers, and its files do not say what they mean: pass "
            "?names=FILE, a text file with a class name a line"
        )
    return next(iter(named))


def _names_in(file: Path) -> tuple[str, ...]:
    names = [line.strip() for line in read_text(file).rstrip().splitlines()]
    if "" in names:
        raise UserError(
            f"{file}: line {names.index('') + 1} is blank: a line names a class, in the order of the labels"
        )
    return tuple(names)


def _items(
    folder: str, tables: Sequence[ImageFile], names: Sequence[str], wanted: HubName
) -> tuple[Item, ...]:
    """The rows in their order; a path is `<folder>/<rank>`, the folder `<commit>/<split>`."""
    split = PurePosixPath(folder).name
    rank = {name: k for k, name in enumerate(names)}
    items: list[Item] = []
    for table in tables:
        for label in table.labels():
            found = rank.get(label) if isinstance(label, str) else label
            if found is None or not 0 <= found < len(names):
                raise UserError(
                    f"{wanted.repo}: image {len(items)} of {split} has the label {label!a:.60}, which has no "
                    f"class name ({len(names)} are known; -1 is how the hub marks images without a label)"
                )
            items.append(Item(f"{folder}/{len(items):07d}", found, names[found]))
    if not items:
        raise UserError(f"{wanted.repo} has no images in {split}")
    return tuple(items)
