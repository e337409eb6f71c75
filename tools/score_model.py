"""Scores a model of garments at one or more guidance scales and prints a table.

python tools/score_model.py --model builtin:fashion --guidance 1 --guidance 1.5 --guidance 2 --json scores.json
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fitv2.checkpoints.model_folder import Pretrained, load_pretrained
from fitv2.device import choose_device
from fitv2.evaluation.scores import ENOUGH, Scores, score_garments
from fitv2.generate import SOLVER_NAMES, Sampling


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:fashion", help="builtin:NAME, a model folder or a run's folder")
    parser.add_argument("--num", type=int, default=ENOUGH, help="images per scale; fewer make the distance too large")
    parser.add_argument("--guidance", type=float, action="append", help="may be given several times; default 2")
    parser.add_argument("--interval", type=float, nargs=2, default=(0.0, 1.0), help="times in which guidance acts")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--solver", choices=SOLVER_NAMES, default="ab2")
    parser.add_argument("--cache-interval", type=int, default=1, help="model calls per one that computes all blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the shapes of training")
    parser.add_argument("--turned", action="store_true", help="exchange height and width")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    return parser.parse_args()


def score(pretrained: Pretrained, guidance: float, args: argparse.Namespace) -> Scores:
    sampling = Sampling(
        steps=args.steps,
        solver=args.solver,
        guidance=guidance,
        interval=tuple(args.interval),
        cache_interval=args.cache_interval,
    )
    with Progress(transient=True) as bar:
        task = bar.add_task(f"guidance {guidance:g}", total=args.num)
        return score_garments(
            pretrained,
            sampling,
            args.num,
            args.seed,
            lambda done: bar.advance(task, done),
            args.precision,
            args.scale,
            args.turned,
        )


def table(scores: list[Scores]) -> Table:
    """One column for each scale and one for real pictures; classes below the totals."""
    first, page = scores[0], Table()
    for title in ["guidance", *(f"{s.sampling.guidance:g}" for s in scores), "real"]:
        page.add_column(title, justify="right")
    page.add_row("distance", *(f"{s.distance:.3f}" for s in scores), f"{first.distance_real_as_many:.3f}")
    page.add_row(f"ratio to {first.distance_real:.3f}", *(f"{s.ratio:.1f}" for s in scores), "")
    page.add_row("recognised", *(f"{s.recognised:.1%}" for s in scores), f"{first.recognised_real:.1%}")
    page.add_row("seconds", *(f"{s.seconds:.1f}" for s in scores), "")
    for name, real in first.recognised_real_per_class.items():
        page.add_row(name, *(f"{s.recognised_per_class[name]:.1%}" for s in scores), f"{real:.1%}")
    return page


def main() -> None:
    args = arguments()
    pretrained = load_pretrained(args.model)
    pretrained.model.to(choose_device())
    scores = [score(pretrained, guidance, args) for guidance in args.guidance or [2.0]]
    reuse = f", all blocks in one call of {args.cache_interval}" if args.cache_interval > 1 else ""
    sampler = f"{args.steps} {args.solver} steps{reuse} in {args.precision}, guided within {tuple(args.interval)}"
    shapes = f"{args.scale:g}x the shapes of training{', turned' if args.turned else ''}"
    print(f"{scores[0].protocol}: {args.num} images, seed {args.seed}, {sampler}, {shapes}")
    Console().print(table(scores))
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "scores": [asdict(s) for s in scores]}, indent=1))


if __name__ == "__main__":
    main()
