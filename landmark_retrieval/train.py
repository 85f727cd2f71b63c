"""`python -m landmark_retrieval.train +stage=NAME [key=value ...]`: run one stage. `--help` lists the config groups."""

import sys
from typing import Any

import hydra

from landmark_retrieval.commands import exit_on_error
from landmark_retrieval.training.configs import compose, conf_folder


@exit_on_error
def _run(config: Any) -> None:
    from omegaconf import OmegaConf

    from landmark_retrieval.training.stage import run_stage

    plain: Any = OmegaConf.to_container(config, resolve=True)
    handoff = run_stage(plain)
    for name, value in sorted(handoff.metrics.items()):
        if name.startswith("val/"):
            print(f"{name.removeprefix('val/')}: {value:.4f}")
    print(f"Handed over to {handoff.folder}")


@exit_on_error
def main() -> None:
    """Compose the config, with errors a person can act on, and run the stage."""
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    if not flags:
        compose(sys.argv[1:])
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="train")(_run)()


if __name__ == "__main__":
    main()
