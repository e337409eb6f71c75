"""The comparison with small models: contenders compute the same, and the command writes what it says."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import compare
import parts
from contenders import Packed, Padded, SameWeights, Squares, random_example, random_model
from fitv2 import FiT
from fitv2.profiling import measure
from fitv2.profiling.formula import forward_flops
from fitv2.sampling.spec import Sampling
from report import markdown, rows
from results import MeasuredPart, Measurement, Results
from tiny import CONFIG

CPU = torch.device("cpu")
SIZES = [(2, 3), (1, 1), (4, 2)]
TINY_FASHION = ("model.width=32", "model.depth=1", "model.heads=2", "training.max_tokens_per_batch=128")
TINY = {
    "forward": partial(parts.forward, config=CONFIG, hw=SIZES, dit_layers=1),
    "training": partial(parts.training, config=CONFIG, hw=SIZES, dit_layers=1),
    "fashion": lambda device: parts.fashion(device, *TINY_FASHION),
    "sizes": partial(parts.sizes, config=CONFIG, hw=SIZES),
    "growth": partial(parts.growth, config=CONFIG, sides=(1, 3)),
    "batch": partial(parts.batch, config=CONFIG, side=2, most=2),
    "sampling": partial(parts.sampling, per_class=1, samplers=(Sampling(steps=1), Sampling(steps=2))),
}


def measurement(name: str, seconds: list[float], flops: int = 4_000_000_000, **worth) -> Measurement:
    return Measurement(name=name, precision="bf16", flops=flops, seconds=seconds, **worth)


def stored(name: str = "forward") -> Results:
    """One part; in its second turn the machine was half as fast."""
    measured = [
        measurement("new", [1.0, 2.0], images=1, tokens=100, bytes=2**20),
        measurement("old", [3.0, 6.0], images=2, tokens=100, bytes=2**21),
    ]
    part = MeasuredPart(
        name=name,
        title="A part",
        about="What it shows.",
        unit="tokens",
        base="old",
        products={"bf16": measurement("matrix product, bf16", [0.5, 1.0])},
        measurements=measured,
    )
    return Results(machine={"device": "one of paper"}, parts=[part])


def loss_and_gradients(layout: type[Packed] | type[Padded]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model = random_model(CONFIG, CPU)
    torch.manual_seed(1)
    loss = layout(model, random_example(CONFIG, SIZES, CPU)).loss()
    loss.backward()
    return loss.detach(), [weight.grad for weight in model.parameters()]


def test_the_padded_layout_computes_what_the_packed_one_does():
    (loss, gradients), (padded_loss, padded_gradients) = loss_and_gradients(Packed), loss_and_gradients(Padded)
    torch.testing.assert_close(padded_loss, loss, atol=1e-6, rtol=1e-6)
    for padded, packed in zip(padded_gradients, gradients, strict=True):
        assert packed.any()
        torch.testing.assert_close(padded, packed, atol=2e-5 * float(packed.abs().max()), rtol=0)


class Leaking(Padded):
    """Its tokens attend to the padding as well."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.mask = torch.ones_like(self.mask)


class Coarse(Packed):
    """Right in float32, and in bfloat16, in which it is timed, a tenth off."""

    def tokens(self) -> torch.Tensor:
        return super().tokens() * (1.1 if torch.is_autocast_enabled("cpu") else 1.0)


@pytest.mark.parametrize("layout", [Leaking, Coarse])
@pytest.mark.parametrize("kind", ["forward", "training"])
def test_a_contender_with_other_numbers_is_refused(layout, kind):
    make = SameWeights(CONFIG, [random_example(CONFIG, SIZES, CPU)], CPU)
    with pytest.raises(ValueError, match=r"away from every image"):
        getattr(make, kind)("it", layout)


def test_only_real_tokens_count():
    make = SameWeights(CONFIG, [random_example(CONFIG, SIZES, CPU)] * 2, CPU)
    step = make.training("padded", Padded)
    assert (step.images, step.tokens) == (6, 30)
    assert step.flops == 3 * 2 * forward_flops(CONFIG, [6, 1, 8])


