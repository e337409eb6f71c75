"""What a run says of its held-out loss when it ends."""

import re
from pathlib import Path

import pytest

from fitv2.training.advice import advice
from fitv2.training.plots import mean, panels, places_of, values_of

RUN = Path("runs/mine")


def lines(*losses, every: int = 10) -> list[dict]:
    """A log in which every tenth step measured the held-out images; None: not finite."""
    found: list[dict] = [{"step": step, "loss": 1.0, "images": 5} for step in range(1, every * len(losses) + 1)]
    for number, loss in enumerate(losses, 1):
        found[every * number - 1]["holdout_loss"] = loss
    return found


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ((1.0, 0.8, 0.7, 0.6), r"still falls \(14\.3 % over the .*--resume --out runs/mine --set training\.steps=80$"),
        ((1.0, 0.6, 0.6, 0.66), r"has risen by 10\.0 % since step 20: .* only to step 20 \(log\.export_at=\[20\]"),
        ((1.0, 0.6, 0.5, 0.497), r"has levelled off \(0\.6 % over the last quarter\)"),
        ((1.0, 0.5, 0.502, 0.503), r"has levelled off \(-0\.2 % over"),
        ((1.0, None, 0.8, 0.7, 0.6), r"still falls \(25\.0 % over"),
    ],
)
def test_the_sentence(losses, told):
    sentence = advice(lines(*losses), RUN)
    assert sentence is not None and re.search(told, sentence), sentence


def test_too_few_measurements_say_nothing():
    assert advice(lines(1.0, 0.9, 0.8), RUN) is None and advice(lines(None, 1.0, 0.9, 0.8), RUN) is None
    late = [{"step": step, "holdout_loss": 1.0 - step / 100} for step in (17, 18, 19, 20)]
    assert "still falls" in (advice(late, RUN) or ""), "all of them in the last quarter"


def test_the_panels_of_logs_with_and_without_held_out_images():
    """Steps and images on the axis; figures that are missing are gaps."""
    log = lines(1.0, 0.8)
    log[-1] |= {"holdout_loss/time_0.00-0.25": 0.9, "holdout_loss/tokens_4-9": 0.8}
    assert len(panels({"a": [{"step": 1}]})) == 5
    assert len(panels({"a": log, "b": [{"step": 1}]})) == 9
    assert places_of(log, images=False)[-1] == 20 and places_of(log, images=True)[-1] == 100
    values = values_of(log, "holdout_loss")
    assert [*values[[9, 19]]] == [1.0, 0.8] and mean(values) == 0.9 and mean(values[:5]) != mean(values[:5])
