"""Schedules against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from edgeda.schedules import LEARNING_RATE, beta, gamma, learning_rate


def test_beta_begins_at_b_and_ends_at_f():
    assert beta(0.0) == pytest.approx(0.1, rel=1e-12)
    assert beta(1.0) == pytest.approx(0.9, rel=1e-12)
    # half way lies the geometric mean: sqrt(0.1 * 0.9) = 0.3
    assert beta(0.5) == pytest.approx(0.3, rel=1e-12)


def test_beta_is_equations_6_and_7_at_every_epoch():
    # beta_t = b exp(g t), g = log(f / b) / epochs
    b, f, epochs = 0.1, 0.9, 400
    g = math.log(f / b) / epochs
    for t in range(epochs + 1):
        assert beta(t / epochs) == pytest.approx(b * math.exp(g * t), rel=1e-12)


def test_beta_of_other_ends():
    # 0.2 (0.8 / 0.2) ** 0.25 = 0.2 sqrt 2
    assert beta(0.25, 0.2, 0.8) == pytest.approx(0.2 * math.sqrt(2.0), rel=1e-12)
    assert beta(0.7, 0.5, 0.5) == 0.5
    assert beta(0.5, 0.9, 0.1) == pytest.approx(0.3, rel=1e-12)


def test_gamma():
    assert gamma(0.0) == 0.0
    # 2 / (1 + e^-10) - 1 = tanh 5
    assert gamma(1.0) == pytest.approx(0.99990920, abs=1e-8)
    # tanh(5 p) in general: p = ln 3 / 10 gives (3 - 1) / (3 + 1)
    assert gamma(math.log(3.0) / 10.0) == pytest.approx(0.5, rel=1e-12)
    # tanh(1) for p = 0.1 and steepness 20
    assert gamma(0.1, steepness=20.0) == pytest.approx(math.tanh(1.0), rel=1e-12)


def test_learning_rates():
    for schedule in LEARNING_RATE:
        assert learning_rate(0.0, schedule) == 1.0
    assert learning_rate(0.9, "constant") == 1.0
    # (1 + cos(pi / 3)) / 2 = 3/4
    assert learning_rate(1 / 3, "cosine") == pytest.approx(0.75, rel=1e-12)
    assert learning_rate(1.0, "cosine") == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(1.2, "cosine") == pytest.approx(0.0, abs=1e-12), "it must not rise again"
    # (1 + 10 * 1.5) ** -0.75 = 16 ** -0.75 = 1/8;  11 ** -0.75 at the end
    assert learning_rate(1.5, "inverse") == pytest.approx(0.125, rel=1e-12)
    assert learning_rate(1.0, "inverse") == pytest.approx(0.16556003, abs=1e-8)


def test_warmup_rises_in_a_line_and_then_follows_the_schedule():
    assert learning_rate(0.05, "constant", warmup=0.1) == pytest.approx(0.5, rel=1e-12)
    assert learning_rate(0.1, "constant", warmup=0.1) == 1.0
    assert learning_rate(0.5, "cosine", warmup=0.1) == pytest.approx(0.5, rel=1e-12)
    # the first steps are small but not nothing
    assert learning_rate(0.0, "constant", warmup=0.1) == 0.01
    rising = [learning_rate(p / 100, "inverse", warmup=0.05) for p in range(6)]
    assert rising == sorted(rising)