def test_squares_count_their_own_tokens_and_operations():
    squares = Squares(CONFIG, layers=1, images=2, device=CPU)
    contender = squares.contender("squares", print)
    assert squares.velocity().numel() == contender.tokens * CONFIG.token_channels == 2 * 256 * CONFIG.token_channels
    products = sum(p.numel() for p in squares.network.transformer_blocks[0].ff.parameters() if p.ndim == 2)
    assert contender.flops > 2 * contender.tokens * products


def test_ratios_and_shares_are_taken_turn_by_turn():
    (part,) = stored().parts
    new, old = part.measurements
    assert (part.ratio(new), part.ratio(old)) == (3, 1)
    assert part.share_of_peak(new) == 0.5


def test_the_tables_show_every_figure():
    new, old, product = rows(stored().parts[0])
    assert new == ["new", "1.5 (1 to 2)", "0.75", "75", "3", "50%", "1", "3.00"]
    assert old[-1] == "1.00" and product == ["matrix product, bf16", "0.75 (0.5 to 1)", "", "", "6", "", "", ""]
    page = markdown(stored())
    for part in ("| " + " | ".join(new) + " |", "Code: unknown.", "- device: one of paper", "(forward.png)"):
        assert part in page


@pytest.mark.parametrize("name", ["forward", "growth", "batch"])
def test_plots_are_drawn_again_from_what_is_stored(name, tmp_path, capsys):
    (tmp_path / "results.json").write_text(stored(name).model_dump_json())
    compare.main(["--plot-only", "--out", str(tmp_path)])
    assert "3.00" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "README.md", f"{name}.png"}
    compare.main(["--plot-only", "--out", str(tmp_path), "--json"])
    assert Results.model_validate_json(capsys.readouterr().out) == stored(name)


def test_parts_of_the_same_day_and_machine_are_kept(tmp_path, capsys):
    (tmp_path / "results.json").write_text(stored().model_dump_json())
    assert compare.kept_parts(tmp_path, stored().machine) == stored().parts
    assert compare.kept_parts(tmp_path, {"device": "another"}) == []
    assert "is replaced" in capsys.readouterr().err
    assert compare.kept_parts(tmp_path / "no such folder", {}) == []


@pytest.mark.parametrize("options", [["--parts", "forward"], ["--plot-only"]])
def test_damaged_results_are_reported_and_kept(options, tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SystemExit, match=r"results\.json"):
        compare.main([*options, "--out", str(tmp_path)])
    assert (tmp_path / "results.json").read_text() == "{"


def test_a_whole_run(monkeypatch, tmp_path):
    """Not compiled, which takes longer than all the rest."""
    monkeypatch.setattr(FiT, "compile_blocks", lambda model, token_budget=0: None)
    monkeypatch.setitem(measure.PEAK_SIDE, "cpu", 32)
    results = compare.compare(TINY, CPU, 2, tmp_path)
    assert Results.model_validate_json((tmp_path / "results.json").read_text()) == results
    assert [part.name for part in results.parts] == list(parts.PARTS) == list(TINY)
    for part in results.parts:
        assert (tmp_path / f"{part.name}.png").is_file()
        base = next(m for m in part.measurements if m.name == part.base)
        assert part.ratio(base) == 1
        for measured in part.measurements:
            assert len(measured.seconds) == 2 and measured.flops > 0 and measured.bytes > 0
            assert part.share_of_peak(measured) > 0
    packed, padded = (next(m for m in results.parts[1].measurements if m.name == name) for name in ("fitv2", "padded"))
    assert (packed.tokens, packed.flops) == (padded.tokens, padded.flops)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--parts", "forward,speed"], "there is no part 'speed'; the parts are forward, training,"),
        (["--repeats", "0"], "at least one turn, not '0'"),
    ],
)
def test_wrong_options_are_refused(given, complaint, capsys):
    with pytest.raises(SystemExit):
        compare.main(given)
    assert complaint in capsys.readouterr().err
