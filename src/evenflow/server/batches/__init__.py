"""OpenAI's Files and Batches: files of requests that are answered when there is room.

Knows: what is on disk, whose it is, which batch is next, how a line becomes a request.
Does not know: HTTP bodies, the engine; the lines are answered by a function that it is given.

Invariants:
    What is on disk under its final name is whole: it was written under another name, then renamed.
    A server that is killed and started again goes on with the first line that has no answer.
    A file or a batch is seen by its own tenant only.
    No two servers work on the same folder.
"""

from evenflow.server.batches.files import FileStore, StoredFile, lock_folder
from evenflow.server.batches.records import Batch, BatchStatus, BatchStore
from evenflow.server.batches.worker import BatchWorker

__all__ = [
    "Batch",
    "BatchStatus",
    "BatchStore",
    "BatchWorker",
    "FileStore",
    "StoredFile",
    "lock_folder",
]
