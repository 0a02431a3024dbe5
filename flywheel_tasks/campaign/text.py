"""A campaign's document as text: Markdown, and the figures of its page."""

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.campaign.panels import GROUPS
from flywheel_tasks.campaign.records import is_launch, launches

NOTE = (
    "All people of this campaign are simulated. Their true utility is known here and unknown in life; the figures "
    "say nothing of real people."
)

_PANEL = (
    "A fixed panel of simulated people, 95% intervals clustered by card. In no training prompt are its topics{lines}. "
    "Training cards are those of the traffic; unseen characters are persons of no training prompt, with instructions "
    "that some have; unseen wordings are persons of training cards, with {wordings} in words of no training prompt."
)
_SECOND = _PANEL.format(
    lines=", nor the lines in which they take up a word or complain",
    wordings="instructions of kinds that they do not have there,",
)
PANELS = {  # by the version that the panel's rows name
    1: _PANEL.format(
        lines=", but lines in which they take up a word or complain are the traffic's",
        wordings="their instructions",
    ),
    2: _SECOND,
    3: f"{_SECOND} Of each character of the traffic one card is asked, in turn its first, second and so on.",
}

CHECKER = (
    "The cards' instructions are of kinds that code can check, and a product knows its cards: with "
    "rl.auxiliary.instructions and rejection_sample.most_instructions the learner is given the checks that make up "
    "following, violation and the largest weight of the true utility. The ablation no_checker does without."
)


def paper_note(found: Mapping[str, Any]) -> str:
    """Where our figures beside the paper's are from."""
    tested = sum(is_launch(row) and bool(row["lift_percent"]) for row in found["generations"])
    return (
        "Ours with 95% intervals. Launches, breadth and depth: the A/B tests; the best launch is selected by its own "
        f"figure among {tested}, so chance is part of what made it the best. Instruction following to false refusal: "
        "the panel on training cards. The rows below: the gate's measurement on each generation's evaluation prompts."
    )


def figure(node: Any) -> str:
    """A figure with its interval: a share in percent, unless its ``unit`` says otherwise."""
    if node is None or isinstance(node, str):
        return node or "–"
    value, low, high, unit = (node.get(key) for key in ("value", "low", "high", "unit"))
    if value is None:
        return "not measured"
    scale, form, end = {
        "lift": (1, "+.1f", "%"),
        "utility": (1, "+.2f", ""),
        "tokens": (1, ".1f", " tokens"),
        "words": (1, ".1f", ""),
        "emoji": (1, ".2f", ""),
    }.get(str(unit), (100, ".1f", "%"))
    text = f"{scale * value:{form}}{end}"
    return text if low is None or high is None else f"{text} ({scale * low:{form}} to {scale * high:{form}})"


def gain(node: Mapping[str, Any]) -> str:
    """A difference of utilities with its interval."""
    return figure({**node, "unit": "utility"})


def lift(row: Mapping[str, Any], name: str) -> str:
    """A lift of a generation's test."""
    found = row["lift_percent"].get(name)
    return "–" if found is None else figure({**found, "unit": "lift"})


def minutes(found: Mapping[str, Any]) -> str:
    """How many minutes a generation or a campaign took: at least, where a kill cut it short."""
    return f"{'at least ' if found['resumed'] else ''}{found['minutes']:.0f}"


def win_rate(row: Mapping[str, Any]) -> str:
    """The pointwise win rates on user and internal prompts."""
    rates = [row["win_rate"]["pointwise"][source]["value"] for source in ("user", "internal")]
    return " / ".join("–" if rate is None else f"{100 * rate:.0f}%" for rate in rates)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def _marked(name: str, row: Mapping[str, Any]) -> str:
    return name + (" (over-optimised on purpose)" if row["over_optimised"] else "")


def generation_cells(row: Mapping[str, Any]) -> list[str]:
    """One generation for the table of all."""
    test = " (counterfactual)" if row["counterfactual"] else ""
    return [
        _marked(row["generation"], row),
        f"{row['status']}, {row['decision'].replace('_', ' ')}",
        win_rate(row),
        lift(row, "breadth") + test,
        lift(row, "depth") + test,
        gain(row["true_gain"]),
        figure(row["true"]["training"]["instruction_following"]),
        minutes(row),
    ]


GENERATION_HEADINGS = (
    "generation",
    "what became of it",
    "win rate user / internal",
    "breadth lift",
    "depth lift",
    "true utility over its champion",
    "instruction following",
    "minutes",
)


