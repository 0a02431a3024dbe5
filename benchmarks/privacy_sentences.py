"""Sentences for the privacy benchmark, from templates: identifiers of every type, plain and disguised; clean chat."""
# ruff: noqa: E501 (templates, one beside the other)

import random
from importlib.resources import files
from typing import NamedTuple

import orjson

CLEAN = "clean"
_FRAMES = (
    "hey it's {}", "you can use {} ok?", "so {} is what I have", "write it down: {}", "{}", "oh no I sent you {} 😅",
    "my details, {} and that's all", "({}) is mine", "is {} fine for you?", "I told everyone {} yesterday!",
)  # fmt: skip
_FULL = str.maketrans("0123456789", "０１２３４５６７８９")
_CYRILLIC = str.maketrans("aeopc", "аеорс")
_CHAT = (
    "omg {0} you are the best 😂😂😂", "{0} looks at the stars ✨🌙 and sighs", "I love you {0} 💖💖 so much!!!",
    "*{0} smiles* what now? 😏🔥", "can {0} and {1} be friends? 🥺👉👈", "{0}: the harbour is cold tonight ❄️",
    "wait {0}, I have {2} apples and {3} pears", "it cost ${2}.99, not ${3},000", "we won {2}-{3} and then {3}-{2} 🎉",
    "meet me on 2026-{4:02d}-{5:02d} at {4:02d}:{5:02d}", "born in 19{2}, moved out in 20{5:02d}", "version 3.{2}.{3} is out 🚀",
    "use python 3.{4}.{5} and node {2}.{3}.1", "1 2 3 4 5 6 7 8 9 here I come", "the score was 3:{4} at minute {2}",
    "{2}% of {3},500,000 people 👨‍👩‍👧‍👦", "chapter {4}.{5}.2 of the book, page {2}{3}", "pi is 3.14159265358979 🤓",
    "see you at {4} or at {5}, look at this.my cat 😺", "{0} weighs {2}.5 kg and is 1{2} cm tall", "1️⃣2️⃣3️⃣ go {0} go 🏃‍♀️",
    "add {2} + {3} = ?? 🧮", "order {2}{3}{2}{3} is late 😡", "lol {0} 🤣 that was @ the wrong time", "room {2}{4}, floor {5}",
)  # fmt: skip


class Sentence(NamedTuple):
    """One sentence.

    Attributes:
        text: the sentence.
        type: of the identifier in it, or ``clean``.
        start: where it begins.
        end: where it ends.
        disguised: written to be missed.
    """

    text: str
    type: str
    start: int
    end: int
    disguised: bool


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("0123456789", k=count))


def _with_luhn(start: str) -> str:
    for last in "0123456789":
        total = 0
        for place, digit in enumerate(reversed(start + last)):
            value = int(digit) * (2 if place % 2 else 1)
            total += value // 10 + value % 10
        if total % 10 == 0:
            return start + last
    raise AssertionError("one of ten digits is right")


def _groups(text: str, size: int, gap: str) -> str:
    return gap.join(text[at : at + size] for at in range(0, len(text), size))


