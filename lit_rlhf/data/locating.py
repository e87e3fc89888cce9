"""Which files a path means: a file, a pattern, a directory of shards, or the same behind an address.

Files behind an address (`s3://`, `gs://`, `https://`, `hf://`, whatever fsspec knows) are copied into the cache once,
and read from there. A copy stands for what the server says of the file: its size, its time, its ETag.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tenacity import retry, retry_if_not_exception_type, stop_after_attempt, wait_exponential

from lit_rlhf.data.cache import cache_root
from lit_rlhf.data.readers import COMPRESSIONS, KINDS, DataFile, kind_of
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.files import whole_file
from lit_rlhf.hub import near_path

_MAGIC = re.compile(r"[*?\[]")
_SPLITS = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev|eval)(?![a-z])")
_PASSING = {"name", "url", "type", "mimetype", "partial"}
"""What a server says of a file that may differ while the content doesn't, such as where it redirects to."""
_GONE = (FileNotFoundError, PermissionError, IsADirectoryError)
T = TypeVar("T")


def find_files(path: str, storage_options: Mapping[str, Any]) -> list[DataFile]:
    """The files that a path means, in the order of their names.

    Args:
        path: A file, a pattern (`data/*.jsonl.gz`, `data/**/*.parquet`) or a directory, or the address of one.
        storage_options: What fsspec is told of addresses: keys, endpoints, `anon`.

    Raises:
        DataError: There is none, or which of a directory's files are meant can't be known.
        ConfigurationError: An address needs a package that isn't installed.
    """
    return _fetch_files(path, storage_options) if "://" in path else _local_files(path)


def _local_files(path: str) -> list[DataFile]:
    place = Path(path).expanduser()
    if place.is_dir():
        names = [str(entry) for entry in place.iterdir() if entry.is_file()]
        found = _shards(names, path, map(str, place.glob("*/**/*")))
    elif place.is_file() or not _MAGIC.search(path):
        found = [str(place)]
    else:
        matches = Path(place.anchor).glob(str(place.relative_to(place.anchor)))
        found = _matches([str(match) for match in matches if match.is_file()], path)
    for name in found:
        if not Path(name).is_file():
            raise DataError(
                f"There is no file {name} (looked in {Path.cwd()}).{near_path(name)} Give the path of an existing file."
            )
        _check_kind(Path(name).name, name)
    return [DataFile(Path(name), name) for name in found]


def _check_kind(title: str, name: str) -> None:
    if kind_of(title) not in KINDS:
        raise DataError(
            f"Can't tell from its name what {name} holds. Known suffixes: {', '.join(KINDS)}, and "
            f"{', '.join(COMPRESSIONS)} after those of text files. Rename it, or convert it; a `datasets` "
            "directory is read by DirectorySource."
        )


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    if not names:
        raise DataError(
            f"No file matches {pattern} (looked in {Path.cwd()}). Mend the pattern, or give the path of a file."
        )
    return sorted(names)


def _shards(names: Sequence[str], directory: str, below: Iterable[str] = ()) -> list[str]:
    """Those of a directory's files that are its data; others, such as a README, are not."""
    files = [PurePosixPath(name) for name in sorted(names)]
    if any(file.suffix == ".arrow" for file in files):
        raise DataError(
            f"{directory} was written by `save_to_disk` of the datasets library: read it with DirectorySource."
        )
    data = [f for f in files if kind_of(f.name) in KINDS and not f.name.startswith((".", "_"))]
    if not data:
        deeper = next((PurePosixPath(name) for name in below if kind_of(name) in KINDS), None)
        pattern = f"{directory.rstrip('/')}/**/*.jsonl"
        if deeper is not None:
            split = _SPLITS.search(deeper.name.lower())
            pattern = f"{deeper.parent}/*{f'{split[0]}*' if split else ''}{kind_of(deeper.name)}"
        raise DataError(
            f"{directory} holds no file with a known suffix ({', '.join(KINDS)}). Files of its directories are "
            f"read by a pattern such as {pattern}."
        )
    kinds = sorted({kind_of(file.name) for file in data})
    splits = sorted({split for file in data for split in _SPLITS.findall(file.name.lower())})
    for what, several in (("kinds", kinds), ("splits", splits)):
        if len(several) > 1:
            meant = "*" if what == "kinds" else f"*{'train' if 'train' in several else several[0]}*"
            raise DataError(
                f"{directory} holds files of several {what} ({', '.join(several)}). Say which are meant by a pattern "
                f"such as {directory.rstrip('/')}/{meant}{kinds[-1]}."
            )
    return [str(file) for file in data]


# -- addresses --------------------------------------------------------------------------------------------------------


def _fetch_files(address: str, storage_options: Mapping[str, Any]) -> list[DataFile]:
    import fsspec

    scheme = address.partition("://")[0].lower()
    try:
        system, place = fsspec.url_to_fs(address, **storage_options)
    except ImportError as error:
        raise ConfigurationError(
            f"{address} can't be read with what is installed: {error}."
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"{address} can't be read: {' '.join(str(error).split())}."
        ) from error
    over_http = scheme in ("http", "https")

    def names() -> list[str]:
        # In an address of the web, ? begins a query, and there are no directories.
        if "*" in place or (_MAGIC.search(place) and not over_http):
            return _matches([str(name) for name in system.glob(place)], address)
        if not over_http and system.isdir(place):
            listed = [
                each["name"] for each in system.ls(place, detail=True) if each["type"] == "file"
            ]
            return _shards(listed, address)
        return [place]

    return [_fetch(system, name, scheme) for name in _asking(address, names)]


def _fetch(system: Any, name: str, scheme: str) -> DataFile:
    address = name if "://" in name else f"{scheme}://{name.lstrip('/')}"
    title = PurePosixPath(urlsplit(address).path).name
    shown = address.partition("?")[0]  # what is signed or secret stands behind
    _check_kind(title, shown)
    told = _asking(shown, lambda: system.info(name))
    facts = {key: str(value) for key, value in told.items() if key not in _PASSING}
    key = hashlib.sha256(json.dumps([address, facts], sort_keys=True).encode()).hexdigest()
    copy = cache_root(None) / "downloads" / key[:32] / title
    if not copy.is_file():
        with whole_file(
            copy,
            f"The copy of {shown}",
            told.get("size") or 0,
            "another place for the cache, by the environment variable LIT_RLHF_CACHE",
            DataError,
        ) as fresh:
            _asking(shown, lambda: system.get_file(name, str(fresh)))
            size, wanted = fresh.stat().st_size, told.get("size")
            if wanted is not None and size != wanted:
                raise DataError(f"{shown} came with {size} of its {wanted} bytes. Try again.")
    return DataFile(copy, shown)


def _asking(address: str, ask: Callable[[], T]) -> T:
    """What a server answers; a connection that fails is tried three times."""
    again = retry(
        stop=stop_after_attempt(3),
        wait=wait_exponential(0.5),
        retry=retry_if_not_exception_type((*_GONE, DataError)),
        reraise=True,
    )
    try:
        return again(ask)()
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no file {address}, or its server can't be reached.") from error
    except Exception as error:  # each of fsspec's systems raises kinds of its own
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{address} can't be fetched: {text}.") from error
