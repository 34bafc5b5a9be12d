"""Embeddings of captions on disk, so that a caption is encoded once: safetensors, bounded in size.

A caption is encoded alone. In a batch its numbers may depend on its batch mates, and then what a
step computes would depend on what earlier runs left in the cache.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

BUCKETS = 256
DEFAULT_MAX_BYTES = 16 << 30


class EmbeddingCache:
    """Named tensors by encoder and caption; several processes may share the folder.

    A file is in one of `BUCKETS` folders, by its hash, and each has its share of the bound: what
    was not used for longest makes room. Processes that write into one bucket at the same moment
    may together exceed its share, until the next write.
    """

    def __init__(
        self, folder: Path, *, fingerprint: str, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        """Reads nothing yet.

        Args:
            folder: Where the files are; made when the first is written. Encoders may share it.
            fingerprint: Of the encoder and of all else that changes the numbers, such as a dtype.
            max_bytes: What all files together may take. An entry of more than a bucket's share,
                `max_bytes / BUCKETS`, is not kept.
        """
        self._folder, self._fingerprint = folder, fingerprint
        self._share = max_bytes // BUCKETS

    def embed(
        self, caption: str, encode: Callable[[str], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The embeddings of `caption`: those on disk, else those that `encode` gives.

        Args:
            caption: A caption; the empty one too.
            encode: Encodes this one caption; called only if it is not on disk.

        Returns:
            The tensors that `encode` gave, bit for bit, on the CPU.
        """
        digest = hashlib.sha256(f"{self._fingerprint}\0{caption}".encode()).hexdigest()
        file = self._folder / digest[:2] / f"{digest[2:]}.safetensors"
        try:
            tensors = load(file.read_bytes())
            os.utime(file)
            return tensors
        except (OSError, SafetensorError):  # not there, taken away just now, or damaged
            pass
        tensors = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in encode(caption).items()
        }
        self._keep(file, save(tensors))
        return tensors

    def _keep(self, file: Path, content: bytes) -> None:
        if len(content) > self._share:
            return
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            file.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(file.parent, self._share - len(content))
            with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
                new.write(content)
            os.replace(new.name, file)

    def _make_room(self, bucket: Path, left: int) -> None:
        """Removes the files used longest ago until the others take no more than `left` bytes."""
        states = []
        for entry in os.scandir(bucket):
            with contextlib.suppress(FileNotFoundError):  # another process made room too
                state = entry.stat()
                states.append((state.st_mtime_ns, state.st_size, entry.path))
        taken = sum(size for _, size, _ in states)
        for _, size, path in sorted(states):
            if taken <= left:
                break
            Path(path).unlink(missing_ok=True)
            taken -= size
