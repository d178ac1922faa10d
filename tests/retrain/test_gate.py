"""The gate: what it decides, how often noise gets through, and how often a true gain does."""

import json
import math
from dataclasses import replace
from functools import cache
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from segray.evaluate.average_precision import InstanceScores
from segray.evaluate.confusion_matrix import SemanticScores
from segray.retrain import bounds
from segray.retrain.decision import Decision
from segray.retrain.gate import Gate
from segray.retrain.matches import ConfusionMatrices, InstanceMatches, average_precision
from tests.retrain import made

IMAGES = 65
LOOKS = 30
QUICK = Gate(draws=500)
POPULATION = 400
BETTER = 0.09215
"""The skill at which the population's AP is 3 points above that of 0.1."""


@pytest.fixture(scope="session")
def series(request: pytest.FixtureRequest) -> int:
    """How many series of looks are simulated."""
    return int(request.config.getoption("--series"))


@cache
def population(skill: float) -> tuple[InstanceMatches, InstanceMatches]:
    """A champion of skill 0.1 and a challenger, on more images than any holdout here has."""
    return made.pair(1, POPULATION, (0.1, skill))


def holdout(seed: int, skill: float, images: int = IMAGES) -> tuple[InstanceMatches, InstanceMatches]:
    """(champion, challenger) on images drawn from the population."""
    places = np.sort(np.random.default_rng(seed).permutation(POPULATION)[:images])
    champion, challenger = population(skill)
    return made.sample(champion, places), made.sample(challenger, places)


def decided(champion: InstanceMatches | None, challenger: InstanceMatches, gate: Gate = QUICK) -> Decision:
    return gate.decide(challenger, champion, holdout="h", look=1)


def test_equal_models_are_not_promoted_in_thirty_looks(series: int) -> None:
    """At most 5 of 100 series: the answers of two models are swapped at random, image by image.

    With another seed 11 of 200 were promoted before half of each level was kept for later paths, and 6 after;
    since those led to that change, the seed here is one that nothing was chosen by.
    A look whose challenger is not ahead is not computed: no bound is above the difference itself.
    """
    one, other = holdout(0, 0.1)
    promoted = sum(_promoted_within(one, other, number) for number in range(series))
    assert promoted <= 0.05 * series, f"{promoted} of {series}"


def _promoted_within(one: InstanceMatches, other: InstanceMatches, number: int) -> bool:
    random = np.random.default_rng([2026, number])
    for look in range(1, LOOKS + 1):
        coin = random.random(IMAGES) < 0.5
        champion, challenger = made.of_images(one, coin, other), made.of_images(other, coin, one)
        if average_precision(challenger) <= average_precision(champion):
            continue
        name = f"{number}"
        if QUICK.decide(challenger, champion, holdout=name, look=look).promoted:
            return True
    return False


def test_three_points_win_at_the_first_look(series: int) -> None:
    """At least 80 of 100 times, each on 65 images drawn from 400, over which the gain is 0.030 of AP.

    Of 200, 198 won at the first look; had it been the third or fifth, 180 and 172.
    """
    champion, challenger = population(BETTER)
    assert average_precision(challenger) - average_precision(champion) == pytest.approx(0.03, abs=0.0005)
    won = 0
    for number in range(series):
        pair = holdout(number, BETTER)
        won += QUICK.decide(pair[1], pair[0], holdout=f"{number}", look=1).promoted
    assert won >= 0.8 * series, f"{won} of {series}"


@pytest.mark.parametrize("seed", range(20))
def test_a_worse_model_and_one_of_shuffled_labels_are_refused(seed: int) -> None:
    champion, better = holdout(seed, BETTER)
    assert not decided(better, champion).promoted
    places = np.random.default_rng(seed).permutation(len(champion.image))
    shuffled = replace(champion, matched=champion.matched[:, places] & (places % 5 == 0))
    decision = decided(champion, shuffled)
    assert not decision.promoted
    assert "which is not above the margin" in decision.reasons[0]


def test_a_clear_gain_is_promoted_with_its_numbers() -> None:
    champion, challenger = holdout(1, 0.07)
    gate = replace(QUICK, draws=2_000, margin=0.01)
    decision = decided(champion, challenger, gate)
    assert decision.promoted
    assert decision.gain is not None
    assert decision.champion is not None
    gain = average_precision(challenger) - average_precision(champion)
    assert decision.gain.difference.figure == gain
    assert 0.01 < decision.gain.lower < decision.gain.difference.low + 1e-3 < gain
    assert decision.challenger.figure == average_precision(challenger)
    assert decision.champion.low < average_precision(champion) < decision.champion.high
    assert (decision.look, decision.look_level, decision.draws) == (1, 0.0125, 2_000)
    assert f"{decision.champion.figure:.4f} to {decision.challenger.figure:.4f}" in decision.reasons[0]
    above = decided(champion, challenger, replace(gate, margin=decision.gain.lower + 1e-6))
    assert not above.promoted
    assert "which noise may explain" in above.reasons[0]


