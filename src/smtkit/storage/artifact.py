"""Opening an artifact, in a directory or at a URI, and reading its verified files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from smtkit.errors import ArtifactError, UsageError
from smtkit.storage import cache
from smtkit.storage.files import check_xxh3, hash_file, open_sized, read_record, read_verified
from smtkit.storage.location import Location, PathOrURI, locate
from smtkit.storage.manifest import MADE_BY, MANIFEST, FileEntry, Kind, Manifest, Parent
from smtkit.storage.remote import Remote
from smtkit.storage.unfinished import find_unfinished

_ATTEMPTS = 5  # at reading a manifest that is replaced again and again


class Artifact:
    """A complete artifact, opened for reading. Files at a URI are read from local copies."""

    def __init__(self, directory: Location, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._entries = {entry.logical_name: entry for entry in manifest.files}

    @classmethod
    def open(cls, directory: PathOrURI, *kinds: Kind) -> "Artifact":
        """Opens the artifact in `directory`, a path or URI, which must be of one of `kinds` (none:
        any). The path of its manifest names it, too.

        Raises UsageError where it does not exist, ArtifactError where it is not a complete
        artifact of that kind and of this format version, or a file is missing or cut short.
        """
        location = locate(directory)
        if isinstance(location, Path) and location.name == MANIFEST and location.is_file():
            location = location.parent
        return cls(location, read_manifest(location, *kinds, check_files=True))

    def file(self, logical_name: str) -> Path:
        """The path of a file of this artifact. Raises ArtifactError if it has none of the name."""
        return self._paths([self._entry(logical_name)])[0]

    def files(self, prefix: str) -> list[Path]:
        """Paths of the files whose logical name starts with `prefix`, in order of name."""
        return self._paths(self._with_prefix(prefix))

    def rows(self, prefix: str) -> list[int]:
        """Rows of each of `files(prefix)`."""
        return [entry.rows or 0 for entry in self._with_prefix(prefix)]

    def verified(self, logical_name: str) -> Path:
        """The path of a file after its checksum was compared. Raises ArtifactError if it differs,
        or if there is no file of the name."""
        entry, path = self._entry(logical_name), self.file(logical_name)
        if isinstance(self.directory, Remote):
            return path  # the cache has checked it
        check_xxh3(path, hash_file(path, self._root), entry.xxh3)
        return path

    def read(self, logical_name: str) -> tuple[Path, bytes]:
        """The path of a file, for messages, and its verified content. Raises ArtifactError."""
        return next(self._contents([self._entry(logical_name)]))

    def contents(self, prefix: str) -> Iterator[tuple[Path, bytes]]:
        """`read` for each of `files(prefix)`."""
        return self._contents(self._with_prefix(prefix))

    def verify(self) -> None:
        """Reads every file and compares checksums. At a URI the files there are read, and then
        their local copies, of which damaged ones are removed. Raises ArtifactError at the first
        difference."""
        for name, entry in self._entries.items():
            if isinstance(self.directory, Remote):
                cache.verify(self.directory, entry)
            else:
                self.verified(name)

    def as_parent(self) -> Parent:
        """This artifact as the manifest of one that is made from it records it."""
        return Parent(
            kind=self.manifest.kind,
            path=str(self.directory),
            digest=self.manifest.digest,
            parents=self.manifest.parents,
        )

    def _contents(self, entries: Sequence[FileEntry]) -> Iterator[tuple[Path, bytes]]:
        for entry, path in zip(entries, self._paths(entries), strict=True):
            yield path, read_verified(path, entry.bytes, entry.xxh3, self._root)

    @property
    def _root(self) -> Path | None:
        """The directory below which links are not followed; None for local copies."""
        return None if isinstance(self.directory, Remote) else self.directory

    def _entry(self, logical_name: str) -> FileEntry:
        if logical_name not in self._entries:
            reason = f"{self.manifest.kind} artifact without {logical_name}"
            raise ArtifactError(f"{self.directory}: {reason}")
        return self._entries[logical_name]

    def _with_prefix(self, prefix: str) -> list[FileEntry]:
        return [self._entries[name] for name in sorted(self._entries) if name.startswith(prefix)]

    def _paths(self, entries: Sequence[FileEntry]) -> list[Path]:
        if isinstance(self.directory, Remote):
            are_labels = self.manifest.kind == "labels"
            return cache.fetch(self.directory, entries, rows_are_checked=are_labels)
        return [self.directory / entry.name for entry in entries]


def read_manifest(
    directory: Location, *kinds: Kind, check_files: bool = False, any_format: bool = False
) -> Manifest:
    """Reads and checks `directory/manifest.json`. Raises UsageError or ArtifactError.

    `check_files`: also that its files exist and have the right sizes. `any_format`: also accepts
    format versions that this smtkit does not read.
    """
    content = _read(directory)
    for _ in range(_ATTEMPTS - 1):
        try:
            return _checked(directory, content, kinds, check_files, any_format)
        except ArtifactError:
            # A run that commits meanwhile replaces the manifest and removes the old files, so an
            # error counts only if the manifest has stayed the same.
            previous, content = content, _read(directory)
            if content == previous:
                raise
    return _checked(directory, content, kinds, check_files, any_format)


def _read(directory: Location) -> bytes:
    """The bytes of the manifest."""
    try:
        if isinstance(directory, Remote):
            return directory.read(MANIFEST)
        return read_record(directory / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        exists = directory.sizes() if isinstance(directory, Remote) else directory.exists()
        if not exists:
            raise UsageError(f"{directory}: no such artifact") from None
        raise _incomplete(directory) from None


def _incomplete(directory: Location) -> ArtifactError:
    """The error for a directory without a manifest, which says how far its run is, if any."""
    message = f"{directory}: not a complete artifact: "
    run = None if isinstance(directory, Remote) else find_unfinished(directory)
    if run is None:
        return ArtifactError(f"{message}it holds no {MANIFEST}")
    if run.is_running:
        return ArtifactError(f"{message}another process is writing it, {run.progress()}")
    command = MADE_BY.get(run.kind, "the command that makes it,")
    return ArtifactError(f"{message}unfinished, {run.progress()}", f"go on with {command} --resume")


def _checked(
    directory: Location, content: bytes, kinds: Sequence[Kind], check_files: bool, any_format: bool
) -> Manifest:
    path = _path(directory, MANIFEST)
    manifest = Manifest.parse(content, path, any_format=any_format)
    if kinds and manifest.kind not in kinds:
        hint = ", ".join(f"{kind}: made by {MADE_BY[kind]}" for kind in kinds if kind in MADE_BY)
        message = f"{directory}: kind is {manifest.kind}, expected {' or '.join(kinds)}"
        raise ArtifactError(message, hint or None)
    if check_files:
        _check_sizes(directory, manifest)
    return manifest


def _check_sizes(directory: Location, manifest: Manifest) -> None:
    """Raises ArtifactError where a file is missing, special, or not as large as the manifest
    says."""
    if not isinstance(directory, Remote):
        for entry in manifest.files:
            open_sized(directory / entry.name, entry.bytes, directory).close()
        return
    found = directory.sizes()
    for entry in manifest.files:
        if (size := found.get(entry.name)) != entry.bytes:
            reason = f"{size} bytes, the manifest says {entry.bytes}"
            missing = "missing, though the manifest names it"
            uri = directory.uri_of(entry.name)
            raise ArtifactError(f"{uri}: {missing if size is None else reason}")


def _path(directory: Location, name: str) -> str:
    """The path or URI of a file."""
    return directory.uri_of(name) if isinstance(directory, Remote) else str(directory / name)
