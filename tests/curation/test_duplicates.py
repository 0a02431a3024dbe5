from flywheel_tasks.curation.duplicates import normal_key, prompt_text
from tests.curation.rows import prompt


def test_keys_ignore_case_and_spacing_but_not_the_card_or_the_history():
    rows = [
        prompt("p1", "Hi  there"),
        prompt("p2", "hi there"),
        prompt("p3", "hi there", card_id="c2"),
        prompt("p4", "hi there", before=[{"role": "assistant", "content": "Welcome."}]),
    ]
    keys = [normal_key(row) for row in rows]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_what_is_embedded_is_the_end_of_the_chat():
    before = [{"role": role, "content": text} for role, text in (("user", "One"), ("assistant", "Two"))]
    assert prompt_text(prompt("p", "Three", before=before), "Mae") == "Mae\nTwo\nThree"
