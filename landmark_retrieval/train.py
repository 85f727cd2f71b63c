"""`python -m landmark_retrieval.train +stage=NAME [key=value ...]`: run one stage. `--help` lists the config groups."""

import sys
from typing import Any

import hydra

from landmark_retrieval.commands import exit_on_error
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.memory import keep_freed_blocks
from landmark_retrieval.training.configs import compose, conf_folder, no_stage


@exit_on_error
def _run(config: Any) -> None:
    from omegaconf import OmegaConf

    from landmark_retrieval.training.stage import run_stage, say_once

    plain: Any = OmegaConf.to_container(config, resolve=True)
    handoff = run_stage(plain)
    for name, value in sorted(handoff.metrics.items()):
        if name.startswith("val/"):
            say_once(f"{name.removeprefix('val/')}: {value:.4f}")
    if broken := handoff.metrics.get("data/broken_photos"):
        say_once(f"broken photos skipped in the last epoch: {broken:.0f}")
    say_once(f"Handed over to {handoff.folder}")


@exit_on_error
def main() -> None:
    """Compose the config, with errors a person can act on, and run the stage."""
    keep_freed_blocks(training=True)
    arguments = sys.argv[1:]
    if {"-m", "--multirun"} & set(arguments):
        raise LandmarkRetrievalError(
            "Stages do not run as a sweep: chain them with python -m landmark_retrieval.curriculum."
        )
    if not any(argument.startswith("-") for argument in arguments):
        config = compose(arguments)
        if config.stage is None:
            if "default_stage" not in config:
                raise no_stage()
            sys.argv.append(f"+stage={config.default_stage}")
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="train")(_run)()


if __name__ == "__main__":
    main()
