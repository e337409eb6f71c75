"""What a study would take, before it starts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..study.job import Job


def show_plan(studies: list[list[Job]], at_a_time: int | None, as_json: bool) -> None:
    """Prints every run of each study with its cost, and an estimate of the time for those that are not done."""
    from ..study.runner import default_jobs

    found, trained = [], {}
    for jobs in studies:
        found.append(figures(jobs, at_a_time or default_jobs(), trained))
        trained = {job.run.digest: job.label for job in jobs} | trained
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


def figures(jobs: list[Job], at_a_time: int, trained: dict[str, str]) -> dict[str, Any]:
    """Of one study. trained: runs of studies before it in the queue, by digest, whose training it shares."""
    from ..study.plan import plans, speed
    from ..study.runner import unfinished

    rate, source = speed(jobs, at_a_time)
    left, runs = sorted(job.run.name for job in unfinished(jobs)), plans(jobs)
    for job in jobs:
        runs[job.run.name]["training_of"] = trained.get(job.run.digest)
    flops = sum(runs[name]["flops"] - bool(runs[name]["training_of"]) * runs[name]["training_flops"] for name in left)
    hours = flops / rate / at_a_time / 3600
    return {"study": jobs[0].name, "runs": runs, "left": left, "jobs": at_a_time, "hours": hours, "speed": source}


def line(name: str, planned: dict[str, Any], left: bool) -> str:
    parameters, tera = planned["parameters"] / 1e6, planned["flops"] / 1e12
    costs = f"{parameters:.3f} M parameters, {planned['steps']} steps, {tera:.1f} TFLOP with scoring"
    shared = f", trained as {planned['training_of']}" if planned["training_of"] else ""
    return f"{name:44} {costs}{shared if left else ', done'}"