def test_the_interval_is_as_wide_as_scores_of_other_holdouts_differ() -> None:
    """The oracle of the standard error: 400 holdouts drawn from a population, with replacement."""
    champion, challenger = population(BETTER)
    random = np.random.default_rng(3)
    weights = random.multinomial(IMAGES, np.full(POPULATION, 1 / POPULATION), 400)
    truth = float((challenger.figure(weights) - champion.figure(weights)).std())
    pair = [holdout(seed, BETTER) for seed in range(6)]
    told = [decided(*each).gain for each in pair]
    errors = [gain.standard_error for gain in told if gain is not None]
    assert np.mean(errors) == pytest.approx(truth, rel=0.15)


def test_a_rerun_decides_the_same_and_another_look_draws_anew() -> None:
    champion, challenger = holdout(2, BETTER)
    first = QUICK.decide(challenger, champion, holdout="h", look=3)
    assert QUICK.decide(challenger, champion, holdout="h", look=3) == first
    for name, look in (("h", 4), ("g", 3)):
        other = QUICK.decide(challenger, champion, holdout=name, look=look)
        assert other.seed != first.seed
        assert other.challenger.low != first.challenger.low
        assert other.challenger.figure == first.challenger.figure


def test_later_looks_ask_for_more() -> None:
    champion, challenger = holdout(3, BETTER)
    gains = [QUICK.decide(challenger, champion, holdout="h", look=look).gain for look in (1, 5, 30, 1000)]
    lower = [gain.lower for gain in gains if gain]
    shown = [gain.detectable for gain in gains if gain]
    assert len(lower) == 4
    assert lower == sorted(lower, reverse=True)
    assert shown == sorted(shown)


def test_all_answers_together_spend_at_most_the_level() -> None:
    """Every sequence of answers to 12 looks; look k adds level / (k + 1)**2, and all of them 0.65 levels."""
    spent = 0.0
    for look in range(1, 13):
        for answers in product((0, 1), repeat=look - 1):
            spent += bounds.look_level(0.05, look, sum(answers))
    assert spent == pytest.approx(0.05 * sum(1 / (look + 1) ** 2 for look in range(1, 13)))
    silent = sum(bounds.look_level(0.05, look) for look in range(1, 10_001))
    assert silent == pytest.approx(0.025 * (1 - 1 / 10_001))


@pytest.mark.parametrize(("look", "promotions"), [(0, 0), (3, 3), (2, -1)])
def test_looks_that_cannot_be_are_refused(look: int, promotions: int) -> None:
    with pytest.raises(ValueError, match=f"look {look} after {promotions} promotions"):
        bounds.look_level(0.05, look, promotions)


def test_earlier_promotions_are_paid_for() -> None:
    champion, challenger = holdout(3, BETTER)
    first, later = (
        QUICK.decide(challenger, champion, holdout="h", look=9, promotions=number).gain for number in (0, 2)
    )
    assert first is not None
    assert later is not None
    assert later.lower < first.lower


@pytest.mark.parametrize(
    ("tail", "degrees", "expected"),
    [
        (0.025, 1, 12.7062),
        (0.025, 4, 2.77645),
        (0.01, 10, 2.76377),
        (0.0005, 30, 3.64596),
        (0.05, 120, 1.65765),
        (0.001, 2, 22.3271),
    ],
)
def test_student_against_printed_tables(tail: float, degrees: int, expected: float) -> None:
    assert bounds.student_quantile(tail, degrees) == pytest.approx(expected, rel=1e-4)


def test_student_with_many_degrees_is_normal() -> None:
    for degrees in (50_000, 200_000):
        normal = -NormalDist().inv_cdf(1e-5)
        assert bounds.student_quantile(1e-5, degrees) == pytest.approx(normal, rel=1e-3)
    with pytest.raises(ValueError, match="0 degrees"):
        bounds.student_quantile(0.05, 0)


