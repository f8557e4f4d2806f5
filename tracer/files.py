"""Files that are written whole or not at all: first beside their place, then put there in one step."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxplain.errors import OutputError


def path_of(path: Any) -> Path:
    """What names a file, as a path.

    Raises:
        OutputError: it names none.
    """
    try:
        return Path(path)
    except TypeError:
        raise OutputError("this names no file", expected="a text or a path", found=repr(path)) from None


def check_folder(path: Path) -> None:
    """Refuse early, before anything is worked out, where no file can be written.

    Raises:
        OutputError: the folder does not exist, or a folder lies in the file's place.
    """
    if not path.parent.is_dir():
        raise OutputError(
            f"the folder for {path.name!r} does not exist",
            expected="an existing folder",
            found=str(path.parent),
            hint="make the folder first",
        )
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder", expected="a file's name", found="a folder")


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write a file whole or not at all: a reader sees the old file or the new one, never a part.

    Raises:
        OutputError: the folder does not exist or the disk refuses; the old file, if any, is untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "out.txt", "whole")
        ...     (Path(folder) / "out.txt").read_text()
        'whole'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def save_as(
    what: str, path: str | os.PathLike[str], writers: Mapping[str, Callable[..., bytes]], *things: Any
) -> None:
    """Write something in the form that the suffix of its file says.

    Args:
        what: what it is, for messages: ``an explanation``.
        path: where.
        writers: suffix -> what makes the file's content of the things.
        things: for the writer.

    Raises:
        OutputError: unknown suffix, no such folder, nothing to draw, or the disk refuses.
    """
    path = path_of(path)
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise OutputError(
            f"{what} cannot be saved as {path.name!r}",
            expected=f"a name that ends in {', '.join(writers)}",
            found=path.suffix or "no suffix",
        )
    check_folder(path)
    write_whole(path, writer(*things))


@contextmanager
def replacing(path: str | os.PathLike[str], suffix: str = ".part") -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` at the end, unless something was raised meanwhile.

    Raises:
        OutputError: the folder does not exist or the disk refuses; the old file, if any, is untouched.
    """
    check_folder(path_of(path))
    # the same folder, since only within one file system a rename is atomic; links are followed
    place = Path(path).resolve()
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:40]}.", suffix=suffix)
        os.close(handle)
        yield Path(temporary)
        _sync(temporary)
        Path(temporary).chmod(_mode(place))
        os.replace(temporary, place)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # what writes through a library of another language may say of a full disk what it likes
        foreign = type(error).__name__ == "SafetensorError"
        if isinstance(error, OSError) or foreign:
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"the file {str(path)!r} could not be written", found=reason) from error
        raise


def _sync(path: str) -> None:
    """On the disk before the rename: else a power failure may leave an empty file in the old one's place."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _mode(path: Path) -> int:
    """The mode that plain ``open`` would give: the old file's, or what the umask allows."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
