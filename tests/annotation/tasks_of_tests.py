"""Tasks and labels for the tests of annotation."""

QUESTIONS = ("false_refusal", "templated", "violates_card")


def task(
    task_id="t1", purpose="reward_train", texts=("one a b", "two a b", "three a b", "four a b"), user="u1"
):
    """A task whose candidates are ``<task>-c0``, ``<task>-c1`` ..."""
    return {
        "task_id": task_id,
        "purpose": purpose,
        "prompt_id": f"p-{task_id}",
        "user_id": user,
        "source": "user",
        "card": {"card_id": "c1", "name": "Mae", "traits": ["dry"], "instructions": ["Never use emoji."]},
        "history": [{"role": "user", "content": "Hi."}],
        "candidates": [
            {"candidate_id": f"{task_id}-c{k}", "policy": "m", "text": text} for k, text in enumerate(texts)
        ],
        "questions": list(QUESTIONS),
    }


def label(of, order=None, annotator="a1", rewrite=None, faults=()):
    """A label; ``order`` lists candidate numbers, the best first, ``faults`` those that violate the card."""
    ids = [candidate["candidate_id"] for candidate in of["candidates"]]
    return {
        "task_id": of["task_id"],
        "annotator": annotator,
        "simulated": False,
        "ranking": [ids[k] for k in (order if order is not None else range(len(ids)))],
        "answers": {
            item: {question: question == "violates_card" and k in faults for question in QUESTIONS}
            for k, item in enumerate(ids)
        },
        "rewrite": None if rewrite is None else {"candidate_id": ids[rewrite[0]], "text": rewrite[1]},
    }
