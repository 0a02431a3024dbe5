import pytest
from typer.testing import CliRunner

from flywheel_tasks.annotation.preview import write_preview
from flywheel_tasks.cli.app import app
from flywheel_tasks.storage.documents import write_json, write_jsonl
from tests.annotation.tasks_of_tests import task
from tests.conftest import PROJECT

EVIL = "<script>document.title = 'hacked'</script> & <b>bold</b> " + "long" * 60
CARD = {"card_id": "c", "name": "Mae <i>", "traits": ["dry <u>"], "instructions": [EVIL, "Never use emoji."]}
TASKS = [
    *(task(f"t{k}", texts=("one a b", EVIL, "three 😀")) for k in range(4)),
    task("t5", "policy", kind="steerability", texts=("one a b", "two\nlines"), card=CARD),
    task("t6", "policy", kind="rewrite", texts=("bad reply",)),
]


@pytest.fixture
def page(tmp_path):
    assert write_preview(TASKS, tmp_path / "preview.html", generation="g0001", most=2) == 4
    return tmp_path / "preview.html"


def test_texts_are_escaped_and_policies_are_not_shown(page):
    text = page.read_text()
    assert "<script>document" not in text
    assert "&lt;script&gt;" in text
    assert all(f">m{k}<" not in text for k in range(3))
    assert "<mark>Never use emoji.</mark>" in text
    assert "<p><strong>User:</strong> Hi.</p>" in text


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_in_a_browser(browser, page, scheme, width):
    with browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme) as view:
        requests = []
        view.on("request", lambda request: requests.append(request.url))
        view.goto(page.as_uri())
        assert view.title() == "Annotation tasks of g0001"  # planted script did not run
        assert requests == [page.as_uri()]
        assert view.locator("article").count() == 4
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        back = view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")


def test_command(tmp_path):
    write_jsonl(TASKS, tmp_path / "data/annotation/batch.jsonl")
    write_json({"generation": "g0001"}, tmp_path / "inputs/generation.json")
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    done = CliRunner().invoke(
        app, ["annotation", "preview", str(tmp_path / "p.html"), "--root", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "6 of 6 tasks" in done.output
