"""What cronsim makes of an expression, systemd and the plain form of it must make, too."""

import random
import re
from datetime import datetime
from itertools import islice

import pytest
from cronsim import CronSim

from segray.schedule.cron import cron
from tests.debian import systemd_analyze

FROM = datetime(2027, 12, 31, 22, 59)
STARTS = 40
EXPRESSIONS = [
    *("0 3 * * *", "*/15 * * * *", "5/20 1-5/2 * * *", "0 0 1,15 * *", "0 0 29 2 *", "59 23 31 12 *"),
    *("0 3 * * 1-5", "0 3 * * 5-7", "0 3 * * 7", "0 3 * * SUN,TUE-THU", "30 2 1 JAN,jun-AUG *"),
    *("0 3 13 * 5", "0 3 1-7 * MON", "0 3 */2 * 1", "0 3 * * */2", "0 3 */10 2 *", "0 3 5 * */3"),
    *("0 3 1-31 * 1", "0 3 13 * 0-6", "0 3 13 * 0-7", "0 0 31 4-6 *", "10-40/7 */5 * * *", "0-59 0-23 1 * *"),
]


def expected(expression: str) -> list[datetime]:
    return list(islice(CronSim(expression, FROM), STARTS))


def of_systemd(expression: str) -> list[datetime]:
    """The first starts by each of its OnCalendar lines, as the timer starts at any of them."""
    found, until = set[datetime](), datetime.max
    for calendar in cron(expression).on_calendar:
        said = systemd_analyze(
            "calendar", f"--iterations={STARTS}", f"--base-time={FROM:%F %T}", calendar
        ).stdout
        times = re.findall(r"(?:Next elapse|Iter(?:ation|\.) #\d+): \w+ (\S+ \S+) UTC", said)
        starts = [datetime.fromisoformat(each) for each in times]
        assert len(starts) == STARTS, said
        found.update(starts)
        until = min(until, starts[-1])
    return sorted(each for each in found if each <= until)[:STARTS]


def drawn(seed: int) -> str:
    """An expression of a random generator."""
    draw = random.Random(seed)

    def field(low: int, high: int) -> str:
        first, last = sorted(draw.choices(range(low, high + 1), k=2))
        forms = ["*", "*", f"*/{draw.randint(2, 9)}", f"{first}", f"{first}-{last}", f"{low},{last}"]
        return draw.choice([*forms, f"{first}-{last}/{draw.randint(2, 5)}"])

    return " ".join(field(*ends) for ends in ((0, 59), (0, 23), (1, 28), (1, 12), (0, 7)))


@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize("expression", [*EXPRESSIONS, *map(drawn, range(40))])
def test_systemd_starts_when_cron_does(expression: str) -> None:
    assert of_systemd(expression) == expected(expression)


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *map(drawn, range(40))])
def test_the_plain_form_means_the_same(expression: str) -> None:
    """Numbers, ranges and lists, which all dialects read alike; or it is refused."""
    when = cron(expression)
    assert expected(when.vixie) == expected(expression)
    if when.both:
        with pytest.raises(ValueError, match="only systemd and crontab support both"):
            _ = when.portable
        return
    for part, most in zip(when.portable.split(), (59, 23, 31, 12, 6), strict=True):
        assert re.fullmatch(r"\*|\d+(-\d+)?(,\d+(-\d+)?)*", part)
        assert all(int(number) <= most for number in re.findall(r"\d+", part))
    assert expected(when.portable) == expected(expression)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("", "five fields"),
        ("0 3 * *", "five fields"),
        ("0 0 3 * * *", "five fields"),
        ("@daily", "write '0 0 \\* \\* \\*'"),
        ("@reboot", "five fields"),
        ("60 3 * * *", "its minute is invalid"),
        ("0 24 * * *", "its hour is invalid"),
        ("0 3 0 * *", "its day of the month is invalid"),
        ("0 3 31 2 *", "its day of the month is invalid"),
        ("0 3 * 13 *", "its month is invalid"),
        ("0 3 * * 8", "its day of the week is invalid"),
        ("0 3 * * MOM", "its day of the week is invalid"),
        ("0 5-3 * * *", "its hour is invalid"),
        ("*/0 3 * * *", "its minute is invalid"),
        ("0 3 L * *", "L, W or #"),
        ("0 3 LW * *", "L, W or #"),
        ("0 3 1,L/2 * *", "L, W or #"),
        ("0 3 LW/2,L/3 * *", "L, W or #"),
        ("0 3 * * 5L", "L, W or #"),
        ("0 3 * * 1#2", "L, W or #"),
        ("0 3 ٣ * *", "its day of the month is invalid"),
        (f"{'9' * 5000} 3 * * *", "is invalid, or never matches"),
    ],
)
def test_what_is_none(expression: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        cron(expression)


def test_the_nearest_starts() -> None:
    assert cron("0 3 * * *").shortest_s == 86_400
    assert cron("*/20 * * * *").shortest_s == 1_200
    assert cron("0 3 13 * 5").shortest_s == 86_400
    assert cron("0 0 29 2 *").shortest_s > 4 * 365 * 86_400
