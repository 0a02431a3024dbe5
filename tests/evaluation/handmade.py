"""Hand-made metrics and replies that look like a generation's."""

from typing import Any


def estimate(value: float | None, n: int = 60) -> dict[str, Any]:
    """A value with a made-up interval: ±0.1 of a share, ±2 of a count."""
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    if value > 1:
        return {"value": value, "low": value - 2, "high": value + 2, "n": n, "clusters": 9}
    return {
        "value": value,
        "low": max(0.0, value - 0.1),
        "high": min(1.0, value + 0.1),
        "n": n,
        "clusters": 9,
    }


def label_set(pairs: int, accuracy: float) -> dict[str, Any]:
    """What a reward model is measured with on one set of labels."""
    return {
        "pairs": pairs,
        "accuracy": estimate(accuracy, pairs),
        "brier": estimate(0.241, pairs),
        "calibration_error": estimate(0.083, pairs),
    }


def comparison(**features: tuple[float, float, float | None, float | None]) -> dict[str, Any]:
    """A style comparison from before, after, effect and p of each feature."""
    rows = {
        name: {
            "before": before,
            "after": after,
            "effect": effect,
            "p_value": p,
            "p_holm": p,
            "flagged": p is not None and p < 0.05,
        }
        for name, (before, after, effect, p) in features.items()
    }
    return {"rows": 60, "users": 9, "flagged": sum(row["flagged"] for row in rows.values()), "features": rows}


def style_metrics() -> dict[str, Any]:
    """Comparisons in which length changed a little, and nothing else."""
    return {
        "comparisons": {
            "high_vs_low_reward": comparison(words=(28.0, 22.0, -0.4, 0.01), emoji=(0.1, 0.1, 0.0, 1.0)),
            "generation": comparison(
                words=(26.4, 21.8, -0.25, 0.014), emoji=(0.05, 0.2, 0.2, 1.0), list=(0.0, 0.0, 0.0, None)
            ),
        },
        "absent": {"sft_to_dpo": "no replies are kept"},
        "found": [],
        "trend": {
            "points": ["champion", "before RL", "after RL"],
            "features": {"words": [26.4, 24.0, 21.8], "emoji": [0.05, 0.1, 0.2], "list": [0.0, 0.0, 0.0]},
        },
    }


