"""Templates that write today's date."""

import shutil
from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flywheel_tasks.chat.card import Card
from flywheel_tasks.chat.fixed_date import dated_tokenizer, fix_date
from flywheel_tasks.chat.prompt import prompt_ids
from flywheel_tasks.policy.base_model import save_policy
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.rewards.encoding import reward_tokenizer
from flywheel_tasks.settings import Compute, Sampling

CARD = Card("c1", "Mae", ("dry",), ("Never use emoji.",))
# As Llama 3.1's, shortened: a default where the server gives no clock, and the date in each system message.
DATED = (
    "{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set today = '26 Jul 2024' %}{%- endif %}{{ '<|im_start|>system\n' }}Today Date: {{ today }}\n"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


@pytest.fixture
def dated(tiny_models: Path, tmp_path: Path) -> Path:
    """The tiny policy with a template that writes the date."""
    folder = shutil.copytree(tiny_models / "base", tmp_path / "dated")
    (folder / "chat_template.jinja").write_text(DATED)
    return folder


def shown(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(prompt_ids(tokenizer, CARD, [{"role": "user", "content": "Hi."}], 500)))


def test_the_base_is_saved_with_one_day_and_nothing_else_changed(dated: Path, tmp_path: Path) -> None:
    before = shown(AutoTokenizer.from_pretrained(dated))
    today = datetime.now().strftime("%d %b %Y")
    assert today in before
    save_policy(str(dated), tmp_path, tmp_path / "base")
    assert shown(AutoTokenizer.from_pretrained(tmp_path / "base")) == before.replace(today, "26 Jul 2024")


def test_trainings_and_reward_models_read_a_policys_template_with_the_same_day(dated: Path) -> None:
    """A champion that was saved long ago, or by another team."""
    assert "Today Date: 26 Jul 2024\n" in shown(dated_tokenizer(dated))
    assert "Today Date: 26 Jul 2024\n" in shown(reward_tokenizer(dated))


def test_a_teachers_template_is_fixed_when_it_is_loaded(dated: Path) -> None:
    sampler = Sampler(
        dated,
        sampling=Sampling(max_new_tokens=2, temperature=1.0, top_k=5, batch_rows=1),
        compute=Compute(precision="float32", threads=1),
        max_prompt_tokens=100,
    )
    assert "Today Date: 26 Jul 2024\n" in shown(sampler.tokenizer)


@pytest.mark.parametrize(
    ("format_", "said"),
    [
        ("%d %b %Y", "26 Jul 2024"),
        ("%Y-%m-%d", "2024-07-26"),
        ("%A, %B %-d, %Y at %H:%M", "Friday, July 26, 2024 at 00:00"),
        ("%F", "2024-07-26"),
    ],
)
def test_the_format_is_honoured(tiny_models: Path, format_: str, said: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "base")
    tokenizer.chat_template = f"\n It is {{{{ strftime_now('{format_}') }}}}."
    fix_date(tokenizer)
    once = tokenizer.chat_template
    fix_date(tokenizer)
    assert tokenizer.chat_template == once
    chat = [{"role": "user", "content": "a"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == f"\n It is {said}."


def test_other_templates_stay_as_they_are(tiny_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "base")
    plain = tokenizer.chat_template
    fix_date(tokenizer)
    assert tokenizer.chat_template == plain
    tokenizer.chat_template = {"default": plain, "tool_use": DATED}
    fix_date(tokenizer)
    assert tokenizer.chat_template["default"] == plain
    assert tokenizer.chat_template["tool_use"].endswith(DATED)
    assert tokenizer.chat_template["tool_use"] != DATED
    tokenizer.chat_template = None
    fix_date(tokenizer)
    assert tokenizer.chat_template is None
