"""What a user-signal model sees of a reply: sentence embeddings of the user's last turn and of the reply."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


class Embedder:
    """A sentence-transformers model.

    Args:
        folder: the model's folder.
    """

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer  # slow to import, and RL rarely needs it

        self._model = SentenceTransformer(str(folder), local_files_only=True)

    def features(self, rows: Sequence[tuple[str, str]]) -> np.ndarray:
        """Features [N, 3 D]: embeddings of the last user turn u and of the reply r (length 1), and u * r.

        The product lets a linear model see whether the reply takes up what the user said.

        Args:
            rows: (user's last turn, reply) of each. The model cuts texts longer than it reads.
        """
        if not rows:
            return np.zeros((0, 3 * int(self._model.get_embedding_dimension() or 0)))
        texts = [turn for turn, _ in rows] + [reply for _, reply in rows]
        unique = sorted(set(texts))
        place = {text: index for index, text in enumerate(unique)}
        vectors = self._model.encode(
            unique, normalize_embeddings=True, show_progress_bar=False, batch_size=64
        )
        both = np.asarray(vectors, dtype=np.float64)[[place[text] for text in texts]]
        user, reply = both[: len(rows)], both[len(rows) :]
        return np.concatenate([user, reply, user * reply], axis=1)
