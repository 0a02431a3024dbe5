from flywheel_tasks.storage.forgotten import open_forgotten

USER = "u_" + "0" * 32


def add_and_look(location, root):
    forgotten = open_forgotten(location, root)
    assert forgotten.users("key_1") == frozenset()
    assert forgotten.add("key_1", USER, by="Ada")
    assert not forgotten.add("key_1", USER, by="Bob"), "once is enough, and the first entry stays"
    assert open_forgotten(location, root).users("key_1") == {USER}
    assert forgotten.users("key_10") == frozenset(), "hashes under another key say nothing"


def test_a_folder_keeps_the_list(tmp_path):
    add_and_look("registry", tmp_path)


def test_a_bucket_keeps_the_list(tmp_path, s3_server):
    s3_server.create_bucket(Bucket="forgotten")
    add_and_look("s3://forgotten/registry", tmp_path)
