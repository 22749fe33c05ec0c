"""Which label a text reads like."""

from __future__ import annotations

import pytest

from lensae.interpret.subject import LabelModel


def test_label_model_reads_words():
    judge = LabelModel([("tram rails depot", "tram"), ("ocean wave harbour", "boat"), ("no label here", "")], str.split)
    assert judge.labels == ["boat", "tram"]
    assert judge.probability("the depot by the rails", "tram") > 0.7
    assert judge.probability("nothing known", "tram") == pytest.approx(0.5)
    assert sum(judge.probability("a harbour depot", label) for label in judge.labels) == pytest.approx(1)
