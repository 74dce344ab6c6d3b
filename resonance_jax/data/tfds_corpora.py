"""PG19, GovReport and SCROLLS from a directory that TensorFlow Datasets prepared, read without TensorFlow."""

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

from resonance_jax.data.files import Document, Reader

# TFDS finds these two by name only after their module was imported, unless TensorFlow is installed.
MODULES = {
    "gov_report": "tensorflow_datasets.summarization.gov_report",
    "scrolls": "tensorflow_datasets.text.scrolls",
}
# The text and the unique identifier of a record; GovReport's text is `reports` (CRS) or `report` (GAO).
TEXT_FIELDS = {"pg19": ("book_text",), "gov_report": ("report", "reports"), "scrolls": ("input",)}
ID_FIELDS = {"pg19": "book_id", "gov_report": "id", "scrolls": "pid"}


def readers(name: str, data_dir: str | Path | None) -> tuple[Reader, dict[str, Reader]]:
    """(all documents, documents by split) of a prepared dataset; "heldout" is its test split.

    Document names are `split/identifier`. Nothing is downloaded: ValueError says what is missing and where.
    """
    builder = _builder(name, data_dir)
    dataset = name.partition("/")[0]
    text_field = next(field for field in TEXT_FIELDS[dataset] if field in builder.info.features)
    read = functools.partial(_documents, builder, text_field, ID_FIELDS[dataset])
    splits = {split: functools.partial(read, split) for split in builder.info.splits}
    if "test" in splits:
        splits["heldout"] = splits["test"]
    return functools.partial(read, *builder.info.splits), splits


def _builder(name: str, data_dir: str | Path | None):
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
    builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    if not builder.is_prepared():
        raise ValueError(
            f"The corpus {name} is not prepared at {builder.data_path}: prepare it once where TFDS has a "
            f"network (file_format='array_record') and point data_dir to it."
        )
    try:
        builder.as_data_source()
    except NotImplementedError:
        raise ValueError(
            f"The copy of {name} at {builder.data_path} cannot be read without TensorFlow: prepare it with "
            f"file_format='array_record'."
        ) from None
    return builder


def _class_name(dataset: str) -> str:
    return "".join(word.capitalize() for word in dataset.split("_"))


def _documents(builder, text_field: str, id_field: str, *splits: str) -> Iterator[Document]:
    for split in splits:
        for record in builder.as_data_source(split=split):
            yield Document(f"{split}/{_string(record[id_field])}", _string(record[text_field]))


def _string(value) -> str:
    """TFDS gives text as bytes without TensorFlow, and identifiers as bytes or numbers."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
