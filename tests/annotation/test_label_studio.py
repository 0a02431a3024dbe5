import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface
from lxml import html

from flywheel_tasks.annotation.interface import EQUAL, NO_VIOLATION, interface_id, interface_of
from flywheel_tasks.annotation.label_studio import card_html, conversation_html, rule_choices, task_data
from flywheel_tasks.annotation.reading import read_files
from flywheel_tasks.annotation.tasks import AnnotationError, short_id
from tests.annotation.exports import annotation, exported, filled, json_min, result_of
from tests.annotation.tasks_of_tests import CARD, task

EXTRA = [{"name": "tone", "text": 'Warm, "cold" or <neither>?', "choices": ["warm", "cold & dry"]}]
PAIR = task("t1", texts=("one a b", "two a b"), extra=EXTRA)
TRIO = task("t2", texts=("one a b", "two a b", "three a b"), reviews=3)
STEERS = task("t3", "policy", kind="steerability", texts=("one a b", "two a b"))
REWRITE = task("t4", "policy", kind="rewrite", texts=("bad reply",))
ALL = (PAIR, TRIO, STEERS, REWRITE)


def reading_of(tmp_path, rows, tasks=ALL, name="export.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    return read_files([(name, path)], tasks)


@pytest.mark.parametrize("of", ALL, ids=lambda of: of["kind"] + str(len(of["candidates"])))
def test_label_studio_accepts_the_interface_the_task_and_an_annotation(of):
    interface = LabelInterface(interface_of(of))
    interface.validate()
    assert interface.validate_task({"data": task_data(of)})
    interface.load_task(task_data(of))
    entered = {"result": result_of(of, filled(of, rewrite="better"))}
    assert interface.validate_annotation(entered)
    entered["result"][0]["value"] = {"choices": ["no such choice"]}
    assert not interface.validate_annotation(entered)


@pytest.mark.parametrize("of", ALL, ids=lambda of: of["kind"] + str(len(of["candidates"])))
def test_no_control_belongs_to_several_objects(of):
    # With toName="a,b" Label Studio lost the entries (HumanSignal/label-studio#5649).
    controls = list(LabelInterface(interface_of(of)).controls)
    assert controls
    assert all(len(control.to_name) == 1 for control in controls)


@pytest.mark.parametrize("of", ALL, ids=lambda of: of["kind"] + str(len(of["candidates"])))
def test_the_two_questions_are_always_asked_of_every_reply_and_must_be_answered(of):
    controls = {control.name: control for control in LabelInterface(interface_of(of)).controls}
    for number in range(len(of["candidates"])):
        for question in ("false_refusal", "templated"):
            assert controls[f"{question}_{number}"].attr["required"] == "true"


def test_no_annotator_sees_who_wrote_a_reply_or_whose_chat_it_is():
    shown = json.dumps([task_data(of) for of in ALL])
    for of in ALL:
        assert all(candidate["policy"] not in shown for candidate in of["candidates"])
        assert of["user_id"] not in shown
    assert "drawn" not in shown


def test_a_changed_question_is_another_interface():
    assert interface_id(PAIR) != interface_id(task("t1", texts=("one a b", "two a b")))
    assert interface_id(PAIR) == interface_id(task("t9", texts=("x", "y"), extra=EXTRA))


@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_text_of_a_card_stays_text(name, trait, instructions):
    shown = card_html({"name": name, "traits": [trait], "instructions": instructions}, highlighted=True)
    document = html.fragment_fromstring(shown.replace("\x00", ""), create_parent="div")
    assert {tag.tag for tag in document.iter()} <= {"div", "h3", "p", "ul", "li", "mark"}
    assert len(document.findall(".//li")) == 1 + len(instructions)
    assert all(not tag.attrib for tag in document.iter())


@given(st.text(), st.lists(st.text(), max_size=3))
def test_what_was_said_stays_text(name, texts):
    roles = ("user", "assistant")
    history = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    shown = conversation_html({"card": {"name": name}, "history": history})
    document = html.fragment_fromstring(shown.replace("\x00", ""), create_parent="div")
    assert {tag.tag for tag in document.iter()} <= {"div", "p", "strong"}
    assert len(document.findall("p")) == len(texts)
    assert all(not tag.attrib for tag in document.iter())


def test_markup_of_users_is_escaped_where_html_is_shown():
    evil = {
        "card_id": "c",
        "name": "<script>x</script>",
        "traits": [],
        "instructions": ["<img src=x onerror=y>"],
    }
    said = [{"role": role, "content": "<img src=x onerror=z>\n  a  b"} for role in ("user", "assistant")]
    data = task_data(task(kind="steerability", card=evil) | {"history": said})
    shown = "&lt;img src=x onerror=z&gt;\n  a  b</p>"
    assert data["conversation"] == (
        f"<p><strong>User:</strong> {shown}<p><strong>&lt;script&gt;x&lt;/script&gt;:</strong> {shown}"
    )
    assert "<script" not in data["card"]
    assert "<img" not in data["card"]
    assert all("<img" not in rule["html"] for rule in data["rules"])
    assert data["rules"][0]["value"] == "Instruction 1: <img src=x onerror=y>"


def every_annotation():
    return {
        "t1": filled(PAIR, (1, 0), faults=(0,), rewrite="so"),
        "t2": filled(TRIO, (2, 0, 1)),
        "t3": filled(
            STEERS, (1, 0), violated={0: ["instruction-1"], 1: ["trait-1", "instruction-1"]}, rewrite=" x "
        ),
        "t4": filled(REWRITE, skipped=True),
    }


def check_labels(reading, who):
    assert (reading.quarantined, len(reading.labels)) == ([], 4)
    labels = {row["task_id"]: row for row in reading.labels}
    assert {row["annotator"] for row in reading.labels} == {who}
    assert not any(row["simulated"] for row in reading.labels)
    assert labels["t1"]["ranking"] == ["t1-c1", "t1-c0"]
    assert labels["t1"]["answers"]["t1-c0"] == {
        "false_refusal": False,
        "templated": False,
        "violates_card": True,
        "tone": "cold & dry",
    }
    assert labels["t1"]["rewrite"] == {"candidate_id": "t1-c1", "text": "so"}
    assert labels["t2"]["ranking"] == ["t2-c2", "t2-c0", "t2-c1"]
    assert labels["t3"]["violations"] == {"t3-c0": ["instruction-1"], "t3-c1": ["instruction-1", "trait-1"]}
    assert labels["t3"]["answers"]["t3-c1"]["violates_card"] is True
    assert labels["t3"]["rewrite"] == {"candidate_id": "t3-c1", "text": "x"}
    assert (labels["t4"]["ranking"], labels["t4"]["rewrite"], labels["t4"]["rewrite_skipped"]) == (
        [],
        None,
        True,
    )
    assert labels["t1"]["seconds"] == 41.25


@pytest.mark.parametrize("by", [7, {"id": 7, "email": "mo@example.org", "first_name": "", "last_name": ""}])
def test_labels_come_back_from_format_json(tmp_path, by):
    values = every_annotation()
    rows = [
        exported(of, annotation(of, values[of["task_id"]], number=k, by=by), number=k)
        for k, of in enumerate(ALL)
    ]
    check_labels(reading_of(tmp_path, rows), "7")


def test_labels_come_back_from_format_json_min(tmp_path):
    values = every_annotation()
    rows = []
    for k, of in enumerate(ALL):
        (tmp_path / of["task_id"]).mkdir()
        source = [exported(of, annotation(of, values[of["task_id"]], number=k + 1), number=k)]
        rows += json_min(of, source, tmp_path / of["task_id"])
    check_labels(reading_of(tmp_path, rows), "7")


def test_tied_places_and_equal_replies(tmp_path):
    trio = filled(TRIO) | {"place_0": ["2"], "place_1": ["1"], "place_2": ["2"]}
    pair = filled(PAIR) | {"preference": [EQUAL]}
    rows = [exported(TRIO, annotation(TRIO, trio)), exported(PAIR, annotation(PAIR, pair))]
    labels = reading_of(tmp_path, rows).labels
    assert labels[0]["ranking"] == ["t2-c1", ["t2-c0", "t2-c2"]]
    assert labels[1]["ranking"] == [["t1-c0", "t1-c1"]]


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


BROKEN = {
    "missing_answer": lambda: exported(PAIR, annotation(PAIR, without(filled(PAIR), "templated_1"))),
    "empty": lambda: exported(PAIR, annotation(PAIR, {})),
    "cancelled": lambda: exported(PAIR, annotation(PAIR, filled(PAIR), cancelled=True)),
    "no_annotator": lambda: exported(PAIR, annotation(PAIR, filled(PAIR), by=None)),
    "rewrite_missing": lambda: exported(REWRITE, annotation(REWRITE, filled(REWRITE))),
    "rewrite": lambda: exported(REWRITE, annotation(REWRITE, filled(REWRITE, rewrite="bad reply "))),
    "contradiction": lambda: exported(
        STEERS,
        annotation(
            STEERS,
            filled(STEERS) | {"violated_0": [rule_choices(CARD)["trait-1"], NO_VIOLATION]},
        ),
    ),
    "unknown_task": lambda: exported(task("t9"), annotation(task("t9"), filled(task("t9")))),
    "draft": lambda: exported(PAIR, drafts=[{"id": 4, "user": "mo@example.org", "result": []}]),
}


@pytest.mark.parametrize("rule", sorted(BROKEN))
def test_each_broken_rule_is_quarantined_by_name(tmp_path, rule):
    reading = reading_of(tmp_path, [BROKEN[rule]()])
    assert (reading.labels, [row["rule"] for row in reading.quarantined]) == ([], [rule])
    row = reading.quarantined[0]
    assert row["file"] == "export.json"
    assert row["place"].startswith("entry 0, ")
    assert row["task_id"].startswith("t")
    assert row["detail"]


def changed(**changes):
    row = exported(PAIR, annotation(PAIR, filled(PAIR)))
    row["data"] |= changes
    return row


def region(**changes):
    row = exported(PAIR, annotation(PAIR, filled(PAIR)))
    row["annotations"][0]["result"][0] |= changes
    return row


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (changed(reply_1="two a b."), "text_changed"),
        (changed(conversation="<p>Hi</p>"), "text_changed"),
        (changed(interface="comparison-2-000000000000"), "interface_version"),
        (region(value={"choices": ["Perhaps"]}), "unknown_choice"),
        (region(value={"choices": ["Yes", "No"]}), "several_answers"),
        (region(value={"rating": 3}), "malformed"),
        (region(type="pairwise", value={"selected": "left"}), "malformed"),
        (region(from_name="mood_0"), "missing_answer"),
        (region(from_name="templated_0"), "malformed"),
    ],
)
def test_what_is_not_of_this_interface_is_quarantined(tmp_path, row, rule):
    reading = reading_of(tmp_path, [row])
    assert (reading.labels, [item["rule"] for item in reading.quarantined]) == ([], [rule])


