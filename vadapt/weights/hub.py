"""Files on the Hugging Face Hub: weights and adapters come from there, adapters go there.

Needs `pip install 'vadapt[hub]'`. Whatever was fetched once is found without a network.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from vadapt.errors import WeightsError
from vadapt.weights.files import BESIDE, FILE_NAMES, shards

PREFIX = "hf:"
ADAPTER = "adapter.safetensors"
_INDEX = ".index.json"


class Address(NamedTuple):
    """A place on the Hub."""

    repository: str
    revision: str | None = None  # a branch, a tag or a commit
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


def parse(source: str) -> Address:
    """The parts of "hf:org/name[@revision][/file]".

    Raises:
        WeightsError: it is no such address.

    >>> parse("hf:facebook/dinov2-small@main/model.safetensors")
    Address(repository='facebook/dinov2-small', revision='main', file='model.safetensors')
    """
    name = r"[\w.-]+"
    match = re.fullmatch(
        rf"{PREFIX}({name}/{name})(?:@(refs/\w+/{name}|{name}))?(?:/(.+))?", source
    )
    if match is None:
        raise WeightsError(
            f"{source!r} is no address on the Hub; expected hf:org/name, hf:org/name@revision or "
            "hf:org/name/file"
        )
    return Address(*match.groups())


def local_path(source: str | Path) -> Path:
    """The file that a `source` of weights stands for; what is on the Hub, `download` fetches."""
    return download(source) if _is_address(source) else Path(source)


def local_adapter(source: str | Path) -> Path:
    """The file that a `source` of an adapter stands for; what is on the Hub, `pull` fetches."""
    return pull(source) if _is_address(source) else Path(source)


def _is_address(source: str | Path) -> TypeGuard[str]:
    return isinstance(source, str) and source.startswith(PREFIX)


def download(
    source: str,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_only: bool = False,
) -> Path:
    """Fetches weights from the Hub into its client's cache, or finds them there.

    Args:
        source: "hf:org/name", with "@revision" and "/file" if need be. Without a file it is the
            first of `FILE_NAMES` that the repository has.
        endpoint, cache_dir, token: of the client; by default its own, as HF_ENDPOINT, HF_HOME and
            `hf auth login` set them.
        local_only: ask no server, as with HF_HUB_OFFLINE=1.

    Returns:
        The file; of weights in several files the index, with all of them beside it, and those of
        `files.BESIDE` that there are.

    Raises:
        WeightsError: nothing there, no access, no network and not in the cache, or the client is
            not installed; says what to do.
    """
    address = parse(source)
    hub = client()
    listed, offline = (None, None) if local_only else _listed(address, endpoint, token)
    names = [address.file] if address.file else list(FILE_NAMES)
    if listed is not None and not address.file:
        names = [name for name in names if name in listed][:1]
    for name in names:
        fetch = functools.partial(
            hub.hf_hub_download,
            address.repository,
            revision=address.revision,
            endpoint=endpoint,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_only or offline is not None,
        )
        with explained(address):
            try:
                path = Path(fetch(filename=name))
            except hub.errors.LocalEntryNotFoundError as error:
                offline = offline or error
                continue
            except hub.errors.EntryNotFoundError:
                continue
            _fetch_beside(fetch, name, _shards(path), listed)
            return path
    if offline is not None:
        raise WeightsError(
            f"{address} is not in the cache, and the Hub cannot be asked ({_line(offline)}). Fetch "
            f"it where there is a network (hf download {address.repository}) and bring the cache "
            "along, or give a local file."
        ) from offline
    if address.file:
        raise WeightsError(f"{address._replace(file=None)} has no file {address.file!r}")
    raise WeightsError(
        f"{address} has none of {', '.join(FILE_NAMES)}; name the file, as in {address}/FILE"
    )


def _fetch_beside(
    fetch: Callable[..., Any], name: str, shards: Sequence[str], listed: set[str] | None
) -> None:
    """Fetches the shards of an index, and of `files.BESIDE` what there is, or is in the cache."""
    for shard in shards:
        fetch(filename=Path(name).with_name(shard).as_posix())
    for beside in (Path(name).with_name(one).as_posix() for one in BESIDE):
        if listed is None or beside in listed:
            with contextlib.suppress(client().errors.EntryNotFoundError):
                fetch(filename=beside)


def pull(source: str, **options: Any) -> Path:
    """Fetches an adapter that `push` put on the Hub; see `download` for arguments and errors."""
    address = parse(source)
    return download(str(address._replace(file=address.file or ADAPTER)), **options)


def client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise WeightsError(
            "addresses on the Hub need its client: pip install 'vadapt[hub]'"
        ) from error
    return huggingface_hub


def _listed(
    address: Address, endpoint: str | None, token: str | None
) -> tuple[set[str] | None, Exception | None]:
    """The files that a repository has; None, and why, if nobody can be asked."""
    hub = client()
    with explained(address):
        try:
            info = hub.HfApi(endpoint=endpoint, token=token).model_info(
                address.repository, revision=address.revision, timeout=10
            )
        except hub.errors.HfHubHTTPError as error:
            if error.response is None or error.response.status_code < 500:
                raise
            return None, error
        except _failures() as error:  # no network
            return None, error
    return {sibling.rfilename for sibling in info.siblings or ()}, None


def _shards(path: Path) -> list[str]:
    """The files that an index names."""
    if not path.name.endswith(_INDEX):
        return []
    return shards(path)


@contextlib.contextmanager
def explained(address: Address) -> Iterator[None]:
    """Turns the client's errors into one line that says what to do."""
    errors = client().errors
    log_in = "log in (hf auth login) with a token that may"
    try:
        yield
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{address} is gated: ask for access on its page, then {log_in} read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{address.repository} has no revision {address.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{address} does not exist, or is private: check the name, or {log_in} see it"
        ) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(f"{address} is not all there: {_line(error)}") from error
    except (*_failures(), errors.HFValidationError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = f"; {log_in} do this" if status in (401, 403) else ""
        raise WeightsError(f"the Hub does not serve {address}: {_line(error)}{hint}") from error


def _failures() -> tuple[type[Exception], ...]:
    """Errors from below the client: of its HTTP library and of the system."""
    return client().errors.HfHubHTTPError.__bases__


def _line(error: BaseException) -> str:
    """Return what went wrong at the root, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