def metrics(
    user: float | None = 0.60,
    internal: float | None = 0.57,
    false_refusal: float = 0.05,
    accuracy: float = 0.62,
) -> dict[str, Any]:
    """Metrics of all stages; the defaults pass the gate."""
    gap = None if user is None or internal is None else user - internal
    rates = {"user": estimate(user, 30), "internal": estimate(internal, 30), "all": estimate(0.585)}
    shares = {
        "false_refusal": (0.08, false_refusal),
        "breaks_character": (0.10, 0.02),
        "templated": (0.12, 0.07),
        "wall_of_text": (0.0, 0.0),
        "list": (0.02, 0.0),
        "emoji": (0.05, 0.12),
        "cut_off": (0.42, 0.20),
        "at_limit": (0.30, 0.12),
        "withheld": (0.0, 0.0),
        "identifier": (0.0, 0.0),
        "empty": (0.0, 0.0),
        "instruction_following": (0.31, 0.44),
        "instruction_violation": (0.81, 0.70),
        "words": (26.4, 21.8),
        "tokens": (33.0, 27.2),
    }
    style = style_metrics()
    return {
        "ingest": {
            "partitions": 7,
            "read": 2345,
            "accepted": {"total": 2338, "card": 20, "message": 1800, "signal": 518, "exposure": 0},
            "quarantined": {"total": 4, "not_json": 3, "unknown_signal": 1},
            "duplicates": 3,
        },
        "validate": {"rows": 2338, "quarantined": {"total": 2, "card_missing": 2}},
        "curate": {"prompts": 398, "removed": {"privacy": 5, "near_duplicate": 61, "user_cap": 12}},
        "split": {"prompts": {"reward_train": 140, "reward_heldout": 60, "evaluation": 61}},
        "annotate": {"pairs": 300, "rewrites": 44, "removed": {"length_ratio": 9}},
        "train_pointwise_rm": {
            "steps": 27,
            "loss_first": 0.72,
            "loss_last": 0.58,
            "pairs": {
                "own": 210,
                "earlier": 90,
                "by_generation": {"g0007": {"launched_with": 200, "used": 90, "over_limit": 110}},
            },
            "heldout": {
                **label_set(96, accuracy),
                "surface": {
                    "feature": "ends with a question",
                    "better": "more",
                    "accuracy": estimate(0.58, 96),
                },
                "by_set": {"consensus": label_set(70, 0.64), "single_review": label_set(90, 0.55)},
            },
            "card_reading": {"twins": 40, "share": estimate(0.55, 40), "accuracy": estimate(0.51, 80)},
            "earlier": {
                "generation": "g0007",
                "left_out_trained_on": 3,
                **label_set(93, 0.58),
                "accuracy_gain": {**estimate(0.04, 93), "low": -0.03},
                "brier_gain": {**estimate(0.01, 93), "low": -0.005, "high": 0.025},
                "only_this_right": 9,
                "only_earlier_right": 5,
            },
        },
        "train_pairwise_rm": {
            "steps": 16,
            "heldout": {
                "accuracy": estimate(0.59, 96),
                "by_set": {"consensus": label_set(60, 0.57), "single_review": label_set(70, 0.54)},
            },
            "earlier": {
                "generation": None,
                "accuracy_gain": {**estimate(None), "reason": "no earlier model: none was launched"},
                "brier_gain": {**estimate(None), "reason": "no earlier model: none was launched"},
            },
        },
        "train_signal_models": {
            "continue": {"auc": estimate(0.64, 120)},
            "thumb_up": {"auc": estimate(0.55, 120)},
        },
        "rejection_sample": {"candidates": 192, "accepted": 31, "dropped": {"low_reward": 17}},
        "sft": {"steps": 18, "loss_first": 3.1, "loss_last": 2.4},
        "dpo": {"steps": 8, "loss_first": 0.69, "loss_last": 0.66},
        "rl": {
            "steps": 10,
            "heldout": {"reward_before": 0.11, "reward_after": 0.35, "reward_gain": estimate(0.24, 40)},
        },
        "evaluate": {
            "prompts": {"user": 30, "internal": 30, "all": 60},
            "win_rate": {
                "pointwise": rates,
                "pairwise": {
                    "user": estimate(0.55, 30),
                    "internal": estimate(0.52, 30),
                    "all": estimate(0.53),
                },
            },
            "divergence": {"pointwise": estimate(gap)},
            "production": {
                name: {"champion": estimate(old), "candidate": estimate(new)}
                for name, (old, new) in shares.items()
            }
            | {
                "cooperation": {
                    side: {**estimate(None), "reason": "no judge is set"}
                    for side in ("champion", "candidate")
                }
            },
            "change": {
                name: {**estimate(new - old), "low": new - old - 0.15, "high": new - old + 0.15}
                for name, (old, new) in shares.items()
            },
            "suites": {"red_team": estimate(0.98, 40)},
            "judge": "none",
            "instructions": {"checked": 38, "unchecked": 2},
        },
        "style": style,
    }


def replies(count: int = 12, planted: str = "") -> list[dict[str, Any]]:
    """Rows of ``replies.parquet``; ``planted`` goes into every text that a user or a model wrote."""
    rows = []
    for i in range(count):
        rows.append(
            {
                "prompt_id": f"p{i:03}",
                "sample": 0,
                "source": "user" if i % 2 else "internal",
                "user_id": f"u{i // 2}",
                "card_id": "harbor-mae",
                "card_name": "Captain Mae" + planted,
                "traits": ["retired ferry captain"],
                "instructions": ["Always mention the sea." + planted, "Answer in at most 25 words."],
                "history": [
                    {"role": "user", "content": "Good morning, captain." + planted},
                    {"role": "assistant", "content": "Morning. The sea is calm." + planted},
                    {"role": "user", "content": f"Tell me about storm number {i}, will you?" + planted},
                ],
                "champion_reply": f"I am an AI assistant and I can't say much about storm {i}" + planted,
                "candidate_reply": f"Storm {i}? The sea stood up like a wall, and we went over it anyway!"
                + planted,
                "champion_reward": 0.1 * i,
                "candidate_reward": 0.6,
                "pairwise_p": 0.7 if i % 3 else 0.3,
            }
        )
    return rows