def test_an_entry_that_the_interface_does_not_have(tmp_path):
    row = exported(PAIR, annotation(PAIR, filled(PAIR)))
    more = dict(row["annotations"][0]["result"][0], from_name="mood_0")
    row["annotations"][0]["result"].append(more)
    assert [item["rule"] for item in reading_of(tmp_path, [row]).quarantined] == ["unknown_control"]


def test_an_export_that_lost_its_entries_is_noticed(tmp_path):
    # The record of HumanSignal/label-studio#5649: all about the annotation is there, only not what was entered.
    whole = [exported(PAIR, annotation(PAIR, filled(PAIR)))]
    (lost,) = json_min(PAIR, whole, tmp_path)
    lost = {
        key: value
        for key, value in lost.items()
        if key in task_data(PAIR)
        or key in ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
    }
    reading = reading_of(tmp_path, [lost])
    assert (reading.labels, [row["rule"] for row in reading.quarantined]) == ([], ["empty"])


def test_of_several_annotations_by_one_person_the_newest_counts(tmp_path):
    first = annotation(PAIR, filled(PAIR, (0, 1)), number=1, updated="2026-11-09T10:00:00Z")
    newer = annotation(PAIR, filled(PAIR, (1, 0)), number=2, updated="2026-11-09T11:00:00Z")
    other = annotation(PAIR, filled(PAIR, (0, 1)), number=3, by=8)
    reading = reading_of(tmp_path, [exported(PAIR, first, newer, other)])
    assert [(row["annotator"], row["ranking"][0]) for row in reading.labels] == [
        ("7", "t1-c1"),
        ("8", "t1-c0"),
    ]
    assert [(row["rule"], row["place"]) for row in reading.quarantined] == [
        ("duplicate", "entry 0, annotation 1")
    ]


