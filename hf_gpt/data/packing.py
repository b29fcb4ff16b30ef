"""Packs documents into rows of equal length: a data set for any Trainer."""

import secrets
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from ..model.targets import IGNORED
from .token_checks import open_tokens
from .token_files import Tokens

ROWS_PER_CHECK = 4096  # a check takes 1 ms, 4096 rows of 1024 tokens take 150 ms
MAX_IDS = 1 << 24  # of a vocabulary: 128 MB of counts


class TokenBlocks(Dataset):
    """Packed rows: the documents concatenated and split into rows of `block_size` tokens.

        Trainer(model, args, train_dataset=TokenBlocks("tokens", block_size=1024))

    Tokens after the last complete row are not used. Each row is a dict of int64 tensors (block_size,): `input_ids`,
    `labels` and, with `separate_documents`, `position_ids`.

    One of every 4096 rows is chosen, others in each run. When it is read, the block of the file that contains it is
    compared with its checksum.

    Args:
        tokens: the folder that `hf-gpt tokenize` wrote, whose files are memory-mapped, or the result of `encode_texts`.
        block_size: tokens per row.
        separate_documents: attend within each document only. `position_ids` restart at 0 in each document, from which
            hf_gpt and transformers build a block-diagonal mask, and the label of a document's first token is ignored.
            A batch must not contain an attention mask then. A Trainer with a `processing_class` adds one, unless it
            is used with `data_collator=default_data_collator`.

    Raises:
        ValueError: `block_size` is less than 1, the tokens fill no row, or a file is damaged. The last also when a row
            is read.
        FileNotFoundError: the folder contains no tokens.
    """

    def __init__(self, tokens: Tokens | Path | str, block_size: int, *, separate_documents: bool = False) -> None:
        if block_size < 1:
            raise ValueError(f"block_size={block_size}: expected at least 1")
        self.tokens = tokens if isinstance(tokens, Tokens) else open_tokens(tokens)
        self.block_size = block_size
        self.separate_documents = separate_documents
        self._checked_row = secrets.randbelow(ROWS_PER_CHECK)  # modulo ROWS_PER_CHECK, in all worker processes
        self._shard_bounds = np.cumsum([0, *map(len, self.tokens.shards)])  # first token of each shard, and the end
        if len(self.tokens) < block_size:
            raise ValueError(f"the text has {len(self.tokens)} tokens: expected at least one row of {block_size}")

    def __len__(self) -> int:
        return len(self.tokens) // self.block_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index % len(self) * self.block_size
        input_ids = torch.from_numpy(self._read(start, start + self.block_size))
        row = {"input_ids": input_ids, "labels": input_ids.clone()}
        if self.separate_documents:
            starts = self._find_document_starts(start)
            row["labels"][starts] = IGNORED
            offsets = torch.zeros(self.block_size, dtype=torch.long).index_put((starts,), starts).cummax(dim=0).values
            row["position_ids"] = torch.arange(self.block_size) - offsets
        return row

    def _find_document_starts(self, start: int) -> torch.Tensor:
        """Returns the indices in the row from `start` at which a document begins, except the row's first, int64."""
        ends = self.tokens.document_ends
        first, last = np.searchsorted(ends, [start, start + self.block_size], side="right")
        starts = torch.from_numpy(ends[first:last] - start)
        return starts[starts < self.block_size]

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Returns the tokens from `start` to `stop`, counted over all shards, int64."""
        bounds = self._shard_bounds
        first = np.searchsorted(bounds, start, side="right") - 1
        last = np.searchsorted(bounds, stop, side="left")
        if start // self.block_size % ROWS_PER_CHECK == self._checked_row:
            self.tokens.check(first, start - bounds[first])
        parts = [
            self.tokens.shards[shard][max(0, start - bounds[shard]) : stop - bounds[shard]]
            for shard in range(first, last)
        ]
        return np.concatenate(parts).astype(np.int64)

    def split(self, fraction: float) -> tuple[Dataset, Dataset]:
        """Splits the rows into training rows and evenly spread evaluation rows.

        Args:
            fraction: fraction of the rows to evaluate on, 0 to 0.5; at least one row.

        Returns:
            The training rows and the evaluation rows.

        Raises:
            ValueError: there are fewer than two rows, or `fraction` is out of range.
        """
        if not 0 <= fraction <= 0.5:
            raise ValueError(f"fraction={fraction}: expected 0 to 0.5")
        if len(self) < 2:
            raise ValueError("the text fills a single row: expected at least two, one of them to evaluate on")
        every = min(len(self), max(2, round(1 / fraction))) if fraction else len(self)
        rows = np.arange(len(self))
        is_evaluated = rows % every == every - 1
        return Subset(self, rows[~is_evaluated].tolist()), Subset(self, rows[is_evaluated].tolist())

    def unigram_entropy(self) -> float:
        """Returns the entropy of the token frequencies in nats, the loss of a model that knows nothing else.

        Raises:
            ValueError: an id is not below `MAX_IDS`.
        """
        parts = [part for shard in self.tokens.shards for part in np.array_split(shard, len(shard) // 2**20 + 1)]
        most = max(int(part.max(initial=0)) for part in parts)
        if most >= MAX_IDS:
            raise ValueError(f"the tokens contain the id {most}: expected ids below {MAX_IDS}")
        counts = sum(np.bincount(part, minlength=most + 1) for part in parts)
        return torch.distributions.Categorical(torch.from_numpy(counts).double()).entropy().item()
