"""Panels of profiles: how FLOPs grow with parameters, and what sizes cost if they were measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from ..drawing import Panel, plain_ticks
from ..model.presets import PRESETS
from .profile import Pass, Profile


def panels(profiles: Sequence[Profile]) -> list[Panel]:
    """One of the formulas; of what was measured seconds, tokens a second and the fraction of the peak."""
    measured = [profile for profile in profiles if profile.measured]
    drawn = [scales(profiles)]
    if measured:
        drawn += [
            over_tokens(measured, "seconds", lambda run: run.seconds, logarithmic=True),
            over_tokens(measured, "tokens a second", lambda run: run.tokens_per_second, logarithmic=True),
            over_tokens(measured, "fraction of the peak", lambda run: run.share, logarithmic=False),
        ]
    return drawn


def scales(profiles: Sequence[Profile]) -> Panel:
    """FLOPs of a forward pass over parameters, a line for each kind of model and size."""
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    highest: dict[str, tuple[float, float]] = {}  # Of each scale, which is named there.
    for profile in profiles:
        kind, _, scale = profile.case.subject.name.partition("-")
        if profile.case.subject.name not in PRESETS:
            kind, scale = profile.case.subject.name, ""
        point = profile.cost.parameters / 1e6, profile.cost.forward_flops / 1e9
        lines[f"{kind} {profile.case.size[0]}x{profile.case.size[1]}"].append(point)
        highest[scale] = max(highest.get(scale, point), point, key=lambda at: at[1])

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), "o-", markersize=4, label=name)
        for scale, point in highest.items():
            axes.annotate(scale, point, (-4, 5), textcoords="offset points", horizontalalignment="right", fontsize=7)
        axes.set(title="a forward pass", xlabel="million parameters", ylabel="GFLOP", xscale="log", yscale="log")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.margins(0.12)
        finish(axes)

    return draw


def over_tokens(profiles: Sequence[Profile], title: str, figure: Callable[[Pass], float], logarithmic: bool) -> Panel:
    """A measured figure over the tokens of an image: triangles for the forward pass, dots for the training step."""
    lines: dict[str, list[Profile]] = defaultdict(list)
    for profile in profiles:
        lines[profile.case.subject.name].append(profile)

    def draw(axes: Axes) -> None:
        for number, (name, line) in enumerate(lines.items()):
            ordered = sorted(line, key=lambda profile: profile.case.tokens)
            tokens = [profile.case.tokens for profile in ordered]
            for kind, style in (("forward", "^--"), ("step", "o-")):
                runs = [getattr(profile.measured, kind) for profile in ordered]
                values = [figure(run) if run else math.nan for run in runs]  # A step that does not fit leaves a gap.
                axes.plot(tokens, values, style, markersize=4, color=f"C{number}", label=f"{name} {kind}")
        axes.set(title=title, xlabel="tokens of an image", xscale="log")
        plain_ticks(axes.xaxis, base=2)
        if logarithmic:
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        finish(axes)

    return draw


def finish(axes: Axes) -> None:
    """Adds a grid and a legend."""
    axes.grid(alpha=0.3)
    for text in axes.legend(fontsize=7).get_texts():
        text.set_parse_math(False)  # A folder's name is no formula.
