"""Where records come from: a folder of images, a TFDS data set; and a guard against broken files.

A source is anything with a length whose items are records, dicts of NumPy arrays with `"image"` a
uint8 [h, w, c] array (c is 1 or 3). `vadapt.data.scenes.Scenes` is one more.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vadapt.data.decode import decode_image
from vadapt.data.identity import Identity, identify, identity_of, sized
from vadapt.errors import ConfigError, DataError, UnreadableError

Record = dict[str, Any]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

_log = logging.getLogger("vadapt.data")
_NAMED_IN_ERROR = 5


@runtime_checkable
class Source(Protocol):
    """Records by index, readable from several threads at once.

    A source may also have `name(index) -> str`, which says in messages what an element is (a path),
    and `identity()`, see `vadapt.data.identity`: by it a run notices that the data set is another;
    and `key(index) -> str`, a name that is the same wherever the data set lies: see `subsets`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def name_of(source: Source, index: int) -> str:
    """The name of an element, such as its file's path, where the source has names."""
    name = getattr(source, "name", None)
    return f"element {index}" if name is None else name(index)


class Folder:
    """The images of a folder and of the folders in it, sorted by path; records have "image".

    Every bit depth ends as uint8: see `vadapt.data.decode.decode_image`, which stretches images of
    16 bits or more from their own minimum and maximum to 0..255. Names that start with a dot are
    not looked at (they are thumbnails and resource forks); links are followed.

    Args:
        path: the folder.
        suffixes: what image files end in, in any case of letters.
        channels: of every record, so that grey and colour files stack: 3 repeats grey, 1 takes the
            luma of colour.

    Raises:
        DataError: the folder is missing, or has no image.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as path:
    ...     Image.new("L", (6, 4), 9).save(f"{path}/grey.png")
    ...     source = Folder(path)
    ...     len(source), source.name(0) == f"{path}/grey.png", source[0]["image"].shape
    (1, True, (4, 6, 3))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        suffixes: Sequence[str] = IMAGE_SUFFIXES,
        channels: int = 3,
    ):
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}; it must be 1 (grey) or 3 (colour)")
        self.path = Path(path).expanduser()
        self.channels = channels
        if not self.path.is_dir():
            raise DataError(f"no folder {str(self.path)!r}; expected one with {_spoken(suffixes)}")
        self._files = find_files(self.path, tuple(suffix.lower() for suffix in suffixes))
        if not self._files:
            raise DataError(f"no images under {str(self.path)!r}; expected {_spoken(suffixes)}")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        return {"image": decode_image((self.path / self._files[index]).read_bytes(), self.channels)}

    def name(self, index: int) -> str:
        return str(self.path / self._files[index])

    def identity(self) -> Identity:
        return identity_of(len(self), sized(self.path, self._files))


class Tfds:
    """A data set of TensorFlow Datasets by its name, read without TensorFlow.

    It must have been prepared as array_record: `tfds build NAME --file_format=array_record`, or
    without TensorFlow `tfds.builder(NAME, file_format="array_record").download_and_prepare()`.
    Images are decoded as those of `Folder` are. The other features come as TFDS gives them.

    Args:
        name: as TFDS writes it, for instance "cifar10" or "voc/2012:5.0.0".
        split: one split, or a slice of it such as "train[:90%]".
        data_dir: where the data lies; by default TFDS's own place, `~/tensorflow_datasets`.
        image_key: the feature that becomes "image".
        channels: as for `Folder`.
        fields: of records, besides "image"; by default all features.

    Raises:
        DataError: tensorflow-datasets is not installed, there is no such data set or split, it
            has not been prepared as array_record, or it lacks the image.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | os.PathLike[str] | None = None,
        image_key: str = "image",
        *,
        channels: int = 3,
        fields: Sequence[str] | None = None,
    ):
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}; it must be 1 (grey) or 3 (colour)")
        if importlib.util.find_spec("tensorflow_datasets") is None:
            raise DataError(
                f"the data set {name!r} needs tensorflow-datasets: pip install 'vadapt[tfds]'"
            )
        import tensorflow_datasets as tfds  # 1 s to import

        self.title = f"{name}[{split}]"
        self.image_key = image_key
        self.fields = fields
        self.channels = channels
        builder = _prepared_builder(tfds, name, split, data_dir)
        self.metadata = builder.info.metadata
        self._built = (builder.info.full_name, split)  # with the version
        features = builder.info.features
        if image_key not in features:
            raise DataError(f"{name!r} has no feature {image_key!r}; it has {sorted(features)}")
        # TFDS decodes with OpenCV where it finds it and with Pillow elsewhere, which differ by
        # platform and in what they make of 16 bits: take the bytes, and decode them here.
        self._encoded = isinstance(features[image_key], tfds.features.Image)
        decoders = {image_key: tfds.decode.SkipDecoding()} if self._encoded else None
        try:
            self._records = builder.as_data_source(split=split, decoders=decoders)
        except (NotImplementedError, ValueError) as error:
            raise DataError(
                f"{self.title} cannot be read: {error}. {_build(name, data_dir)}"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = dict(self._records[index])
        image = record.pop(self.image_key)
        if self._encoded:
            image = decode_image(image, self.channels)
        kept = record if self.fields is None else record.keys() & {*self.fields}
        return {"image": image, **{name: record[name] for name in record if name in kept}}

    def name(self, index: int) -> str:
        return f"{self.title} element {index}"

    def identity(self) -> Identity:
        return identity_of(len(self), self._built)


class Joined:
    """Several labelled sources of the same classes, one after another.

    Raises:
        ConfigError: they name other classes.
    """

    def __init__(self, sources: Mapping[str, Any]):
        first, *others = sources
        self._sources = list(sources.values())
        self.classes = getattr(sources[first], "classes", ())
        self.palette = getattr(sources[first], "palette", None)
        for other in others:
            classes = getattr(sources[other], "classes", ())
            if classes != self.classes:
                raise ConfigError(
                    f"{first!r} and {other!r} cannot be joined: their classes are {self.classes} "
                    f"and {classes}; remap one of them in its dataset.yaml"
                )
        self._ends = np.cumsum([len(source) for source in self._sources])

    @property
    def targets(self) -> np.ndarray:
        """The labels of all elements, of sources that have them."""
        return np.concatenate([source.targets for source in self._sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[Any, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[number], index - (int(self._ends[number - 1]) if number else 0)

    def __getitem__(self, index: int) -> Record:
        source, place = self._find(index)
        return source[place]

    def name(self, index: int) -> str:
        source, place = self._find(index)
        return source.name(place) if hasattr(source, "name") else f"element {index}"

    def identity(self) -> Identity:
        return identity_of(len(self), *(identify(source) for source in self._sources))

    def fingerprint(self) -> Any:
        """Equal for the same elements, see `vadapt.tasks.frozen_features`."""
        return [source.fingerprint() for source in self._sources]


class Guarded:
    """A source whose unreadable elements are named in the log, counted, and replaced.

    Which element stands in for another depends on the two indices only, never on the order of
    reading: a resumed run sees what an uninterrupted one sees.

    In evaluation such an element is left out (`is_corrupt`), so that its place is no score's.

    Args:
        source: whatever it raises while reading counts as an unreadable element, except DataError
            (a wrong configuration, but for UnreadableError) and MemoryError, which pass.
        max_corrupt: the share of unreadable elements to put up with, 0..1. Any share above 0 allows
            one element at least, so that one broken file in a small folder stops no run.
        evaluating: what the log says of an unreadable element: it is left out.

    Raises:
        DataError: on reading, when more elements than that are unreadable, or none is readable.
    """

    def __init__(
        self, source: Source, max_corrupt: float | int = 0.01, *, evaluating: bool = False
    ):
        if not 0 <= max_corrupt <= 1:
            raise ConfigError(f"max_corrupt is {max_corrupt}; it is a share, from 0 to 1")
        self.source = source
        self.max_corrupt = max_corrupt
        self.fate = "it is left out" if evaluating else "another element takes its place"
        self.allowed = max(1, int(max_corrupt * len(source) + 1e-9)) if max_corrupt > 0 else 0
        self._corrupt: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def num_corrupt(self) -> int:
        """The number of distinct elements found unreadable so far, by this process."""
        return len(self._corrupt)

    def is_corrupt(self, index: int) -> bool:
        """Whether the element was found unreadable when it was read."""
        return index in self._corrupt

    def name(self, index: int) -> str:
        return name_of(self.source, index)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        length = len(self)
        if not 0 <= index < length:
            raise IndexError(f"index {index} is outside of a source of {length} elements")
        record = self._read(index)
        if record is not None:
            return record
        # From a random place onwards: ends after one round, and finds what there is to find.
        start = int(np.random.default_rng((0, index)).integers(length))
        for step in range(length):
            record = self._read((start + step) % length)
            if record is not None:
                return record
        raise DataError(f"none of the {length} elements can be read; the last: {self.name(index)}")

    def _read(self, index: int) -> Record | None:
        if index in self._corrupt:
            return None
        try:
            return self.source[index]
        except (DataError, MemoryError) as error:
            if not isinstance(error, UnreadableError):
                raise
            self._count(index, error)
            return None
        except Exception as error:
            self._count(index, error)
            return None

    def _count(self, index: int, error: Exception) -> None:
        with self._lock:
            if index in self._corrupt:  # another thread read it at the same time
                return
            self._corrupt[index] = reason = f"{self.name(index)} ({_reason(error)})"
            count, length = len(self._corrupt), len(self)
            if count <= self.allowed:
                _log.warning("cannot read %s; %s", reason, self.fate)
                return
            first = "; ".join(list(self._corrupt.values())[:_NAMED_IN_ERROR])
        raise DataError(
            f"{count} of {length} elements cannot be read, a share of {count / length:.2%}; "
            f"config.data.max_corrupt allows {self.max_corrupt:.2%}, which is {self.allowed}. "
            f"First: {first}. Repair or remove them, or raise config.data.max_corrupt."
        ) from error


def find_files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Paths relative to `root`, with forward slashes, sorted."""
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up would never end
            subfolders.clear()
            continue
        seen.add(real)
        # Sorted, so that of two ways into one folder the same is taken everywhere.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        found += [
            (relative / name).as_posix()
            for name in files
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found)


def _prepared_builder(tfds: Any, name: str, split: str, data_dir: Any) -> Any:
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises its own types, which moved between versions
        where = data_dir or "TFDS's own folder"
        raise DataError(
            f"no data set {name!r} in {str(where)!r}, nor a builder of that name "
            f"({_reason(error)}). {_build(name, data_dir)}"
        ) from error
    if not builder.is_prepared():
        raise DataError(
            f"{name!r} is not prepared in {str(builder.data_path)!r}. {_build(name, data_dir)}"
        )
    splits = sorted(builder.info.splits)
    if split.split("[")[0] not in {*splits, "all"} and "+" not in split:
        raise DataError(f"{name!r} has no split {split!r}; it has {splits}")
    return builder


def _build(name: str, data_dir: Any = None) -> str:
    option = "" if data_dir is None else f" --data_dir={data_dir}"
    where = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
    # The `tfds` command imports TensorFlow (4.9.10), the library behind it does not.
    return (
        f"Prepare it with: tfds build {name} --file_format=array_record{option} (this command "
        "needs TensorFlow), or without TensorFlow in Python: tensorflow_datasets.builder"
        f"({name!r}{where}, file_format='array_record').download_and_prepare()"
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _spoken(suffixes: Sequence[str]) -> str:
    return f"image files ({', '.join(suffixes)}), in it or in folders below"
