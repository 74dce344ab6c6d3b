"""Records of columnar files: parquet, and arrow as `datasets` writes it (streams) or as a file."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resonance_jax.data.content import open_content, pyarrow_for
from resonance_jax.data.documents import Item
from resonance_jax.data.records import TOKENS_FIELD, missing, record_item
from resonance_jax.files import reason

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 64


def table_items(path: Path, name: str, text_field: str, container: str) -> Iterator[Item]:
    """The rows of a parquet or arrow file, some in memory at a time; a compressed file is unpacked in memory.

    Args:
        path: the file.
        name: begins the documents' names, "name:row", counted from 0.
        text_field: the column that holds the text.
        container: "parquet" or "arrow".

    Raises:
        ValueError: the file is damaged, has neither column, or a row's text or ids have a wrong type.
    """
    batches = _parquet if container == "parquet" else _arrow
    number = 0
    with _damage_said(path, container), open_content(path) as stream:
        source = stream if isinstance(stream.raw, io.FileIO) else io.BytesIO(stream.read())
        for batch in batches(path, source, text_field):
            batch.validate(full=True)  # offsets that lead out of a damaged file's buffers would crash Python
            for row in range(batch.num_rows):
                record = {column: _value(batch, column, row) for column in batch.schema.names}
                yield record_item(f"{name}:{number}", record, text_field, f"row {number} of {path}")
                number += 1


def _parquet(path: Path, source: io.IOBase, text_field: str) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source) as file:
        columns = _columns(path, text_field, file.schema_arrow.names)
        yield from file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns)


def _arrow(path: Path, source: io.IOBase, text_field: str) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow.ipc

    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    with pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source) as reader:
        columns = _columns(path, text_field, reader.schema.names)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            yield batch.select(columns)


def _columns(path: Path, text_field: str, names: list[str]) -> list[str]:
    found = [field for field in (text_field, TOKENS_FIELD) if field in names]
    if not found:
        raise ValueError(missing(str(path), text_field, names))
    return found


def _value(batch: "pyarrow.RecordBatch", column: str, row: int) -> object:
    """A cell as Python has it; a list of numbers stays an arrow array, which NumPy reads without copying."""
    import pyarrow

    cell = batch.column(column)[row]
    lists = (pyarrow.ListScalar, pyarrow.LargeListScalar, pyarrow.FixedSizeListScalar)
    return cell.values if column == TOKENS_FIELD and isinstance(cell, lists) else cell.as_py()


@contextlib.contextmanager
def _damage_said(path: Path, container: str) -> Iterator[None]:
    """What pyarrow raises over a damaged file, as one sentence of ours."""
    arrow = pyarrow_for(path)
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read as {container} to its end: {reason(error)}.") from None
