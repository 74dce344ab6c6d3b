"""PG19, GovReport and SCROLLS from a directory that TensorFlow Datasets prepared, read without TensorFlow."""

import contextlib
import functools
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from resonance_jax.data.documents import Document, Item, LeftOut, Reader
from resonance_jax.files import reason

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# TFDS finds these two by name only after their module was imported, unless TensorFlow is installed.
MODULES = {
    "gov_report": "tensorflow_datasets.summarization.gov_report",
    "scrolls": "tensorflow_datasets.text.scrolls",
}
# The text and the unique identifier of a record; GovReport's text is `reports` (CRS) or `report` (GAO).
TEXT_FIELDS = {"pg19": ("book_text",), "gov_report": ("report", "reports"), "scrolls": ("input",)}
ID_FIELDS = {"pg19": "book_id", "gov_report": "id", "scrolls": "pid"}


def readers(name: str, data_dir: str | Path | None) -> tuple[Reader, dict[str, Reader]]:
    """(reader of all documents, readers by split) of a prepared dataset; "heldout" is its test split.

    Document names are `split/identifier`. Nothing is downloaded.

    Args:
        name: "pg19", "gov_report/<config>" or "scrolls/gov_report".
        data_dir: where the prepared datasets are; None: TFDS's own place.

    Raises:
        ValueError: TFDS is not installed, has no such dataset, or it is not prepared there as array_record.
    """
    builder = _builder(name, data_dir)
    dataset = name.partition("/")[0]
    text_field = next(field for field in TEXT_FIELDS[dataset] if field in builder.info.features)
    read = functools.partial(_items, builder, text_field, ID_FIELDS[dataset])
    splits: dict[str, Reader] = {split: functools.partial(read, split) for split in builder.info.splits}
    if "test" in splits:
        splits["heldout"] = splits["test"]
    return functools.partial(read, *builder.info.splits), splits


def _builder(name: str, data_dir: str | Path | None) -> "tfds.core.DatasetBuilder":
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(
            f"The corpus {name} needs TFDS: pip install tensorflow-datasets importlib_resources."
        ) from None
    dataset, _, config = name.partition("/")
    if dataset in MODULES:
        module = importlib.import_module(MODULES[dataset])
        configs = [known.name for known in vars(module)[_class_name(dataset)].BUILDER_CONFIGS]
        if config not in configs:
            known = ", ".join(f"{dataset}/{known}" for known in configs)
            raise ValueError(f"There is no corpus {name!r}; TFDS has {known}.")
    with _damage_said(name):
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    if not builder.is_prepared():
        raise ValueError(
            f"The corpus {name} is not prepared at {builder.data_path}: prepare it once where TFDS has a "
            f"network (file_format='array_record') and point data_dir to it."
        )
    try:
        with _damage_said(name):
            builder.as_data_source()
    except NotImplementedError:
        raise ValueError(
            f"The copy of {name} at {builder.data_path} cannot be read without TensorFlow: prepare it with "
            f"file_format='array_record'."
        ) from None
    return builder


def _class_name(dataset: str) -> str:
    return "".join(word.capitalize() for word in dataset.split("_"))


def _items(
    builder: "tfds.core.DatasetBuilder", text_field: str, id_field: str, *splits: str
) -> Iterator[Item]:
    with _damage_said(builder.info.full_name):
        yield from _read(builder, text_field, id_field, *splits)


def _read(
    builder: "tfds.core.DatasetBuilder", text_field: str, id_field: str, *splits: str
) -> Iterator[Item]:
    sources = cast(Mapping[str, Iterable[Mapping[str, bytes | str | int | None]]], builder.as_data_source())
    for split in splits:
        for number, record in enumerate(sources[split]):
            id, text = _string(record[id_field]), _string(record[text_field])
            name = f"{split}/{number if id is None else id}"
            if text:
                yield Document(name, text)
            else:
                found = "null" if text is None else "empty"
                yield LeftOut(name, f"The field {text_field!r} of record {number} of {split} is {found}.")


def _string(value: bytes | str | int | None) -> str | None:
    """TFDS gives text as bytes without TensorFlow, identifiers as bytes or numbers, and None for nothing."""
    if value is None:
        return None
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _damage_said(name: str) -> Iterator[None]:
    """What TFDS raises over damaged files, which can be anything, as one sentence of ours."""
    try:
        yield
    except NotImplementedError:  # says that reading needs TensorFlow
        raise
    except Exception as error:
        raise ValueError(
            f"The prepared copy of {name} cannot be read ({reason(error)}): prepare it again."
        ) from None
