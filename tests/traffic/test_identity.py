import hashlib
import hmac
import json
import string
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.traffic.identity import (
    DEMO_FINGERPRINT,
    DEMO_KEY,
    HASHED,
    Identity,
    IdentityError,
    Mask,
    UserKey,
    pin_users,
    read_identity,
    user_key,
)

SECRET = "0123456789abcdef" * 4
KEY = UserKey(SECRET)


def test_a_hash_is_that_of_the_standard_library():
    expected = hmac.new(SECRET.encode(), b"flywheel: user\0" + "Zoë".encode(), hashlib.sha256).hexdigest()
    assert KEY.hashed("Zoë") == "u_" + expected[:32]
    assert HASHED.fullmatch(KEY.hashed("Zoë"))
    assert UserKey(SECRET + "x").hashed("Zoë") != KEY.hashed("Zoë")


def test_a_column_is_hashed_like_its_values():
    column = pa.chunked_array([["a", "b", None], ["a", "c"]], pa.string())
    assert KEY.hashed_column(column).to_pylist() == [
        None if user is None else KEY.hashed(user) for user in column.to_pylist()
    ]
    assert KEY.hashed_column(pa.array([], pa.string())).to_pylist() == []


def test_the_secret_is_not_in_what_is_shown():
    assert SECRET not in repr(KEY) + KEY.fingerprint + repr(Identity(KEY, frozenset()))


def test_simulated_users_need_no_key_and_real_ones_do(tmp_path):
    assert user_key("simulated", {}).fingerprint == DEMO_FINGERPRINT
    assert user_key("simulated", {"FLYWHEEL_USER_KEY": SECRET}).fingerprint == KEY.fingerprint
    with pytest.raises(IdentityError, match="flywheel users new-key"):
        user_key("files", {})
    file = tmp_path / "key"
    file.write_text(SECRET + "\n")
    assert user_key("files", {"FLYWHEEL_USER_KEY_FILE": str(file)}).fingerprint == KEY.fingerprint
    assert user_key("files", {"FLYWHEEL_USER_KEY": f" {SECRET}\n"}).fingerprint == KEY.fingerprint
    with pytest.raises(IdentityError, match="there is no key"):
        user_key("files", {"FLYWHEEL_USER_KEY": "\n"})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"FLYWHEEL_USER_KEY": "short"}, "at least 32"),
        ({"FLYWHEEL_USER_KEY": DEMO_KEY}, "published key of the demo"),
        ({"FLYWHEEL_USER_KEY": DEMO_KEY + "\n"}, "published key of the demo"),
        ({"FLYWHEEL_USER_KEY": SECRET, "FLYWHEEL_USER_KEY_FILE": "x"}, "both set"),
        ({"FLYWHEEL_USER_KEY_FILE": "no/such/file"}, "cannot be read"),
    ],
)
def test_a_key_that_will_not_do_is_refused(environ, words):
    with pytest.raises(IdentityError, match=words) as error:
        user_key("files", environ)
    assert SECRET not in str(error.value)


def test_a_generation_is_read_with_its_own_key(tmp_path: Path):
    path = tmp_path / "users.json"
    write_json(pin_users(KEY.fingerprint, {KEY.hashed("a")}), path)
    identity = read_identity(path, {"FLYWHEEL_USER_KEY": SECRET})
    assert identity.hashed("a") in identity.forgotten
    with pytest.raises(IdentityError, match="the environment holds key_"):
        read_identity(path, {"FLYWHEEL_USER_KEY": SECRET + "x"})
    with pytest.raises(IdentityError, match="there is no key"):
        read_identity(path, {})
    write_json(pin_users(DEMO_FINGERPRINT, set()), path)
    assert read_identity(path, {"FLYWHEEL_USER_KEY": SECRET}).key.fingerprint == DEMO_FINGERPRINT
    write_json({"key": KEY.fingerprint, "forgotten": ["maria"]}, path)
    with pytest.raises(IdentityError, match=r"forgotten\[0\] is not a hash"):
        read_identity(path, {"FLYWHEEL_USER_KEY": SECRET})


