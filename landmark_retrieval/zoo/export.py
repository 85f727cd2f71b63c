"""Models for other programs: one file that takes square uint8 photos and gives descriptors, without this package."""

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo.records import IMAGENET_MEAN, IMAGENET_STD

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # of the numbers of a descriptor of unit length
OPSET = 18  # the oldest that torch writes without converting, so the one that most runtimes read
LARGEST_FILE = 1_900_000_000  # bytes of weights in one ONNX file; its encoding ends at 2 GiB
INPUT, OUTPUT = "images", "descriptors"


@dataclass(frozen=True)
class Exported:
    """What `export_model` wrote.

    Attributes:
        path: the file.
        files: all that belongs together: the file, and beside it the weights of an ONNX model of more than 1.9 GB.
        metadata: what the file says about itself; see `export_model`.
        difference: largest difference between a number of the file's descriptors and of the module's; None if an ONNX
            file was not checked, because onnxruntime is not installed.
    """

    path: Path
    files: tuple[Path, ...]
    metadata: dict[str, str]
    difference: float | None


class PhotosToDescriptors(nn.Module):
    """A model with what comes before and after it: uint8 RGB (B, S, S, 3) -> float32 (B, D) of unit length.

    Args:
        model: normalised float images (B, 3, S, S) -> (B, D).
        mean: of the R, G and B of the photos that the model was trained on, each of 0 to 1.
        std: likewise their standard deviations.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("shift", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1) * 255))

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        pixels = images.permute(0, 3, 1, 2).float()
        return F.normalize(self.model((pixels - self.shift) * self.scale).float())


def export_model(model: nn.Module, card: Mapping[str, Any], out: str | Path, format: str = "onnx") -> Exported:
    """Write a model, and the normalisation before and after it, for a program that has none of this package.

    The file takes `images`, uint8 (batch, S, S, 3), RGB, of any batch size, S being the card's `image_size`, and gives
    `descriptors`, float32 (batch, D), of unit length. Photos are resized to S x S by the caller, whatever their shape,
    as the models were trained: by area averaging where they shrink and bilinearly where they grow (OpenCV's
    INTER_AREA and INTER_LINEAR). That step is not in the file because ONNX has no operator that averages like that.

    The file says about itself what the card says, with `mean`, `std` and `interpolation` filled in, and `input`,
    `output` and `resize` in words: an ONNX file in its metadata_props, a torch-export file in its extra file card.json.

    It is written whole or not at all, and only if it gives the module's descriptors of random images, in batches of 1
    and 3, to 1e-4.

        session = onnxruntime.InferenceSession("model.onnx")
        (descriptors,) = session.run(None, {"images": images})

        descriptors = torch.export.load("model.pt2").module()(torch.from_numpy(images))

    Args:
        model: of `load_model` or any other; it is copied to the CPU as float32 and left as it is.
        card: its `image_size` (pixels), and `mean` and `std` if they are not ImageNet's.
        out: the file. An ONNX model of more than 1.9 GB keeps its weights beside it, in the same name with `.data`.
        format: "onnx" (needs the extra `export`; opset 18) or "torch-export".

    Raises:
        LandmarkRetrievalError: another format, a folder in the place of the file, the extra is not installed, the model
            cannot be exported or does not take images of that size, or the file's descriptors are not the module's.
    """
    if format not in SUFFIXES:
        raise LandmarkRetrievalError(f"There is no format {format!r}: choose {' or '.join(SUFFIXES)}.")
    if format == "onnx":
        _need_extra()
    out = Path(out)
    if out.is_dir():
        raise LandmarkRetrievalError(
            f"{out} is a folder: name the file to write, e.g. {out / 'model'}{SUFFIXES[format]}."
        )
    if card.get("resize", "squash") != "squash" or card.get("views"):
        raise LandmarkRetrievalError(
            f"The model takes photos with resize {card.get('resize')!r} and views {card.get('views')}, where an "
            "exported file takes squares of one size: set resize to squash and image_size in its model.json, and no "
            "views."
        )
    side, mean, std = card["image_size"], card.get("mean", IMAGENET_MEAN), card.get("std", IMAGENET_STD)
    module = PhotosToDescriptors(copy.deepcopy(model), mean, std).cpu().float().eval().requires_grad_(False)
    module.to(memory_format=torch.contiguous_format)  # torch.export.save stumbles over channels_last
    try:
        program = _capture(module, side)
        metadata = _metadata(card, mean, std, _descriptor_length(program))
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            draft = Path(folder) / out.name
            run = (_write_onnx if format == "onnx" else _write_torch_export)(program, draft, metadata)
            difference = _difference(run, module, side) if run else None
            # `not <=`, because what is not a number is not greater either
            if difference is not None and not difference <= TOLERANCE:
                raise LandmarkRetrievalError(
                    f"{out} was not written: its descriptors of random images are off by {difference:.1e} from the "
                    f"model's, more than {TOLERANCE:.0e} allows: check that they are finite, or choose the other "
                    "format."
                )
            return Exported(out, _move(draft, out), metadata, difference)
    except (LandmarkRetrievalError, OSError):
        raise
    except Exception as error:  # the exporters raise many unrelated types
        raise LandmarkRetrievalError(
            f"{out} was not written: {type(model).__name__} cannot be exported as {format} for images of {side} px "
            f"({_reason(error)}): choose another format or image size."
        ) from error


def _need_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise LandmarkRetrievalError(
            f"Exporting as onnx needs {error.name}, which is not installed: pip install landmark-retrieval[export]."
        ) from error


def _capture(module: PhotosToDescriptors, side: int) -> torch.export.ExportedProgram:
    # an example of 2: torch would take a batch of 1 for a size that never changes
    images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (images,), dynamic_shapes={INPUT: {0: batch}})
    for graph_module in program.graph_module.modules():
        for node in graph_module.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine have no place in the file
    return program


def _descriptor_length(program: torch.export.ExportedProgram) -> int:
    (descriptors,) = program.graph.output_node().args[0]
    return int(descriptors.meta["val"].shape[1])


def _metadata(card: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], length: int) -> dict[str, str]:
    side = card["image_size"]
    facts = {
        "interpolation": "area",
        **card,
        "mean": list(mean),
        "std": list(std),
        "input": f"{INPUT}: uint8 (batch, {side}, {side}, 3), RGB",
        "output": f"{OUTPUT}: float32 (batch, {length}), unit length",
        "resize": f"to {side} x {side} px whatever the shape; area averaging where it shrinks, bilinear where it grows",
    }
    return {key: fact if isinstance(fact, str) else json.dumps(fact) for key, fact in facts.items() if fact is not None}


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> Callable[[Tensor], Tensor] | None:
    """Write the program, and read the file again: images -> descriptors, or None where onnxruntime is missing."""
    written = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: {0: "batch"}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert written is not None
    written.model.metadata_props.update(metadata)
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    written.save(path, external_data=weights > LARGEST_FILE)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def _write_torch_export(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> Callable[[Tensor], Tensor]:
    """Write the program, and read the file again: images -> descriptors."""
    with path.open("wb") as file:  # a name would have to end in .pt2
        torch.export.save(program, file, extra_files={"card.json": json.dumps(metadata, ensure_ascii=False)})
    with path.open("rb") as file:
        return torch.export.load(file).module()


@torch.inference_mode()
def _difference(run: Callable[[Tensor], Tensor], module: nn.Module, side: int) -> float:
    random = torch.Generator().manual_seed(0)
    differences = []
    for batch in (1, 3):
        images = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=random)
        differences.append((run(images) - module(images)).abs().amax())
    return torch.stack(differences).amax().item()


def _move(draft: Path, out: Path) -> tuple[Path, ...]:
    """Move all of the draft's folder to where `out` is; the file itself comes last, so where it stands it is whole."""
    beside = sorted(path for path in draft.parent.iterdir() if path != draft)
    if beside:
        out.unlink(missing_ok=True)  # an older file must not meet the new weights
    return tuple(path.replace(out.with_name(path.name)) for path in [*beside, draft])[::-1]


def _reason(error: BaseException) -> str:
    """The first line of what started it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
