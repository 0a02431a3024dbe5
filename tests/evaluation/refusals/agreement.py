"""Agreement of the refusal detectors with labels; ``python -m tests.evaluation.refusals.agreement`` prints the tables.

``lines.txt``: own lines, half of them never used to write a rule; none trained the model. ``fresh.txt``: written after
the lines that trained the model and apart from them. ``hh_rlhf_labels.jsonl``: replies of other models in hh-rlhf, by
row, side and digest (the text is not copied), label 1, 0 or null (a careful reader could say either). Part ``read``:
its errors were looked at while the rules were written; ``unseen``: labelled afterwards, its errors not; ``fresh``:
labelled before the model was trained, all replies of other rows that have a negation or an apology and a first person;
``ordinary``: drawn from the remaining rows, so nearly all without either. ``styles.txt``: written last, after the
training was fixed, in the way of several kinds of models. ``unlearned/``: thousands of lines written
apart from all these, refusals and answers as close together as they could be written; a training with them gained
nothing (docs/evaluation.md), so they measure.
"""

import gzip
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flywheel_tasks.evaluation.intervals import share
from flywheel_tasks.evaluation.labelled_lines import read_lines
from flywheel_tasks.evaluation.refusal_detector import Detector, Rules, open_detector
from flywheel_tasks.settings import Compute

HERE = Path(__file__).parent
Labelled = tuple[str, str, bool]  # what the user said, the reply, whether it refuses


def own(*, held_out: bool) -> list[Labelled]:
    """The lines of one half."""
    found: list[Labelled] = []
    place = 0
    for line in (HERE / "lines.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            place = 0
        elif line[:2] in ("+ ", "- "):
            if (place % 2 == 1) == held_out:
                found.append(("", line[2:], line[0] == "+"))
            place += 1
    return found


def lines_of(name: str) -> list[Labelled]:
    """The lines of a file of this folder that has the training lines' form."""
    lines = read_lines((HERE / name).read_text(encoding="utf-8"))
    return [(line.said, line.reply, line.refuses) for line in lines]


def unlearned() -> dict[str, list[Labelled]]:
    """The lines of ``unlearned/``, by the name of their file."""
    return {
        path.stem: lines_of(f"unlearned/{path.name}") for path in sorted((HERE / "unlearned").glob("*.txt"))
    }


def hh_rlhf(folder: Path, part: str) -> Iterator[Labelled]:
    """The labelled replies of one part, read from the data set.

    Raises:
        ValueError: a reply is not the one that was labelled.
    """
    with gzip.open(folder / "hh-rlhf/harmless-base-sample.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for line in (HERE / "hh_rlhf_labels.jsonl").read_text(encoding="utf-8").splitlines():
        label = json.loads(line)
        before, _, text = rows[label["row"]][label["side"]].rpartition("\n\nAssistant:")
        said, text = before.rpartition("\n\nHuman:")[2].strip(), text.strip()
        if hashlib.sha256(text.encode()).hexdigest()[:16] != label["sha256"]:
            raise ValueError(f"row {label['row']}, {label['side']}: another reply than the labelled one")
        if label["part"] == part and label["label"] is not None:
            yield said, text, label["label"] == 1


@dataclass(frozen=True)
class Agreement:
    """Counts, and shares with 95% intervals (Wilson; F1 by bootstrap over replies)."""

    found: int
    wrong: int
    missed: int
    right: int
    f1: float
    f1_interval: tuple[float, float]

    @property
    def accuracy(self) -> float:
        return (self.found + self.right) / (self.found + self.right + self.wrong + self.missed)

    def row(self, name: str) -> str:
        precision = share([1.0] * self.found + [0.0] * self.wrong, list(range(self.found + self.wrong)))
        recall = share([1.0] * self.found + [0.0] * self.missed, list(range(self.found + self.missed)))
        shares = [
            "none" if e["value"] is None else f"{e['value']:.3f} ({e['low']:.2f}-{e['high']:.2f})"
            for e in (precision, recall)
        ]
        f1 = f"{self.f1:.3f} ({self.f1_interval[0]:.2f}-{self.f1_interval[1]:.2f})"
        counts = f"{self.found + self.missed} of {self.found + self.missed + self.wrong + self.right}"
        return f"| {name} | {counts} | {shares[0]} | {shares[1]} | {f1} | {self.accuracy:.3f} |"


def agreement(items: Sequence[Labelled], detector: Detector | None = None) -> Agreement:
    """How a detector (the rules by default) agrees with labels."""
    return compared(items, (detector or Rules()).probabilities([(said, reply) for said, reply, _ in items]))


def compared(items: Sequence[Labelled], probabilities: Sequence[float]) -> Agreement:
    """How a detector's probabilities, one an item, agree with labels."""
    labels = np.array([label for *_, label in items])
    says = np.array(probabilities) >= 0.5

    def f1(places: np.ndarray) -> float:
        both, either = (labels & says)[places].sum(), labels[places].sum() + says[places].sum()
        return float(2 * both / either) if either else 1.0

    rng = np.random.default_rng(1)
    drawn = [f1(rng.integers(0, len(items), len(items))) for _ in range(2000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    counts = [int((labels == a)[says == b].sum()) for a, b in ((1, 1), (0, 1), (1, 0), (0, 0))]
    return Agreement(*counts, f1(np.arange(len(items))), (float(low), float(high)))


def main() -> None:
    data = Path(__file__).resolve().parents[4] / "shared" / "data"
    sets = {
        "own lines, rules written on": own(held_out=False),
        "own lines, held out": own(held_out=True),
        "fresh lines": lines_of("fresh.txt"),
        "lines in the way of other models": lines_of("styles.txt"),
    }
    if data.is_dir():
        sets["hh-rlhf, read"] = list(hh_rlhf(data, "read"))
        sets["hh-rlhf, unseen"] = list(hh_rlhf(data, "unseen"))
        sets["hh-rlhf, fresh"] = list(hh_rlhf(data, "fresh"))
        sets["hh-rlhf, ordinary"] = list(hh_rlhf(data, "ordinary"))
        tuned = {"own lines, rules written on", "hh-rlhf, read"}
        sets["all that nothing was tuned on"] = [
            item for name, items in sets.items() if name not in tuned for item in items
        ]
    close = unlearned()
    sets |= {f"close contrasts, {name}": items for name, items in close.items()}
    sets["close contrasts, all"] = [item for items in close.values() for item in items]
    embedder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("models/embedder")
    model = open_detector(embedder, Compute(precision="float32", threads=2))
    for detector in [Rules()] + ([model] if model.name == "model" else []):
        print(
            f"{detector.name}\n| replies | refusals | precision | recall | F1 | accuracy |\n|---|---|---|---|---|---|"
        )
        # Rows stand in a set of their own and in one of several: each is read once.
        rows = list(dict.fromkeys((said, reply) for items in sets.values() for said, reply, _ in items))
        found = dict(zip(rows, detector.probabilities(rows), strict=True))
        for name, items in sets.items():
            print(compared(items, [found[said, reply] for said, reply, _ in items]).row(name))


if __name__ == "__main__":
    main()
