"""Numbers as people read them; the same in the report and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

THIN_SPACE = "\u2009"
MINUS = "\u2212"
NEVER = "never"


def significant(value: float, digits: int = 3) -> str:
    """Return `value` with so many significant digits, thousands apart, without an exponent between 1e-6 and 1e9.

    >>> significant(0.00123456), significant(12.345), significant(123456.7), significant(float("inf"))
    ('0.00123', '12.3', '123\u2009457', '∞')
    >>> significant(0.09996), significant(0.9996), significant(9.96, 2), significant(99.96), significant(999.6)
    ('0.100', '1.00', '10', '100', '1\u2009000')
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    if not 1e-6 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    rounded = abs(float(f"{value:.{digits - 1}e}"))  # 0.09996 is 0.100, with the digits of 0.1
    decimals = max(0, digits - 1 - math.floor(math.log10(rounded)))
    return f"{value:,.{decimals}f}".replace(",", THIN_SPACE).replace("-", MINUS)


def or_dash(value: float | None, text: Callable[[float], str]) -> str:
    """Return a number in the words of `text`, and a dash for one that is not there.

    >>> or_dash(0.1, rate), or_dash(None, rate)
    ('0.1', '–')
    """
    return "–" if value is None else text(value)


def rate(value: float) -> str:
    """Return a learning rate in three digits, without trailing zeros.

    >>> rate(0.1), rate(2.154e-05), rate(0.05), rate(1000)
    ('0.1', '2.15e-05', '0.05', '1000')
    """
    return f"{float(f'{value:.3g}'):g}"


def metric(value: float) -> str:
    """Return a metric with four decimals, with five significant digits from 10 on, with three below 0.0001.

    >>> metric(0.97123), metric(123.456789), metric(123456.7), metric(3.14159e-05), metric(0.0)
    ('0.9712', '123.46', '123\u2009457', '0.0000314', '0.0000')
    """
    if value == 0 or 0.0001 <= abs(value) < 10:
        return f"{value:.4f}".replace("-", MINUS)
    return significant(value, 5 if abs(value) >= 10 else 3)


def usd(value: float) -> str:
    """Return an amount of money, cents and smaller with three significant digits.

    >>> usd(12.5), usd(0.0139)
    ('$12.50', '$0.0139')
    """
    return f"${value:,.2f}" if value >= 1 else f"${significant(value)}"


def energy(joules: float) -> str:
    """Return an amount of energy in joules, kilojoules or, from a tenth of one on, kilowatt-hours.

    >>> energy(12.34), energy(56789), energy(7.2e6)
    ('12.3 J', '56.8 kJ', '2.00 kWh')
    """
    if joules >= 0.1 * 3.6e6:
        return f"{significant(joules / 3.6e6)} kWh"
    return f"{significant(joules / 1000)} kJ" if joules >= 1000 else f"{significant(joules)} J"


def times(value: float) -> str:
    """Return a ratio in the form "3.2×".

    >>> times(3.21), times(0.05), times(12.2)
    ('3.2×', '0.050×', '12×')
    """
    return f"{significant(value, 2)}×"


def end(ratio: float) -> str:
    """Return the end of a ratio's interval: in two digits, in more where these would be those of no difference.

    >>> end(0.996), end(0.99994), end(1.00003), end(1.26), end(1.0)
    ('0.996', '0.9999', '1.00003', '1.3', '1.0')
    """
    digits = next((digits for digits in range(2, 7) if float(f"{ratio:.{digits}g}") != 1), 2)
    return significant(ratio, digits)


def seconds_or_never(value: float) -> str:
    """Return a cost with its unit, or "never".

    >>> seconds_or_never(12.345), seconds_or_never(math.inf)
    ('12.3 s', 'never')
    """
    return f"{significant(value)} s" if math.isfinite(value) else NEVER


def seconds_noun(device_kind: str | None) -> str:
    """Return what a charged second is called: processor seconds are never passed off as device time."""
    return "processor seconds" if device_kind == "cpu" else "device seconds"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return "1 search" or "5 searches".

    >>> counted(1, "trial"), counted(3, "trial")
    ('1 trial', '3 trials')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def each(counts: Sequence[int], noun: str, plural: str | None = None) -> str:
    """Return how many of them each has.

    >>> each([5, 5], "search", "searches"), each([2, 5], "search", "searches")
    ('5 searches each', '2 to 5 searches each')
    """
    least, most = min(counts, default=0), max(counts, default=0)
    return f"{'' if least == most else f'{least} to '}{counted(most, noun, plural)} each"


def moment(at: datetime) -> str:
    """Return a time to the minute.

    >>> moment(datetime(2026, 11, 23, 9, 5, 59, tzinfo=UTC))
    '2026-11-23 09:05 UTC'
    """
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
