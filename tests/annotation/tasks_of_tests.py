"""Tasks and labels for the tests of annotation."""

from flywheel_tasks.annotation.tasks import questions

QUESTIONS = ("false_refusal", "templated", "violates_card")
CARD = {"card_id": "c1", "name": "Mae", "traits": ["dry"], "instructions": ["Never use emoji."]}


def task(
    task_id="t1",
    purpose="reward_train",
    texts=("one a b", "two a b", "three a b", "four a b"),
    user="u1",
    kind="comparison",
    reviews=1,
    extra=(),
    card=CARD,
):
    """A task whose candidates are ``<task>-c0``, ``<task>-c1`` ..."""
    return {
        "task_id": task_id,
        "kind": kind,
        "purpose": purpose,
        "prompt_id": f"p-{task_id}",
        "user_id": user,
        "source": "user",
        "reviews": reviews,
        "card": card,
        "history": [{"role": "user", "content": "Hi."}],
        "candidates": [
            {"candidate_id": f"{task_id}-c{k}", "policy": f"m{k}", "text": text, "drawn": k}
            for k, text in enumerate(texts)
        ],
        "questions": questions(extra),
        "guidelines": "Stay in character.",
    }


def label(of, order=None, annotator="a1", rewrite=None, faults=(), refusals=()):
    """A label; ``order`` lists candidate numbers, best first (a tuple in it: equal ones).

    ``faults`` are the candidates that violate the card, ``refusals`` those that refuse.
    """
    ids = [candidate["candidate_id"] for candidate in of["candidates"]]
    order = order if order is not None else range(len(ids))
    steers = of["kind"] == "steerability"
    return {
        "task_id": of["task_id"],
        "annotator": annotator,
        "simulated": False,
        "ranking": []
        if of["kind"] == "rewrite"
        else [ids[k] if isinstance(k, int) else [ids[item] for item in k] for k in order],
        "answers": {
            item: {
                "false_refusal": k in refusals,
                "templated": False,
                "violates_card": k in faults,
                **{q["name"]: q["choices"][0] if q["choices"] else False for q in of["questions"][3:]},
            }
            for k, item in enumerate(ids)
        },
        "violations": {item: ["instruction-1"] * (k in faults) for k, item in enumerate(ids)}
        if steers
        else {},
        "rewrite": None if rewrite is None else {"candidate_id": ids[rewrite[0]], "text": rewrite[1]},
        "rewrite_skipped": False,
        "seconds": None,
    }