def test_what_is_broken_or_half_done_takes_no_labels_place_and_a_later_skip_does(tmp_path):
    def later(hour, **also):
        return annotation(PAIR, also.pop("values", filled(PAIR)), updated=f"2026-11-09T{hour}:00:00Z", **also)

    sound = later(10, number=1)
    draft = later(13, number=4) | {"user": 7}
    broken = later(12, number=3, values={})
    early, late = (later(hour, number=2, cancelled=True) for hour in ("09", "11"))
    for others, drafts, rules in (
        ([broken], [draft], {3: "empty", 4: "draft"}),
        ([early], [], {2: "cancelled"}),
        ([late, broken], [draft], {1: "duplicate", 2: "cancelled", 3: "empty", 4: "draft"}),
        ([late, later(12, number=5)], [], {1: "duplicate", 2: "cancelled"}),
    ):
        reading = reading_of(tmp_path, [exported(PAIR, sound, *others, drafts=drafts)])
        found = {int(row["place"].rsplit(" ", 1)[1]): row["rule"] for row in reading.quarantined}
        assert found == rules
        used = [1, *(item["id"] for item in others), *(item["id"] for item in drafts)]
        assert len(reading.labels) == len(set(used) - set(rules))
    reading = reading_of(tmp_path, [exported(PAIR, sound, late)])
    assert reading.quarantined[0]["detail"] == "7 skipped this task later, in entry 0, annotation 2"


