"""What of a campaign's models is removed from DVC's cache, and what never is."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import yaml

from flywheel_tasks.campaign import space
from flywheel_tasks.campaign.folder import Folder, share
from flywheel_tasks.settings import Campaign
from flywheel_tasks.storage.documents import write_json
from tests.campaign.handmade import PLAN

TOKENIZER = b"every model has it"


class Registry:
    """Champion, the one before, and reward models, as a registry tells them."""

    def __init__(self, champion, previous, reward_models):
        ref = lambda md5: md5 and SimpleNamespace(dvc=SimpleNamespace(md5=md5))  # noqa: E731
        self._state = SimpleNamespace(champion=ref(champion), previous=ref(previous))
        self._rewards = reward_models

    def state(self):
        return self._state

    def generations(self):
        return ["g0001", "g0002"]

    def find_generation(self, name, what):
        found = {"pointwise": {"dvc": {"md5": self._rewards}}}
        return json.dumps(found).encode() if name == "g0002" and self._rewards else None


def _store(cache, data, end=""):
    md5 = hashlib.md5(data).hexdigest() + end
    path = cache / "files/md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return md5


def _model(cache, name):
    """A folder of a model in the cache; its hash."""
    files = {"model.safetensors": name.encode() * 1000, "tokenizer.json": TOKENIZER}
    listed = [{"md5": _store(cache, data), "relpath": path} for path, data in files.items()]
    return _store(cache, json.dumps(listed).encode(), ".dir")


def _weights(cache, name):
    md5 = hashlib.md5(name.encode() * 1000).hexdigest()
    return cache / "files/md5" / md5[:2] / md5[2:]


def _lock(root, hashes):
    outs = [{"path": path, "md5": md5} for path, md5 in hashes.items()]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"all": {"outs": outs}}}))


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """Two generations of two models each, the first launched and promoted; the registries by workspace."""
    folder, cache = Folder(tmp_path / "here"), tmp_path / "cache"
    share(folder, cache)
    write_json(PLAN, folder.plan)
    found = []
    for number in (1, 2):
        models = {
            f"models/{kind}": _model(cache, f"{kind} {number}")
            for kind in ("policy", "policy_dpo", "pointwise_rm")
        }
        found.append({"models": models})
    _lock(folder.workspace, {**found[1]["models"], "models/base": _model(cache, "base")})
    for path in found[1]["models"]:
        (folder.workspace / path).mkdir(parents=True)
    registries = {folder.workspace: Registry(found[0]["models"]["models/policy"], None, None)}
    monkeypatch.setattr(space, "open_registry", lambda location, root: registries[root])
    return SimpleNamespace(folder=folder, cache=cache, found=found, registries=registries, tmp=tmp_path)


def _prune(campaign, over=False, **plan):
    return space.prune(campaign.folder, Campaign.model_validate(PLAN | plan), campaign.found, over=over)


def _here(campaign, *names):
    return [_weights(campaign.cache, name).exists() for name in names]


def test_only_what_is_read_again_stays(campaign):
    freed = _prune(campaign)
    assert _here(campaign, "policy 1", "base") == [True, True]
    assert _here(campaign, "policy_dpo 1", "pointwise_rm 1", "policy 2", "policy_dpo 2") == [False] * 4
    assert freed == sum(
        1000 * len(f"{kind} 1") for kind in ("policy_dpo", "policy_dpo", "policy")
    ) + 2000 * len("pointwise_rm 1")
    assert not (campaign.folder.workspace / "models/policy").exists(), "a hard link would keep the space"
    (tokenizer,) = (p for p in (campaign.cache / "files/md5").glob("*/*") if p.read_bytes() == TOKENIZER)
    assert tokenizer.exists(), "the champion has it too"
    assert _prune(campaign) == 0


def test_reward_models_of_the_last_launch_stay_until_the_end(campaign):
    champion = campaign.found[0]["models"]
    campaign.registries[campaign.folder.workspace] = Registry(
        champion["models/policy"], None, champion["models/pointwise_rm"]
    )
    _prune(campaign)
    assert _here(campaign, "pointwise_rm 1") == [True]
    _prune(campaign, over=True)
    assert _here(campaign, "pointwise_rm 1") == [False]


def test_the_first_generation_stays_for_ablations(campaign):
    _prune(campaign, ablations={"no_rl": {"rl.hand_over": "start"}})
    assert _here(campaign, "policy_dpo 1", "policy_dpo 2") == [True, False]


def test_what_another_campaign_of_the_cache_needs_stays(campaign):
    other = Folder(campaign.tmp / "other")
    share(other, campaign.cache)
    write_json(PLAN, other.plan)
    _lock(other.workspace, {"models/policy_dpo": campaign.found[1]["models"]["models/policy_dpo"]})
    campaign.registries[other.workspace] = Registry(campaign.found[1]["models"]["models/policy"], None, None)
    _prune(campaign)
    assert _here(campaign, "policy 2", "policy_dpo 2", "policy_dpo 1") == [True, True, False]


def test_a_removal_that_was_cut_short_goes_on(campaign, monkeypatch):
    gone = _weights(campaign.cache, "policy 2")
    gone.unlink()
    _prune(campaign)
    assert _here(campaign, "policy_dpo 2", "policy 1") == [False, True]


def test_nothing_goes_with_keep_models_or_where_the_cache_is_not_noted(campaign):
    assert _prune(campaign, keep_models=True) == 0
    (campaign.folder.home / "cache.json").unlink()
    assert _prune(campaign) == 0
    assert _here(campaign, "policy 2") == [True]