def test_the_bound_is_the_lower_of_two() -> None:
    random = np.random.default_rng(1)
    normal = random.normal(1, 0.1, 100_000)
    exact = 1 - bounds.student_quantile(0.01, 64) * 0.1
    assert bounds.lower_bound(1.0, normal, 0.01, 65) == pytest.approx(exact, rel=2e-3)
    assert bounds.lower_bound(1.0, normal[:99], 1e-6, 65) < normal[:99].min()
    skewed = 1 - 0.1 * (random.exponential(1, 100_000) - 1)
    assert bounds.lower_bound(1.0, skewed, 0.01, 65) == pytest.approx(np.quantile(skewed, 0.01), rel=1e-3)
    undefined = np.where(np.arange(100_000) % 50 == 0, np.nan, normal)
    assert bounds.lower_bound(1.0, undefined, 0.01, 65) == -math.inf
    assert bounds.lower_bound(1.0, undefined, 0.1, 65) < bounds.lower_bound(1.0, normal, 0.1, 65)


def test_what_is_detectable_is_seen_in_80_of_100() -> None:
    """Means of 65 normal numbers, tested one-sided by Student's test: the textbook case of the formula."""
    effect = bounds.detectable(1 / math.sqrt(65), 0.025, 65)
    random = np.random.default_rng(5)
    samples = random.normal(effect, 1, (4_000, 65))
    t = samples.mean(axis=1) / samples.std(axis=1, ddof=1) * math.sqrt(65)
    assert (t > bounds.student_quantile(0.025, 64)).mean() == pytest.approx(0.8, abs=0.02)
    assert bounds.detectable(0.01, 0.025, 65, margin=0.5) == pytest.approx(
        0.5 + bounds.detectable(0.01, 0.025, 65)
    )


def test_the_same_model_is_refused() -> None:
    champion, _ = holdout(4, 0.1)
    decision = decided(champion, champion)
    assert not decision.promoted
    assert decision.reasons == ("Champion and challenger predict the same on all 65 images of the holdout.",)


def test_few_images_that_differ_prove_nothing() -> None:
    """Four images, on each of which the challenger is perfect and the champion finds nothing."""
    models = InstanceScores(), InstanceScores()
    for number in range(4):
        for model in models:
            model.add_image(str(number), (made.SIDE, made.SIDE))
            model.add_truth(str(number), made.disc(40, 40, 9), 1)
        models[1].add_prediction(str(number), made.disc(40, 40, 9), 1, 0.9)
    champion, challenger = (InstanceMatches.of(model) for model in models)
    decision = decided(champion, challenger)
    assert not decision.promoted
    assert (
        "differ on 4 of 4 images; at level 0.013 (look 1) no outcome on fewer than 7" in decision.reasons[0]
    )
    assert decided(champion, challenger, replace(QUICK, level=0.4)).promoted
    one = made.sample(challenger, np.array([0]))
    assert not decided(made.sample(champion, np.array([0])), one).promoted


def test_no_image_and_no_truth_are_refused() -> None:
    nothing = InstanceMatches.of(InstanceScores())
    assert decided(nothing, nothing).reasons == ("The holdout h has no image.",)
    assert not decided(None, nothing).promoted
    scores = InstanceScores()
    scores.add_image("a", (made.SIDE, made.SIDE))
    empty = InstanceMatches.of(scores)
    assert "The AP of the challenger cannot be computed" in decided(empty, empty).reasons[0]
    assert "The AP of the challenger cannot be computed" in decided(None, empty).reasons[0]


