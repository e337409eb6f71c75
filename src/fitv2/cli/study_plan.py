"""What a study would take, before it starts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..study.job import Job


def show_plan(jobs: list[Job], at_a_time: int | None, as_json: bool) -> None:
    """Prints every run with its cost, and an estimate of the time for those that are not done."""
    from ..study.plan import plan, speed
    from ..study.runner import default_jobs, unfinished

    at_a_time = at_a_time or default_jobs()
    rate, source = speed(jobs, at_a_time)
    left = {job.run.name for job in unfinished(jobs)}
    plans = {job.run.name: plan(job) for job in jobs}
    seconds = sum(plans[name]["flops"] for name in left) / rate / at_a_time
    figures = {"runs": plans, "left": sorted(left), "jobs": at_a_time, "hours": seconds / 3600, "speed": source}
    if as_json:
        print(json.dumps(figures))
        return
    for name, planned in plans.items():
        print(line(name, planned, name in left))
    print(
        f"{len(left)} of {len(jobs)} runs are left: about {seconds / 3600:.1f} hours, {at_a_time} at a time ({source})"
    )


def line(name: str, planned: dict[str, Any], left: bool) -> str:
    parameters, tera = planned["parameters"] / 1e6, planned["flops"] / 1e12
    costs = f"{parameters:.3f} M parameters, {planned['steps']} steps, {tera:.1f} TFLOP with scoring"
    return f"{name:32} {costs}{'' if left else ', done'}"