def champion_cells(champion: Mapping[str, Any]) -> list[str]:
    """One champion for the table of all."""
    return [
        str(champion["after_launch"]),
        _marked(champion["model"], champion),
        *(figure({**champion[group]["utility"], "unit": "utility"}) for group in GROUPS),
        *(figure(champion[group]["instruction_following"]) for group in GROUPS),
        figure({**champion["all"]["words"], "unit": "words"}),
        figure({**champion["all"]["emoji"], "unit": "emoji"}),
        figure({"value": champion["all"]["variety"]}),
    ]


CHAMPION_HEADINGS = (
    "after launch",
    "model",
    *(f"true utility, {title}" for title in GROUPS.values()),
    *(f"instruction following, {title}" for title in GROUPS.values()),
    "words a reply",
    "emoji a reply",
    "variety",
)


def paper_cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the paper's table."""
    return [
        row["metric"],
        row["paper_first"] or "–",
        row["paper_last"] or "–",
        figure(row["first"]),
        figure(row["last"]),
    ]


PAPER_HEADINGS = ("metric", "paper, first", "paper, best or last", "ours, first", "ours, best or last")


def ceiling_sentence(found: Mapping[str, Any]) -> str:
    """What the limit on a high win rate did, or would have done."""
    names, limit = found["generations"], f"{found['limit']:.0%}"
    truth = (
        f"By true utility (95% intervals) {found['worse']} surely worse than the champion of then, "
        f"{found['better']} surely better; of {found['untold']} it cannot be told."
    )
    if found["on"]:
        if not names:
            return f"The limit of {limit} on a win rate alone blocked no generation."
        return f"The limit of {limit} on a win rate alone blocked {', '.join(names)}. {truth}"
    if not names:
        return f"Without the limit of {limit}, launched at or above it: no generation."
    return f"Without the limit of {limit}, launched at or above it: {', '.join(names)}. {truth}"


def markdown(found: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The tables of a campaign.

    Args:
        found: of :func:`flywheel_tasks.campaign.table.document`.
        others: of ablations or other campaigns, by name.
    """
    state = "over" if found["over"] else "not over yet"
    lines = [
        f"# Campaign {found['name']}",
        "",
        f"{found['launches']} of {found['wanted']} launches, {len(found['generations'])} generations, "
        f"{minutes(found)} minutes; {state}. {NOTE}",
        "",
        "## Beside the paper",
        "",
        *_table(PAPER_HEADINGS, [paper_cells(row) for row in found["paper"]]),
        "",
        paper_note(found),
        "",
        CHECKER,
        "",
        "## What only a simulation knows, generalisation, style",
        "",
        *([PANELS[found["panel"]], ""] if found["panel"] else []),
        *_table(
            ("metric", "base", "last champion"),
            [[row["metric"], figure(row["first"]), figure(row["last"])] for row in found["ours"]],
        ),
        "",
        "## Generations",
        "",
        *_table(GENERATION_HEADINGS, [generation_cells(row) for row in found["generations"]]),
        "",
        "## Champions",
        "",
        *_table(CHAMPION_HEADINGS, [champion_cells(champion) for champion in found["champions"]]),
        "",
        "## Blocked",
        "",
        *(
            [f"- {row['generation']}: {' '.join(row['block_reasons'])}" for row in found["blocked"]]
            or ["None."]
        ),
        "",
        ceiling_sentence(found["ceiling"]),
    ]
    if others:
        lines += ["", "## Beside other campaigns", "", *_table(OTHER_HEADINGS, other_rows(found, others))]
    return "\n".join(lines) + "\n"


OTHER_HEADINGS = (
    "campaign",
    "generations",
    "launches",
    "true utility since the base",
    "instruction following",
    "instruction violation",
    "words a reply",
    "variety",
)


def other_rows(found: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Where this campaign and others ended; this one also as it stood after as many generations as an ablation has."""
    rows = [_end(found["name"], found, len(found["generations"]))]
    shortest = min(len(other["generations"]) for other in others.values())
    if 0 < shortest < len(found["generations"]):
        rows.append(_end(f"{found['name']}, first {shortest} generations", found, shortest))
    return rows + [_end(name, other, len(other["generations"])) for name, other in others.items()]


def _end(name: str, found: Mapping[str, Any], count: int) -> list[str]:
    rows = found["generations"][:count]
    if not found["champions"]:
        return [name, str(len(rows)), "0", *["–"] * 5]
    past = {None, *(row["generation"] for row in rows)}
    champion = [one for one in found["champions"] if one["after"] in past][-1]
    return [
        name,
        str(len(rows)),
        str(launches(rows)),
        gain(champion["since_base"]),
        figure(champion["training"]["instruction_following"]),
        figure(champion["training"]["instruction_violation"]),
        figure({**champion["all"]["words"], "unit": "words"}),
        figure({"value": champion["all"]["variety"]}),
    ]