def _email(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(["anna", "jo.berg", "m_ruiz", "kit+chat"]) + _digits(rng, 2)
    host = rng.choice(["example", "mail-host", "posteo"])
    end = rng.choice(["com", "org", "co.uk", "de"])
    dotted = end.replace(".", " dot ")
    return f"{name}@{host}.{end}", rng.choice(
        [f"{name} (at) {host} [dot] {end}", f"{name} at {host} dot {dotted}", f"{name}@{host}.{end}".translate(_CYRILLIC),
         f"{name}\u200b@{host}\u200b.{end}", f"{name} [AT] {host}.{end}"]
    )  # fmt: skip


def _phone(rng: random.Random) -> tuple[str, str]:
    number = rng.choice(["212", "415", "617", "303"]) + rng.choice(["2", "3", "7"]) + _digits(rng, 6)
    a, b, c = number[:3], number[3:6], number[6:]
    plain = rng.choice(
        [f"+1 {a} {b} {c}", f"({a}) {b}-{c}", f"{a}-{b}-{c}", "+44 20 7946 0" + _digits(rng, 3)]
    )
    hidden = [
        f"{a}.{b}.{c}",
        f"+1 {a} {b} {c}".translate(_FULL),
        f"call {' '.join(number)}",
        f"{a}\u200b-{b}\u200b-{c}",
    ]
    return plain, rng.choice([*hidden, f"{a}_{b}_{c}"])


def _card(rng: random.Random) -> tuple[str, str]:
    number = _with_luhn(rng.choice(["4", "51", "55"]) + _digits(rng, 14))[:16]
    number = _with_luhn(number[:15])
    return rng.choice([number, _groups(number, 4, " "), _groups(number, 4, "-")]), rng.choice(
        [_groups(number, 4, "."), _groups(number, 1, " "), _groups(number, 4, " ").translate(_FULL),
         _groups(number, 4, "\u200b"), _groups(number, 4, " / "), _groups(number, 2, "_")]
    )  # fmt: skip


def _iban(rng: random.Random) -> tuple[str, str]:
    body = _digits(rng, 18)
    check = 98 - int(body + "131400") % 97
    text = f"DE{check:02d}{body}"
    return rng.choice([text, _groups(text, 4, " ")]), rng.choice(
        [
            _groups(text, 4, "-"),
            _groups(text.lower(), 4, " "),
            _groups(text, 4, "."),
            _groups(text, 4, " ").translate(_FULL),
        ]
    )


def _ip(rng: random.Random) -> tuple[str, str]:
    parts = [str(rng.randrange(11, 250)) for _ in range(4)]
    six = ":".join(f"{rng.randrange(4096, 65536):x}" for _ in range(8))
    plain = rng.choice([".".join(parts), six])
    return plain, rng.choice(
        ["[.]".join(parts), " dot ".join(parts), " . ".join(parts), ".".join(parts).translate(_FULL)]
    )


def _url_secret(rng: random.Random) -> tuple[str, str]:
    token = _digits(rng, 6) + rng.choice(["abcd", "xyzq"])
    plain = rng.choice(
        [f"https://app.example.com/in?token={token}", f"https://bob:{token}@host.example.org/x"]
    )
    return plain, rng.choice([plain.replace("https", "hxxps"), f"app.example.com/in?a=1&api_key={token}"])


def _national(rng: random.Random) -> tuple[str, str]:
    area, group, serial = rng.randrange(100, 665), rng.randrange(10, 99), rng.randrange(1000, 9999)
    nino = f"AB{_digits(rng, 6)}C"
    spaced = f"{nino[:2]} {nino[2:4]} {nino[4:6]} {nino[6:8]} C"
    plain = rng.choice([f"{area}-{group}-{serial}", spaced, nino])
    hidden = [f"{area} {group} {serial}", f"{area}_{group}_{serial}", spaced.replace(" ", "-").lower()]
    return plain, rng.choice([*hidden, f"{area}-{group}-{serial}".translate(_FULL), spaced.replace(" ", ".")])


def _crypto(rng: random.Random) -> tuple[str, str]:
    wallet = "0x" + "".join(rng.choices("0123456789abcdef", k=40))
    plain = rng.choice([wallet, "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy"])
    return plain, plain[:9] + "\u200b" + plain[9:]


def _secret(rng: random.Random) -> tuple[str, str]:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    plain = rng.choice(["AKIA" + "".join(rng.choices(letters, k=16)), "ghp_" + "".join(rng.choices(letters, k=36)),
                        "sk-proj-" + "".join(rng.choices(letters, k=32))])  # fmt: skip
    return plain, plain[:7] + "\u200d" + plain[7:]


_MAKERS = {
    "EMAIL": _email, "PHONE": _phone, "CARD": _card, "IBAN": _iban, "IP": _ip, "URL_SECRET": _url_secret,
    "NATIONAL_ID": _national, "CRYPTO": _crypto, "SECRET": _secret,
}  # fmt: skip


def character_names() -> list[str]:
    """Names of the demo's cards."""
    text = files("flywheel_tasks.simulation").joinpath("cards.jsonl").read_text(encoding="utf-8")
    return [orjson.loads(row)["name"] for row in text.splitlines() if row.strip()]


def sentences(per_type: int, clean: int, seed: int) -> list[Sentence]:
    """The set: for each type half plain and half disguised, and clean chat.

    Args:
        per_type: sentences of each type.
        clean: sentences without an identifier.
        seed: of the draw.
    """
    rng = random.Random(seed)
    found = []
    for kind, make in _MAKERS.items():
        for number in range(per_type):
            disguised = number % 2 == 1
            value = make(rng)[disguised]
            before, after = rng.choice(_FRAMES).split("{}")
            found.append(
                Sentence(before + value + after, kind, len(before), len(before) + len(value), disguised)
            )
    names = character_names()
    for number in range(clean):
        a, b = rng.randrange(10, 99), rng.randrange(10, 99)
        frame = _CHAT[number % len(_CHAT)]
        text = frame.format(
            rng.choice(names), rng.choice(names), a, b, rng.randrange(1, 13), rng.randrange(1, 29)
        )
        found.append(Sentence(text, CLEAN, 0, 0, False))
    return found
