"""`python -m landmark_retrieval.ablate data.root=SHARDS [--out FOLDER] [--only NAME ...] [key=value ...]`: does each
idea help?"""

import argparse
import shlex
import sys
from pathlib import Path

from landmark_retrieval.commands import exit_on_error
from landmark_retrieval.memory import keep_freed_blocks


def _parser() -> argparse.ArgumentParser:
    from landmark_retrieval.training.ablation_questions import QUESTIONS, VARIANTS

    parser = argparse.ArgumentParser(
        prog="python -m landmark_retrieval.ablate",
        description="Train the curricula of conf/experiment/ablation, which differ from base by one thing and see as "
        "many photos, with several seeds each; measure them, and write a table for each question. A plan is printed "
        "first. What is trained and measured already is not done again; an interrupted call carries on; a run that "
        "fails is named and the others go on.",
        epilog=f"Questions: {', '.join(question.name for question in QUESTIONS)}. Variants: {', '.join(VARIANTS)}.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="data.root=SHARDS, and keys for every stage")
    parser.add_argument("--out", type=Path, default=Path("ablation"), metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="questions, or variants to train"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of each variant (default: %(default)s)")
    parser.add_argument(
        "--hybrid-seeds",
        type=int,
        default=1,
        metavar="N",
        help="of the Hybrid-Swin-Transformers, which take longest: 0 leaves them out (default: %(default)s)",
    )
    parser.add_argument(
        "--non-landmark",
        metavar="PHOTOS",
        help="photos that show no landmark, for recognition: shards, a folder, or a CSV (default: the index photos "
        "that are right for no query)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser


@exit_on_error
def main() -> None:
    """Parse, plan, run."""
    arguments = _parser().parse_intermixed_args()
    keep_freed_blocks()

    from landmark_retrieval.errors import LandmarkRetrievalError
    from landmark_retrieval.training.ablation import run_ablation
    from landmark_retrieval.training.ablation_plan import choose, describe_plan, plan_runs
    from landmark_retrieval.training.ranks import Ranks

    if Ranks.here().kind:
        raise LandmarkRetrievalError(
            "The ablations start the processes of their stages themselves: call them once, without torchrun or srun."
        )
    # `--only NAME key=value`: a name is none that has a value
    names = [name for name in arguments.only if "=" not in name]
    overrides = [*arguments.overrides, *(name for name in arguments.only if "=" in name)]
    choice = choose(names, arguments.seeds, arguments.hybrid_seeds)
    print(describe_plan(plan_runs(choice, arguments.out, overrides), choice), flush=True)
    if arguments.dry_run:
        return
    command = shlex.join(["python", "-m", "landmark_retrieval.ablate", *sys.argv[1:]])
    failed = run_ablation(choice, arguments.out, overrides, arguments.non_landmark, command)
    if failed:
        raise LandmarkRetrievalError(
            f"{len(failed)} failed: {'; '.join(sorted(failed))}. Mend what is said above and run the same again: "
            "what is finished is kept."
        )


if __name__ == "__main__":
    main()
