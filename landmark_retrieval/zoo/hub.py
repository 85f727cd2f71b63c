"""Models on the Hugging Face hub: fetched with `hf-hub:OWNER/NAME`, and pushed there."""

from pathlib import Path
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo.saved_model import CARD, WEIGHTS, load_saved

PREFIX = "hf-hub:"


def fetch_from_hub(reference: str) -> Path:
    """The folder of a model on the hub, in the hub's own cache.

    Args:
        reference: `hf-hub:OWNER/NAME`, with `@REVISION` (branch, tag or commit) at its end for another than main.

    Raises:
        LandmarkRetrievalError: no such model, or no way to the hub; the text says what to put where.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = reference.removeprefix(PREFIX).partition("@")
    try:
        card = Path(hf_hub_download(repository, CARD, revision=revision or None))
        # of the same commit, whatever happens on the hub in between; the hub's cache has a folder per commit
        hf_hub_download(repository, WEIGHTS, revision=card.parent.name)
    except LocalEntryNotFoundError:
        raise LandmarkRetrievalError(
            f"{reference} is not in the hub's cache and the hub cannot be reached: check the network and HF_HUB_OFFLINE"
            f", or fetch {CARD} and {WEIGHTS} of {repository} where there is a network, put both into a folder, and "
            "name that folder."
        ) from None
    except Exception as error:  # the hub's client raises many unrelated types
        raise LandmarkRetrievalError(
            f"{reference} cannot be fetched ({type(error).__name__}: {_first_line(error)}): check the name, and log in "
            "with `hf auth login` if it is private."
        ) from error
    return card.parent


def push(folder: str | Path, repository: str, public: bool = False) -> str:
    """Put a saved model on the hub: weights, card, and a page made from the card, in one commit.

    Args:
        folder: with model.json and model.safetensors; it is loaded first, so that nothing broken is pushed.
        repository: OWNER/NAME; made if needed, with a visibility of `public`; that of an existing one stays.
        public: whether everybody can see it.

    Returns:
        The address of its page.

    Raises:
        LandmarkRetrievalError: the folder holds no whole model, nobody is logged in, or the hub refuses.
    """
    import huggingface_hub

    folder = Path(folder)
    repository = repository.removeprefix(PREFIX)
    _, card = load_saved(folder)
    if not huggingface_hub.get_token():
        raise LandmarkRetrievalError(
            "Nobody is logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN to one that may write."
        )
    files: dict[str, Any] = {name: folder / name for name in (WEIGHTS, CARD)}
    files["README.md"] = page(card, repository).encode()
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        api.create_commit(
            repository,
            [huggingface_hub.CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=f"{card.get('name') or card['architecture']} {card['weights_sha256'][:12]}",
        )
    except Exception as error:  # the hub's client raises many unrelated types
        raise LandmarkRetrievalError(
            f"{folder} cannot be pushed to {repository} ({type(error).__name__}: {_first_line(error)}): check the "
            "name, the network, and that your token may write there."
        ) from error
    return f"https://huggingface.co/{repository}"


def page(card: dict[str, Any], repository: str) -> str:
    """The README.md of a model on the hub, made from its card."""
    facts = {
        "architecture": f"`{card['architecture']}`",
        "images": f"{_sides(card)}, RGB, mean {card.get('mean')}, sd {card.get('std')}",
        "source": card.get("source"),
        "trained on": card.get("trained_on"),
        "classes": card.get("classes"),
        "reached": card.get("figure"),
        "measured by": card.get("command") and f"`{card['command']}`",
        "sha256 of the weights": f"`{card['weights_sha256']}`",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value)
    return f"""---
license: {(card.get("licence") or "unknown").lower()}
library_name: landmark-retrieval
pipeline_tag: image-feature-extraction
tags: [image-retrieval, landmark-recognition]
---

# {card.get("name") or repository.partition("/")[2]}

Photos of landmarks -> descriptors, for the Python package landmark-retrieval.

| | |
|---|---|
{rows}

```bash
landmark-retrieval index photos/ --model {PREFIX}{repository} --out my-index
```

```python
from landmark_retrieval.zoo import load_model

model, card = load_model("{PREFIX}{repository}")
descriptors = model(images)  # normalised images (B, 3, H, W) -> (B, D), not L2-normalised
```
"""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")


def _sides(card: dict[str, Any]) -> str:
    side = card.get("image_size")
    return {
        "squash": f"{side} x {side} px",
        "longest_side": f"longer side {side} px",
        "shortest_side": f"shorter side {side} px",
        "original": f"as they are, at most {side} px a side" if side else "as they are",
    }[card.get("resize", "squash")]