def test_truth_on_too_few_images_is_refused_with_its_number() -> None:
    """Two of 40 images have any; the challenger has half as many false detections on all of them."""
    models = InstanceScores(), InstanceScores()
    for number in range(40):
        for wrong, model in enumerate(models, start=1):
            model.add_image(f"{number:02}", (made.SIDE, made.SIDE))
            if number < 2:
                model.add_truth(f"{number:02}", made.disc(40, 40, 9), 1)
                model.add_prediction(f"{number:02}", made.disc(40, 40, 9), 1, 0.9)
            for _ in range(4 // wrong):
                model.add_prediction(f"{number:02}", made.disc(10, 10, 5), 1, 0.95)
    champion, challenger = (InstanceMatches.of(model) for model in models)
    decision = decided(champion, challenger)
    assert not decision.promoted
    assert "too few images have any truth" in decision.reasons[0]
    assert decision.gain is not None
    assert decision.gain.undefined > 30
    assert json.loads(json.dumps(decision.to_json(), allow_nan=False))["gain"]["lower"] is None


def test_a_first_version_needs_a_score() -> None:
    champion, _ = holdout(5, 0.1)
    first = decided(None, champion)
    assert first.promoted
    assert (first.champion, first.gain) == (None, None)
    strict = decided(None, champion, replace(QUICK, least_figure=0.9))
    assert "must score above 0.9000 AP" in strict.reasons[0]
    blind = replace(champion, matched=np.zeros_like(champion.matched))
    assert not decided(None, blind).promoted


def test_groups() -> None:
    """The challenger is far better by day; at night it finds nothing; dusk has three images."""
    champion, better = holdout(6, 0.05)
    names = champion.images
    groups = {
        name: "night" if place < 12 else "dusk" if place < 15 else "day" for place, name in enumerate(names)
    }
    night = np.array([groups[name] != "day" for name in names])
    blind = replace(better, matched=np.zeros_like(better.matched))
    challenger = made.of_images(blind, night, better)

    def under(gate: Gate) -> Decision:
        return gate.decide(challenger, champion, holdout="h", look=1, groups=groups)

    even = replace(QUICK, least=1)
    free = under(even)
    rows = {row.name: row for row in free.groups}
    assert {name: row.images for name, row in rows.items()} == {"day": 50, "dusk": 3, "night": 12}
    day = np.flatnonzero(~night)
    assert rows["day"].challenger == pytest.approx(average_precision(made.sample(challenger, day)))
    assert rows["day"].champion == pytest.approx(average_precision(made.sample(champion, day)))
    assert rows["night"].challenger == 0
    fallen = under(replace(QUICK, group_drop=0.1))
    assert not fallen.promoted
    (reason,) = [line for line in fallen.reasons if line.startswith("Group")]
    assert reason.startswith("Group night: falls from 0.")
    assert any(line.startswith("Group dusk: reported, not judged") for line in fallen.notes)
    low = under(replace(QUICK, floors={"night": 0.2, "day": 0.2}))
    assert [line for line in low.reasons if line.startswith("Group")] == [
        "Group night: 0.0000 AP is below its floor of 0.2000."
    ]
    absent = under(replace(QUICK, floors={"nigth": 0.2}))
    assert "Group nigth: has a floor, and no image in the holdout." in absent.reasons
    assert not under(replace(even, group_drop=0.9, floors={"dusk": 0.1})).promoted


def test_a_gain_with_sound_groups_is_promoted() -> None:
    champion, challenger = holdout(7, 0.05)
    groups = {name: "ab"[place % 2] for place, name in enumerate(champion.images)}
    gate = replace(QUICK, group_drop=0.0, floors={"a": 0.3})
    decision = gate.decide(challenger, champion, holdout="h", look=1, groups=groups)
    assert decision.promoted
    assert "No group fails, of 2 that were judged." in decision.reasons


def test_miou_is_judged_likewise() -> None:
    random = np.random.default_rng(1)

    def model(error: float) -> ConfusionMatrices:
        scores = {}
        for name in range(30):
            truth = np.random.default_rng(name).integers(0, 3, (16, 16))
            scores[str(name)] = SemanticScores(3)
            wrong = random.random((16, 16)) < error
            scores[str(name)].add(truth, np.where(wrong, random.integers(0, 3, (16, 16)), truth))
        return ConfusionMatrices.of(scores)

    champion, same, better = model(0.3), model(0.3), model(0.2)
    gate = Gate(draws=1_000)
    assert gate.decide(better, champion, holdout="h", look=1).promoted
    assert not gate.decide(same, champion, holdout="h", look=1).promoted
    assert "The mIoU rises" in gate.decide(better, champion, holdout="h", look=1).reasons[0]


def test_models_of_different_holdouts_are_not_compared() -> None:
    champion, challenger = holdout(8, 0.1)
    with pytest.raises(ValueError, match="different images"):
        decided(champion, replace(challenger, images=tuple(reversed(challenger.images))))


def test_wrong_rules_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"margin: .*; level: .*; draws: .*; least: .*; group_drop: "):
        Gate(margin=-0.1, level=0.7, draws=10, least=0, group_drop=-1)
    with pytest.raises(ValueError, match="margin"):
        Gate(margin=math.nan)
    with pytest.raises(ValueError, match="floors"):
        Gate(floors={"a": math.nan})


def test_json_holds_it_all() -> None:
    champion, challenger = holdout(9, BETTER)
    decision = decided(champion, challenger)
    plain = json.loads(json.dumps(decision.to_json(), allow_nan=False))
    assert plain["promoted"] == decision.promoted
    assert plain["reasons"] == list(decision.reasons)
    assert decision.gain is not None
    assert plain["gain"]["difference"]["figure"] == decision.gain.difference.figure
    assert plain["gain"]["detectable"] == pytest.approx(0.022, abs=0.005)
    assert decision.lines()[0] in ("promoted (look 1 at holdout h)", "refused (look 1 at holdout h)")
