"""`python -m landmark_retrieval.curriculum curriculum=NAME [--dry-run] [key=value ...]`: run all stages of a
curriculum."""

import argparse

from landmark_retrieval.commands import exit_on_error


@exit_on_error
def main() -> None:
    """Parse, plan, run."""
    parser = argparse.ArgumentParser(
        prog="python -m landmark_retrieval.curriculum",
        description="Run the stages of a curriculum, each starting from what the one before handed over. "
        "Finished stages are skipped; an interrupted one carries on.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="curriculum=NAME, and config keys for every stage"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    arguments = parser.parse_intermixed_args()

    from landmark_retrieval.training.curriculum import plan_curriculum, run_curriculum

    name = "dolg_lite0"
    overrides = []
    for override in arguments.overrides:
        if override.startswith("curriculum="):
            name = override.removeprefix("curriculum=")
        else:
            overrides.append(override)
    stages = plan_curriculum(name, overrides)
    for stage in stages:
        print(stage.describe())
    if not arguments.dry_run:
        for handoff in run_curriculum(stages):
            figures = "  ".join(
                f"{key[4:]} {value:.4f}" for key, value in sorted(handoff.metrics.items()) if key.startswith("val/")
            )
            print(f"{handoff.stage}: {figures or 'not validated'}")


if __name__ == "__main__":
    main()
