"""Selection and verdict without target labels, against small cases in float64."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import edgeda.selection
from edgeda.selection import (
    SOURCE_TOLERANCE,
    accuracy,
    agreement,
    effective_classes,
    information_maximization,
    is_better,
    judge,
    label_free_scores,
    soft_neighborhood_density,
)


def sure(classes: list[int], count: int = 3, logit: float = 100.0) -> Tensor:
    """Logits that predict these classes of `count`, by a margin of `logit`."""
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float() * logit


def softmax64(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_snd_in_rows_is_snd_at_once(monkeypatch: pytest.MonkeyPatch):
    """A large target is compared some rows at a time: all similarities of 55,000 images would be 12 GB."""
    logits = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))
    whole = soft_neighborhood_density(logits)
    monkeypatch.setattr(edgeda.selection, "SND_BLOCK", 4 * 23 + 1)
    assert soft_neighborhood_density(logits) == pytest.approx(whole, rel=1e-6)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_im_of_knowing_nothing_is_nothing():
    assert information_maximization(torch.zeros(6, 4)) == pytest.approx(0.0, abs=1e-12)


def test_im_of_sure_and_balanced_predictions_is_log_c():
    assert information_maximization(sure([0, 1, 2, 2, 1, 0])) == pytest.approx(math.log(3.0), rel=1e-9)


def test_im_of_a_collapse_is_nothing():
    assert information_maximization(sure([1] * 6)) == pytest.approx(0.0, abs=1e-9)


def test_im_by_hand():
    # p = (3/4, 1/4) and (1/4, 3/4): H(mean) = ln 2, mean H = ln 4 - 3/4 ln 3
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    expected = math.log(2.0) - (math.log(4.0) - 0.75 * math.log(3.0))
    assert expected == pytest.approx(0.13081204)
    assert information_maximization(logits) == pytest.approx(expected, rel=1e-6)


def test_im_of_sure_predictions_in_unequal_parts():
    # 3 of 4 images of class 0: H(3/4, 1/4)
    expected = math.log(4.0) - 0.75 * math.log(3.0)
    assert information_maximization(sure([0, 0, 0, 1], 2)) == pytest.approx(expected, rel=1e-9)


def test_snd_of_two_tight_groups_by_hand():
    # each image has one companion of similarity 1 and two strangers of similarity 0
    # at temperature T: p = e^(1/T) / (e^(1/T) + 2) for the companion, q = 1 / (e^(1/T) + 2) for a stranger
    for temperature in (1.0, 0.5):
        power = math.exp(1.0 / temperature)
        p, q = power / (power + 2.0), 1.0 / (power + 2.0)
        expected = -p * math.log(p) - 2 * q * math.log(q)
        assert soft_neighborhood_density(sure([0, 0, 1, 1]), temperature) == pytest.approx(expected, rel=1e-6)
    # at 1/20 strangers weigh e^-20
    assert soft_neighborhood_density(sure([0, 0, 1, 1])) == pytest.approx(0.0, abs=1e-6)


def test_snd_in_float64():
    logits = np.random.default_rng(5).normal(size=(7, 4)) * 2
    outputs = softmax64(logits)
    outputs /= np.linalg.norm(outputs, axis=1, keepdims=True)
    entropies = []
    for index in range(7):
        others = np.delete(outputs @ outputs[index], index) / 0.05
        shares = softmax64(others)
        entropies.append(-(shares * np.log(shares)).sum())
    assert soft_neighborhood_density(torch.tensor(logits)) == pytest.approx(np.mean(entropies), rel=1e-4)


def test_snd_is_larger_for_larger_groups():
    # one group of N: log(N - 1); every image alone among equals
    assert soft_neighborhood_density(sure([0] * 6)) == pytest.approx(math.log(5.0), rel=1e-5)
    assert soft_neighborhood_density(sure([0, 0, 0, 1, 1, 1])) == pytest.approx(math.log(2.0), rel=1e-4)


def test_scores_of_one_image():
    assert label_free_scores(sure([2])) == {"im": pytest.approx(0.0, abs=1e-9), "snd": 0.0}


def test_effective_classes():
    assert effective_classes(torch.zeros(5, 7)) == pytest.approx(7.0, rel=1e-9)
    assert effective_classes(sure([0, 1, 0, 1], 7)) == pytest.approx(2.0, rel=1e-9)
    assert effective_classes(sure([3] * 4, 7)) == pytest.approx(1.0, rel=1e-9)


def test_accuracy_and_agreement_are_percent():
    assert accuracy(sure([0, 1, 2, 0]), torch.tensor([0, 1, 1, 2])) == 50.0
    assert agreement(sure([0, 1, 2]), sure([0, 2, 2])) == pytest.approx(200 / 3)


# --- which epoch -----------------------------------------------------------------------------------------------------

HISTORY = [
    # im, snd, target accuracy of four epochs
    (0.2, 1.0, 60.0),
    (0.9, 1.5, 70.0),
    (0.5, 3.0, 80.0),
    (0.9, 2.0, 75.0),
    (0.8, 2.9, 79.0),
]


def records(history: list[tuple[float, float, float | None]]) -> list[dict[str, Any]]:
    return [
        {"epoch": number, "scores": {"im": im, "snd": snd}, "target_accuracy": target}
        for number, (im, snd, target) in enumerate(history, 1)
    ]


def chosen(rule: str, history: list[dict[str, Any]]) -> int:
    best: dict[str, Any] | None = None
    for record in history:
        if is_better(rule, record, best):
            best = record
    assert best is not None
    return int(best["epoch"])


@pytest.mark.parametrize(
    ("rule", "epoch"),
    [
        ("im", 4),  # epochs 2 and 4 are equal: the later
        ("snd", 3),
        ("last", 5),
        ("oracle", 3),
    ],
)
def test_rules(rule, epoch):
    assert chosen(rule, records(HISTORY)) == epoch


def test_ties_go_to_the_later_epoch():
    same = records([(0.5, 0.5, 50.0)] * 4)
    assert [chosen(rule, same) for rule in ("im", "snd", "last", "oracle")] == [4, 4, 4, 4]


@pytest.mark.parametrize("rule", ["im", "snd", "last"])
def test_rules_do_not_read_target_accuracy(rule):
    without = records([(im, snd, None) for im, snd, _ in HISTORY])
    for record in without:
        del record["target_accuracy"]
    assert chosen(rule, without) == chosen(rule, records(HISTORY))


# --- the verdict -----------------------------------------------------------------------------------------------------

UNSURE = sure([0, 1, 2, 0, 1, 2], logit=1.0)
SURE = sure([0, 1, 2, 2, 1, 0], logit=5.0)


def test_a_surer_and_as_diverse_student_is_shipped():
    verdict = judge(SURE, UNSURE, None, 95.0, 96.0)
    assert verdict.ship == "adapted"
    assert "say more, and as diversely" in verdict.reason


def test_the_evidence():
    verdict = judge(SURE, UNSURE, sure([0, 1, 2, 2, 1, 2]), 95.0, 96.126)
    # softmax of (5, 0, 0) and (1, 0, 0): p = e^5 / (e^5 + 2) and e / (e + 2); im = ln 3 - H(p)
    p = np.array([math.exp(5.0), 1, 1]) / (math.exp(5.0) + 2)
    q = np.array([math.e, 1, 1]) / (math.e + 2)
    im = {
        "adapted": round(math.log(3.0) + float((p * np.log(p)).sum()), 4),
        "source_only": round(math.log(3.0) + float((q * np.log(q)).sum()), 4),
    }
    found = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert found["ship"] == "adapted"
    evidence = found["evidence"]
    assert evidence["im"] == im
    assert set(evidence["snd"]) == {"adapted", "source_only"}
    assert evidence["effective_classes"] == {"adapted": 3.0, "source_only": 3.0}
    assert evidence["source_accuracy"] == {"adapted": 95.0, "source_only": 96.13}
    assert evidence["images"] == 6
    assert evidence["predictions_changed"] == 33.33, "images 4 and 6 of six"
    assert evidence["teacher_agreement"] == 83.33, "five of six"
    assert judge(SURE, UNSURE, None, 95.0, 96.0).evidence["teacher_agreement"] is None


def test_a_collapse_keeps_the_source_only_student():
    # as sure as can be, of one class
    verdict = judge(sure([1] * 6), SURE, None, 99.0, 90.0)
    assert verdict.ship == "source-only"
    assert verdict.reason == "the adapted student predicts only 1.0 effective classes, source-only 3.0"


@pytest.mark.parametrize(("classes", "ship"), [([0, 1, 2, 3, 4], "source-only"), ([0, 1, 2, 3, 4, 5], "adapted")])
def test_a_collapse_is_judged_against_the_source_only_student(classes, ship):
    # 5 of 9 classes are below 0.6 of 9, 6 of 9 are not
    everything = sure(list(range(9)) * 10, 9, logit=2.0)
    assert effective_classes(everything) == pytest.approx(9.0)
    assert judge(sure(classes * (90 // len(classes)), 9), everything, None, 90.0, 90.0).ship == ship


def test_forgetting_the_source_keeps_the_source_only_student():
    verdict = judge(SURE, UNSURE, None, 70.0, 96.0)
    assert verdict.ship == "source-only"
    assert verdict.reason == "the adapted student lost 26.0 points on the source"
    assert judge(SURE, UNSURE, None, 96.0 - SOURCE_TOLERANCE, 96.0).ship == "adapted", "so much may be lost"


def test_knowing_less_of_the_target_keeps_the_source_only_student():
    verdict = judge(UNSURE, SURE, None, 96.0, 90.0)
    assert verdict.ship == "source-only"
    assert "say no more" in verdict.reason


def test_an_equal_student_is_not_worth_a_change():
    assert judge(SURE, SURE, None, 96.0, 96.0).ship == "source-only"


def test_the_verdict_says_when_what_it_ships_is_close_to_guessing():
    # of at most ln 3 = 1.1 nats a tenth is 0.11; of three classes a third is right by chance, 40 % a tenth beyond
    faint, fainter = sure([0, 1, 2, 2, 1, 0], logit=0.8), sure([0, 1, 2, 2, 1, 0], logit=0.5)
    assert judge(SURE, UNSURE, None, 41.0, 41.0).caveat is None
    assert judge(SURE, UNSURE, None, 39.0, 90.0).ship == "source-only"
    assert judge(SURE, UNSURE, None, 39.0, 90.0).caveat is None, "what it ships knows the source"
    caveat = judge(SURE, UNSURE, None, 39.0, 41.0).to_dict()["caveat"]
    assert caveat == "close to guessing (39.0 % right on the source, by chance 33.3 %): train longer"
    for better, worse, taken in ((faint, fainter, "adapted"), (fainter, faint, "source-only")):
        verdict = judge(better, worse, None, 90.0, 90.0)
        assert verdict.ship == taken
        assert str(verdict.caveat).startswith("close to guessing (im 0.07")


def test_neither_verdict_nor_label_free_scores_can_read_labels():
    for function in (judge, label_free_scores, information_maximization, soft_neighborhood_density):
        assert not [name for name in inspect.signature(function).parameters if "label" in name or "target_acc" in name]
