"""Documents packed into rows of one length: a data set that goes straight into the Trainer."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from .token_files import Tokens, open_tokens

IGNORED = -100  # a label that the loss leaves out


class TokenBlocks(Dataset):
    """Documents end to end, cut into rows of `block_size` tokens; what is left after the last whole row is not used.

        Trainer(model, args, train_dataset=TokenBlocks("tokens", block_size=1024))

    A row has `input_ids` and `labels`, int64, each (block_size,). With `separate_documents` it also has `position_ids`
    that begin anew with each document: our models, and those of transformers, then attend within a document alone, and
    the label of its first token, which nothing announces, is left out. A batch must have no attention mask then: a
    Trainer with a `processing_class` adds one, unless it is given `data_collator=default_data_collator`.

    Args:
        tokens: a folder that `hf-gpt tokenize` wrote, or what `encode_texts` returned. Files are mapped, not read.

    Raises:
        ValueError: there is not one whole row, the block size is none, or a file is damaged.
        FileNotFoundError: it is no folder of tokens.
    """

    def __init__(self, tokens: Tokens | Path | str, block_size: int, *, separate_documents: bool = False) -> None:
        if block_size < 1:
            raise ValueError(f"block_size={block_size}: expected at least 1")
        self.tokens = tokens if isinstance(tokens, Tokens) else open_tokens(tokens)
        self.block_size = block_size
        self.separate_documents = separate_documents
        self._starts = np.cumsum([0, *map(len, self.tokens.shards)])  # of each shard, and the end of the last
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
            ends = self.tokens.document_ends
            first, last = np.searchsorted(ends, [start, start + self.block_size], side="right")
            begun = torch.from_numpy(ends[first:last] - start)  # where in the row a document begins
            begun = begun[begun < self.block_size]
            row["labels"][begun] = IGNORED
            since = torch.zeros(self.block_size, dtype=torch.long).index_put((begun,), begun).cummax(dim=0).values
            row["position_ids"] = torch.arange(self.block_size) - since
        return row

    def _read(self, start: int, stop: int) -> np.ndarray:
        first = np.searchsorted(self._starts, start, side="right") - 1
        last = np.searchsorted(self._starts, stop, side="left")
        parts = [
            self.tokens.shards[number][max(0, start - self._starts[number]) : stop - self._starts[number]]
            for number in range(first, last)
        ]
        return np.concatenate(parts).astype(np.int64)

    def split(self, fraction: float) -> tuple[Dataset, Dataset]:
        """All rows but, and, evenly spread ones: `fraction` of them, half at most and one at least.

        Raises:
            ValueError: there are fewer than two rows, or the fraction is larger than a half.
        """
        if not 0 <= fraction <= 0.5:
            raise ValueError(f"fraction={fraction}: expected 0 to 0.5")
        if len(self) < 2:
            raise ValueError("the text fills a single row: expected at least two, one of them to evaluate on")
        every = min(len(self), max(2, round(1 / fraction))) if fraction else len(self)
        rows = np.arange(len(self))
        held_out = rows % every == every - 1
        return Subset(self, rows[~held_out].tolist()), Subset(self, rows[held_out].tolist())

    def unigram_entropy(self) -> float:
        """Of the tokens, in nats: the loss of a model that knows how often each occurs, and nothing else."""
        parts = [part for shard in self.tokens.shards for part in np.array_split(shard, len(shard) // 2**20 + 1)]
        most = max(int(part.max(initial=0)) for part in parts)
        counts = sum(np.bincount(part, minlength=most + 1) for part in parts)
        return torch.distributions.Categorical(torch.from_numpy(counts).double()).entropy().item()
