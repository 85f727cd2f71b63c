"""`python -m landmark_retrieval.curriculum curriculum=NAME [--dry-run] [key=value ...]`: run all stages of a
curriculum."""

import argparse
from pathlib import Path

from landmark_retrieval.commands import exit_on_error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m landmark_retrieval.curriculum",
        description="Run the stages of a curriculum, each starting from what the one before handed over. A plan is "
        "printed first. Finished stages are skipped; one whose config has changed is done again, and all after it; an "
        "interrupted one carries on. curriculum=table1 lists the models of the paper with what they reached.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="curriculum=NAME, and config keys for every stage"
    )
    parser.add_argument(
        "--config-dir", type=Path, metavar="FOLDER", help="with stages, curricula and other config groups of one's own"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--rate",
        type=float,
        metavar="IMAGES_PER_SECOND",
        help="show hours in the plan, at so many training images per second of all processes together",
    )
    parser.add_argument(
        "--rate-size",
        type=int,
        default=448,
        metavar="PX",
        help="side of the images that --rate is for; other sizes are reckoned by their area (default: %(default)s)",
    )
    jobs = parser.add_argument_group("stages as jobs of a cluster (extra: slurm)")
    jobs.add_argument(
        "--launcher",
        choices=("local", "submitit"),
        default="local",
        help="submitit: each stage is a job; this command waits for it (default: %(default)s, in this machine's own "
        "processes, or in those of torchrun or srun)",
    )
    jobs.add_argument("--cluster", choices=("slurm", "local"), help="of submitit (default: what there is)")
    jobs.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of submitit's executor, such as slurm_partition=gpu or timeout_min=4320; may be repeated",
    )
    return parser


@exit_on_error
def main() -> None:
    """Parse, plan, run."""
    arguments = _parser().parse_intermixed_args()

    from landmark_retrieval.errors import LandmarkRetrievalError
    from landmark_retrieval.training.curriculum import curricula, listed, plan_curriculum, run_curriculum
    from landmark_retrieval.training.launchers import Launcher, LocalLauncher
    from landmark_retrieval.training.plan_table import table
    from landmark_retrieval.training.ranks import Ranks

    first = Ranks.here().rank == 0
    chosen = [text.removeprefix("curriculum=") for text in arguments.overrides if text.startswith("curriculum=")]
    overrides = [text for text in arguments.overrides if not text.startswith("curriculum=")]
    if len(chosen) != 1:
        raise LandmarkRetrievalError(f"Choose a curriculum with curriculum=NAME, one of {', '.join(curricula())}.")
    if min(1 if arguments.rate is None else arguments.rate, arguments.rate_size) <= 0:
        raise LandmarkRetrievalError("--rate and --rate-size take numbers above 0.")
    if listed(chosen[0], arguments.config_dir) is not None:
        from landmark_retrieval.training.curriculum_table import table_of_curricula

        print(table_of_curricula(chosen[0], arguments.config_dir))
        return
    stages = plan_curriculum(chosen[0], overrides, arguments.config_dir)
    if first:
        print(f"Curriculum {chosen[0]}, {stages[0].config['name']}:")
        print(table([stage.config for stage in stages], arguments.rate, arguments.rate_size), flush=True)
    if arguments.dry_run:
        return
    launcher: Launcher = LocalLauncher()
    if arguments.launcher == "submitit":
        from landmark_retrieval.training.jobs import SubmititLauncher, parse_parameters

        launcher = SubmititLauncher(arguments.cluster, parse_parameters(arguments.slurm))
    for handoff in run_curriculum(stages, launcher=launcher):
        figures = "  ".join(
            f"{key[4:]} {value:.4f}" for key, value in sorted(handoff.metrics.items()) if key.startswith("val/")
        )
        if first:
            print(f"{handoff.stage}: {figures or 'not validated'}")


if __name__ == "__main__":
    main()