@pytest.mark.parametrize("by", ["mo@example.org", {"email": "MO@example.org", "first_name": "Mo"}])
def test_an_address_is_no_annotators_id(tmp_path, by):
    reading = reading_of(tmp_path, [exported(PAIR, annotation(PAIR, filled(PAIR), by=by))])
    assert [row["annotator"] for row in reading.labels] == [f"a-{short_id('mo@example.org')}"]


def test_the_same_export_delivered_twice_counts_once(tmp_path):
    row = [exported(PAIR, annotation(PAIR, filled(PAIR)))]
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(row))
    reading = read_files([(name, tmp_path / name) for name in ("a.json", "b.json")], ALL)
    assert len(reading.labels) == 1
    assert "a.json, entry 0, annotation 1" in reading.quarantined[0]["detail"]
    assert reading.read == 2


def test_tasks_that_nobody_annotated_are_counted_and_not_labels(tmp_path):
    rows = [exported(PAIR), *json_min(PAIR, [exported(PAIR)], tmp_path)]
    reading = reading_of(tmp_path, rows)
    assert (reading.unlabelled, reading.read) == (2, 0)


@pytest.mark.parametrize("document", [{"a": 1}, [1], [{"text": "x"}]])
def test_other_json_is_an_error_that_names_the_file(tmp_path, document):
    with pytest.raises(AnnotationError, match=r"export\.json: "):
        reading_of(tmp_path, document)


@given(st.data())
def test_counts_add_up_whatever_is_entered(tmp_path_factory, data):
    names = [*filled(PAIR, rewrite="x"), "mood_0"]
    values = data.draw(
        st.lists(
            st.dictionaries(
                st.sampled_from(names[:-1]),
                st.lists(st.sampled_from(["Yes", "No", "warm", EQUAL, ""]), max_size=2),
            ),
            max_size=4,
        )
    )
    by = data.draw(st.lists(st.sampled_from([1, 2]), min_size=len(values), max_size=len(values)))
    cancelled = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    annotations = [
        annotation(PAIR, entered, number=k, by=by[k], cancelled=cancelled[k])
        for k, entered in enumerate(values)
    ]
    reading = reading_of(tmp_path_factory.mktemp("export"), [exported(PAIR, *annotations)])
    assert reading.read == len(values)
    assert len({row["annotator"] for row in reading.labels}) == len(reading.labels)
