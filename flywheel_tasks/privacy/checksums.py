"""Check digits that tell an identifier from any other number."""

_LENGTHS = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18
FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21
MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SE24 SI19 SK24 SM27 TN24 TR26
UA29 VA22 VG24 XK20
"""
# Lengths of the national formats; an IBAN of any other length is none (SWIFT's IBAN registry).
IBAN_LENGTHS = {item[:2]: int(item[2:]) for item in _LENGTHS.split()}


def luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def card(digits: str) -> bool:
    """Whether digits are a payment card's: an issuer's prefix, a length that it uses, Luhn, not one digit repeated."""
    length = len(digits)
    prefix = (
        (digits[0] == "4" and length in (13, 16, 19))
        or (length == 16 and ("51" <= digits[:2] <= "55" or "2221" <= digits[:4] <= "2720"))
        or (digits[:2] in ("34", "37") and length == 15)
        or (digits[:2] in ("36", "38", "39", "30") and length == 14)
        or (digits[:2] in ("65", "60", "64", "62", "81", "50", "58", "63", "67") and 16 <= length <= 19)
        or ("3528" <= digits[:4] <= "3589" and 16 <= length <= 19)
    )
    return prefix and len(set(digits)) > 1 and luhn(digits)


def iban(text: str) -> bool:
    """Whether capital letters and digits are an IBAN (ISO 13616: a country's length, remainder 1 modulo 97)."""
    if IBAN_LENGTHS.get(text[:2]) != len(text) or not text[2:4].isdigit():
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


def ssn(digits: str) -> bool:
    """Whether nine digits can be a US social security number or (900 to 999) a taxpayer's number."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if area in ("000", "666") or group == "00" or serial == "0000" or len(set(digits)) == 1:
        return False
    return area < "900" or group[0] in "5789"
