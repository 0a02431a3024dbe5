"""The table of evaluated replies, ``data/evaluation/replies.parquet``: one row a prompt and sample."""

import pyarrow as pa

_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
REPLIES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int64()),
        ("source", pa.string()),
        ("user_id", pa.string()),
        ("card_id", pa.string()),
        ("card_name", pa.string()),
        ("traits", pa.list_(pa.string())),
        ("instructions", pa.list_(pa.string())),
        ("history", pa.list_(_TURN)),
        ("champion_reply", pa.string()),
        ("candidate_reply", pa.string()),
        ("champion_reward", pa.float64()),
        ("candidate_reward", pa.float64()),
        ("pairwise_p", pa.float64()),
    ]
)
