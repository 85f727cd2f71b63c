"""A list of curricula as a table: model, stages, and what its authors reached."""

from pathlib import Path

from landmark_retrieval.columns import aligned
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.curriculum import listed, plan_curriculum
from landmark_retrieval.zoo.registry import ARCHITECTURES


def table_of_curricula(name: str, own: Path | None = None) -> str:
    """The table of a list of curricula, with the sources of its figures and how to run one.

    `own`: see `plan_curriculum`.

    Raises:
        LandmarkRetrievalError: no such list.
    """
    names = listed(name, own) or []
    lines = [["curriculum", "model", "px of its stages", "published"]]
    sources: dict[str, str] = {}
    for curriculum in names:
        try:
            stages = plan_curriculum(curriculum, own=own)
        except LandmarkRetrievalError as error:
            lines.append([curriculum, "?", str(error), ""])
            continue
        model = stages[0].config["name"]
        architecture = ARCHITECTURES.get(model)
        figures = "not given"
        if architecture and architecture.published:
            what, _, rest = architecture.published.partition(": ")
            figures, _, source = rest.partition(" (")
            mark = sources.setdefault(f"{what} ({source}", f"[{len(sources) + 1}]")
            figures = f"{figures} {mark}"
        sizes = " > ".join(str(stage.config["data"]["image_size"]) for stage in stages)
        lines.append([curriculum, model, sizes, figures])
    text = aligned(lines)
    text += [f"  {mark} {source}" for source, mark in sources.items()]
    runnable = next((line[0] for line in lines[1:] if line[1] != "?"), names[0])
    text.append(
        f"To run one: python -m landmark_retrieval.curriculum curriculum={runnable} trainer=ddp8 data.root=FOLDER; "
        "its plan alone: --dry-run."
    )
    return "\n".join(text)
