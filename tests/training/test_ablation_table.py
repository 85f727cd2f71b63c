"""Means, spreads and verdicts of the ablations, and the tables that show them."""

import random
import statistics

import pytest

from landmark_retrieval.training.ablation_questions import MEASUREMENTS, QUESTIONS
from landmark_retrieval.training.ablation_table import (
    NO_DIFFERENCE,
    ONE_SEED,
    SEEDLESS,
    Spread,
    differences,
    markdown,
    verdict,
)


@pytest.mark.parametrize("seed", range(200))
def test_spread_and_verdict(seed):
    draw = random.Random(seed)
    ours = {str(key): draw.uniform(0, 1) for key in range(draw.randint(1, 5))}
    theirs = {str(key): draw.uniform(0, 1) for key in range(draw.randint(1, 5))}
    spread = Spread.of(list(ours.values()))
    assert spread.mean == pytest.approx(statistics.fmean(ours.values()))
    assert spread.low <= spread.mean <= spread.high
    assert (spread.low, spread.high, spread.count) == (min(ours.values()), max(ours.values()), len(ours))

    found = differences(ours, theirs)
    common = [ours[key] - theirs[key] for key in ours if key in theirs]
    assert (found.mean, found.count) == (pytest.approx(statistics.fmean(common)), len(common))
    said = verdict(found)
    if len(common) == 1:
        assert said == ONE_SEED
    elif said != NO_DIFFERENCE:
        # what is said of a difference holds for each seed, and the other way round
        assert all(value > 0 for value in common) if said == "better" else all(value < 0 for value in common)
        assert verdict(differences(theirs, ours)) == {"better": "worse", "worse": "better"}[said]
        # and is not lost where all gain as much more
        more = abs(found.mean) * (1 if said == "better" else -1)
        assert verdict(differences({key: value + more for key, value in ours.items()}, theirs)) == said
    else:
        assert abs(statistics.fmean(common)) <= max(common) - min(common) + 1e-12
        assert verdict(differences(theirs, ours)) == NO_DIFFERENCE


def test_what_is_the_same_for_all_seeds_goes_with_each():
    fixed, seeds = {SEEDLESS: 0.25}, {"0": 0.5, "1": 0.75}
    assert differences(seeds, fixed) == Spread(0.375, 0.25, 0.5, 2)
    assert verdict(differences(seeds, fixed)) == "better"
    assert verdict(differences(fixed, seeds)) == "worse"
    assert differences({"0": 1.0}, {"1": 1.0}) is None
    assert verdict(None) == ""
    assert differences({}, fixed) is None
    # a difference as large as what the seeds lie apart is none
    assert verdict(Spread(0.5, 0.25, 0.75, 2)) == NO_DIFFERENCE
    assert verdict(Spread(0.0, 0.0, 0.0, 3)) == NO_DIFFERENCE


def measured(*points, size=256, **more):
    return {
        str(seed): {
            "figures": {"map_at_100": point, "precision_at_1": point / 2, "gap": point / 4},
            "image_size": size,
            "photos_seen": 8960,
            "commands": [],
            **more,
        }
        for seed, point in enumerate(points)
    }


def results(**measurements):
    data = {"root": "shards", "queries": 126, "index": 939, "bank": "full", "bank_photos": 4496, "non_landmark": "10"}
    return {"command": "COMMAND", "data": data, "measurements": measurements, "failed": {}, "left_out": {}}


def cells(text, label):
    """Of the first line with this label."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table():
    held = results(pooling_gem=measured(0.5, 0.52, 0.54), pooling_dolg_released=measured(0.6, 0.61, 0.62))
    held["failed"] = {"base, seed 1": "a | b"}
    text = markdown(held)
    assert "    COMMAND\n" in text
    assert cells(text, "GeM")[1:] == [
        "8,960", "256", "3", "52.00 (50.00 to 54.00)", "26.00 (25.00 to 27.00)", "13.00 (12.50 to 13.50)", "-", "-", "",
    ]  # fmt: skip
    assert cells(text, "DOLG, fusion as in the code released in 2021")[7:] == [
        "GeM", "+9.00 (+8.00 to +10.00)", "better",
    ]  # fmt: skip
    assert cells(text, "DOLG, orthogonal fusion (base)")[1:] == ["-"] * 8 + ["not measured"]
    assert "## Failed" in text and "base, seed 1" in text
    # that GeM is also part of the ensemble does not make a table of that
    assert "Not measured: Training against ImageNet features, Loss" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {11}


def test_verdicts_in_a_table():
    held = results(
        base=measured(0.5, 0.6), pooling_gem=measured(0.55, 0.56), hybrid_mean=measured(0.1), hybrid_token=measured(0.2)
    )
    text = markdown(held)
    pooling = text.partition("## Pooling")[2]
    assert cells(pooling, "DOLG, orthogonal fusion (base)")[-2:] == ["-0.50 (-5.00 to +4.00)", NO_DIFFERENCE]
    assert cells(text, "virtual token")[-2:] == ["+10.00", ONE_SEED]


def test_what_cannot_be_measured_says_why():
    held = results(base=measured(0.5), recognition={"0": {**measured(0.5)["0"], "figures": {"gap": 0.5}}})
    held["left_out"] = {"recognition_non_landmark": "no such photos"}
    text = markdown(held)
    assert cells(text, "the same, less the likeness to non-landmarks")[-1] == "no such photos"
    assert cells(text, "quantile transform, sums by landmark")[4:7] == ["-", "-", "50.00"]
    assert "Non-landmarks: 10." in text


def test_every_measurement_has_its_line():
    held = results(**{name: measured(0.5, 0.6, size=100 + number) for number, name in enumerate(MEASUREMENTS)})
    text = markdown(held)
    assert "Not measured" not in text and "not measured" not in text
    for question in QUESTIONS:
        part = text.partition(f"## {question.title}\n")[2].partition("\n## ")[0]
        lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
        assert len(lines) == len(question.rows)
        for line, row in zip(lines, question.rows, strict=True):
            assert line.startswith(f"| {row.label} | 8,960 | {100 + list(MEASUREMENTS).index(row.measurement)} | 2 |")
