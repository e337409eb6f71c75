"""What a study would take, before it starts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..study.job import Job


def show_plan(studies: list[list[Job]], at_a_time: int | None, as_json: bool) -> None:
    """Prints every run of each study with its cost, and an estimate of the time for those that are not done."""
    from ..study.runner import default_jobs

    found = [figures(jobs, at_a_time or default_jobs()) for jobs in studies]
    if as_json:
        print(json.dumps(found[0] if len(found) == 1 else found))
        return
    for of_study in found:
        for name, planned in of_study["runs"].items():
            print(line(f"{of_study['study']}/{name}", planned, name in of_study["left"]))
        print(
            f"{len(of_study['left'])} of {len(of_study['runs'])} runs are left: about {of_study['hours']:.1f} hours, "
            f"{of_study['jobs']} at a time ({of_study['speed']})"
        )


def figures(jobs: list[Job], at_a_time: int) -> dict[str, Any]:
    """Of one study; runs that it shares with another are counted in each."""
    from ..study.plan import plans, speed
    from ..study.runner import unfinished

    rate, source = speed(jobs, at_a_time)
    left, runs = sorted(job.run.name for job in unfinished(jobs)), plans(jobs)
    hours = sum(runs[name]["flops"] for name in left) / rate / at_a_time / 3600
    return {"study": jobs[0].name, "runs": runs, "left": left, "jobs": at_a_time, "hours": hours, "speed": source}


def line(name: str, planned: dict[str, Any], left: bool) -> str:
    parameters, tera = planned["parameters"] / 1e6, planned["flops"] / 1e12
    costs = f"{parameters:.3f} M parameters, {planned['steps']} steps, {tera:.1f} TFLOP with scoring"
    return f"{name:44} {costs}{'' if left else ', done'}"
