"""The network of the trained refusal detector: the sentence embedder with low-rank updates, and a linear head.

It reads the end of the user's turn and the reply. The head sees the first state of the last layer, and mean and
maximum of the states of the reply's tokens.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoModel, AutoTokenizer

RANK = 16
_SAID_TOKENS, _REPLY_TOKENS = 48, 160
_BATCH = 32
_HEAD = "head."
Row = tuple[str, str]  # what the user said, maybe nothing; the reply


def token_row(tokenizer: Any, said: str, reply: str) -> tuple[list[int], int]:
    """Token ids that the network reads, the end of the user's turn and then the reply; and where the reply begins.

    Args:
        tokenizer: the embedder's.
        said: the user's last turn, maybe empty.
        reply: the text.
    """
    # Cut before tokenising as well: a pasted book would cost seconds for nothing.
    before: list[int] = tokenizer(said[-600:], add_special_tokens=False)["input_ids"][-_SAID_TOKENS:]
    ids: list[int] = tokenizer(reply[:2000], add_special_tokens=False)["input_ids"][:_REPLY_TOKENS]
    start = [tokenizer.cls_token_id, *before, *([tokenizer.sep_token_id] if before else [])]
    return [*start, *ids, tokenizer.sep_token_id], len(start)


class RefusalNet(nn.Module):
    """Log odds that replies refuse.

    Args:
        embedder: a sentence-transformers folder with a BERT; its own weights stay as they are.
    """

    def __init__(self, embedder: Path) -> None:
        super().__init__()
        bert = AutoModel.from_pretrained(embedder, dtype=torch.float32, use_safetensors=True)
        self.tokenizer = AutoTokenizer.from_pretrained(embedder)
        updates = LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            target_modules=["query", "key", "value", "dense"],
            exclude_modules=r".*pooler.*",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft asks it
            self.bert: Any = get_peft_model(bert, updates)
        self.head = nn.Linear(3 * bert.config.hidden_size, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, reply: torch.Tensor) -> torch.Tensor:
        """Log odds, (rows,).

        Args:
            tokens: ids, (rows, length).
            mask: 1 where there is a token.
            reply: true where it is the reply's (or the end mark after it).
        """
        states = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        weight = reply[..., None].float()
        mean = (states * weight).sum(1) / weight.sum(1)
        most = states.masked_fill(~reply[..., None], -1e4).amax(1)
        seen = torch.cat([states[:, 0], mean, most], dim=1)
        odds: torch.Tensor = self.head(self.dropout(seen))[:, 0]
        return odds

    def read(self, rows: Sequence[Row]) -> list[tuple[list[int], int]]:
        """Token ids of rows, and where each reply begins."""
        return [token_row(self.tokenizer, *row) for row in rows]

    def log_odds(self, rows: Sequence[Row]) -> np.ndarray:
        """Log odds of rows in their order, (rows,); evaluation mode, rows of like length together."""
        read = self.read(rows)
        order = sorted(range(len(read)), key=lambda place: len(read[place][0]))
        found = np.zeros(len(read))
        self.eval()
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                places = order[start : start + _BATCH]
                found[places] = self(*padded([read[place] for place in places])).numpy()
        return found

    def weights(self) -> dict[str, np.ndarray]:
        """What was learned: the updates, and the head, in float16."""
        learned = get_peft_model_state_dict(self.bert)
        learned |= {_HEAD + name: value for name, value in self.head.state_dict().items()}
        return {name: value.detach().numpy().astype(np.float16) for name, value in learned.items()}

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over what :meth:`weights` gave, and fold the updates into the embedder's weights.

        Raises:
            KeyError: a weight is missing.
        """
        values = {name: torch.from_numpy(value.astype(np.float32)) for name, value in weights.items()}
        if missing := sorted(get_peft_model_state_dict(self.bert).keys() - values.keys()):
            raise KeyError(missing[0])
        self.head.load_state_dict({name: values.pop(_HEAD + name) for name in self.head.state_dict()})
        set_peft_model_state_dict(self.bert, values)
        self.bert = self.bert.merge_and_unload()


def padded(read: Sequence[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of :meth:`RefusalNet.read` as one batch: tokens, mask, and which tokens are the reply's."""
    shape = (len(read), max(len(ids) for ids, _ in read))
    tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    reply = torch.zeros(shape, dtype=torch.bool)
    for place, (ids, begin) in enumerate(read):
        tokens[place, : len(ids)], mask[place, : len(ids)] = torch.tensor(ids), 1
        reply[place, begin : len(ids)] = True
    return tokens, mask, reply