@given(
    user=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    cut=st.integers(0, 40),
    ascii_only=st.booleans(),
)
def test_ids_are_masked_in_lines_however_they_are_written(user, cut, ascii_only):
    start = '{"type": "message", "user_id" : ' if ascii_only else '{"user_id":'
    value = json.dumps(user) if ascii_only else orjson.dumps(user).decode()
    mask = Mask(Identity(KEY, frozenset([KEY.hashed(user)])), {})
    whole, _, forgotten = mask.masked(start + value + ', "text": "hi"}')
    assert whole == start + f'"{KEY.hashed(user)}", "text": "hi"}}'
    assert forgotten
    shortened = start + value
    shortened = shortened[: max(len(start), len(shortened) - cut)]
    masked = mask.masked(shortened).text
    kept = masked.removeprefix(start).strip('"')
    assert not kept or HASHED.fullmatch(kept) or not set(kept) & set(string.ascii_letters + string.digits)


ALICE = "alice@corp.com"


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ('{"author":"alice@corp.com","type":5', '{"author":"ALICE","type":5'),
        ('{"作者":"alice@corp.com"', '{"作者":"ALICE"'),
        ('{"\\u4f5c\\u8005": "alice@corp.com"', '{"\\u4f5c\\u8005": "ALICE"'),
        ('{"user_id":["alice@corp.com"],"text":"hi"}', '{"user_id":["ALICE"],"text":"hi"}'),
        ('{"user_id":{"alice@corp.com":[{}]},"text":"hi"}', '{"user_id":{"ALICE":[{}]},"text":"hi"}'),
        ('{"user_id":["alice@corp.com"', '{"user_id":["ALICE"'),
        ('{"user_id" : [["alice@corp.com", }', '{"user_id" : [["ALICE", }'),
        ("{'user_id': ['alice@corp.com'], 'n': 1}", "{'user_id': ['ALICE'], 'n': 1}"),
        ('{"user_id":alice@corp.com,"n":1}', '{"user_id":"ALICE","n":1}'),
        ('{"user_id":}, {"user_id":,"n":1}, "alice"', '{"user_id":}, {"user_id":,"n":1}, "alice"'),
        ('{"the_user_id":"alice@corp.com"}', '{"the_user_id":"alice@corp.com"}'),
    ],
)
def test_ids_are_masked_under_all_names_and_inside_of_objects_and_arrays(line, masked):
    identity = Identity(KEY, frozenset([KEY.hashed(ALICE)]))
    hashed = masked.replace("ALICE", KEY.hashed(ALICE))
    mask = Mask(identity, {"author": "user_id", "作者": "user_id", "kind": "type"})
    assert mask.masked(line)[::2] == (hashed, "ALICE" in masked)


def test_every_string_and_number_of_an_object_counts_as_an_id():
    masked = Mask(Identity(KEY, frozenset()), {}).masked('{"user_id":{"id":"alice","n":42},"n":42}').text
    inside = {KEY.hashed("id"): KEY.hashed("alice"), KEY.hashed("n"): KEY.hashed("42")}
    assert json.loads(masked) == {"user_id": inside, "n": 42}


@given(
    user=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    depth=st.integers(1, 3),
    inside=st.booleans(),
    ascii_only=st.booleans(),
)
def test_ids_are_masked_in_json_within_json(user, depth, inside, ascii_only):
    """As loggers write it that encode a line twice; the string after the id stays."""

    def written(name):
        event = {"作者": [name] if inside else name, "text": 'so "he" said\\'}
        line = json.dumps(event, ensure_ascii=ascii_only)
        for _ in range(depth):
            line = json.dumps(line, ensure_ascii=ascii_only)
        return line

    mask = Mask(Identity(KEY, frozenset([KEY.hashed(user)])), {"作者": "user_id"})
    assert mask.masked(written(user))[::2] == (written(KEY.hashed(user)), True)
