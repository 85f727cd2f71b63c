"""What the models of Table 1 (Henkel 2021) cost, and how they compare with their straightforward form.

    python benchmarks/models.py table            parameters, multiply-adds, descriptors per second, peak memory
    python benchmarks/models.py compare [NAME]   forward + backward beside the straightforward form, taken in turn
    python benchmarks/models.py compile [NAME]   GPU: channels_last + bfloat16 + torch.compile beside eager float16

The straightforward form is the same network with the same weights as the released code builds it: NCHW, all
EfficientNet stages built and run, and for DOLG the full map of fused features, averaged at the end. Its results are
compared with ours before anything is timed. Peak memory is over what a fresh process holds after its imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import DEVICE, in_turn, medians, peak_since, resident_peak, seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from landmark_retrieval import create_model
from landmark_retrieval.models import DOLGNet, HybridSwinNet
from landmark_retrieval.models.backbone import drop_stem_stride
from landmark_retrieval.models.imagenet import create_timm_model

TABLE_1 = {  # name -> px
    "dolg_efficientnet_b5": 768,
    "dolg_efficientnet_b6": 768,
    "dolg_efficientnet_b7": 448,
    "hybrid_efficientnet_b3_swin_base_224": 896,
    "hybrid_efficientnet_b5_swin_base_224": 448,
    "hybrid_efficientnet_b6_swin_base_384": 384,
    "gem_efficientnet_b3": 768,
    "gem_efficientnet_b5": 704,
    "gem_efficientnet_b6": 512,
}
# name -> (px, batch) for the comparison with the straightforward form
COMPARED = {"dolg_efficientnet_b5": (256, 4), "hybrid_efficientnet_b6_swin_base_384": (384, 2)}


# --- the straightforward form ---


class StraightDOLG(nn.Module):
    """A DOLGNet's weights in NCHW, with the full (B, 2048, h, w) map of fused features."""

    def __init__(self, net: DOLGNet) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        net = self.net
        local_map, global_map = net.backbone(images)
        features, weights = net.attention(net.local_context(local_map))
        local = features * weights
        global_ = net.global_pool(net.global_project(global_map))[:, :, None, None]
        along = (local * global_).sum(1, keepdim=True) / global_.square().sum(1, keepdim=True)
        fused = torch.cat([local - along * global_, global_.expand_as(local)], 1)
        return net.neck(F.adaptive_avg_pool2d(fused, 1).flatten(1))


class StraightHybrid(nn.Module):
    """A HybridSwinNet's weights in NCHW, with every stage of the EfficientNet built and run."""

    def __init__(self, net: HybridSwinNet) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.contiguous_format)
        used = net.patch_embedding.cnn
        index = (net.arguments["cnn_blocks"],)
        self.cnn = create_timm_model(net.arguments["cnn"], False, features_only=True, out_indices=index)
        if net.arguments["stem_stride"] == 1:
            drop_stem_stride(self.cnn, net.arguments["cnn"])
        self.cnn.load_state_dict(used.state_dict(), strict=False)

    def forward(self, images: Tensor) -> Tensor:
        net = self.net
        (x,) = self.cnn(images)
        x = net.patch_embedding.project(x + net.patch_embedding.position).permute(0, 2, 3, 1)
        return net.neck(net.transformer(x, net.token))


def straightforward(net: nn.Module) -> nn.Module:
    return StraightDOLG(net) if isinstance(net, DOLGNet) else StraightHybrid(net)


# --- measuring ---


def training_step(net: nn.Module, images: Tensor) -> Callable[[], None]:
    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(images).square().mean().backward()

    return step


# --- the three commands ---


def one_row(name: str, runs: int) -> dict[str, float]:
    side, before = TABLE_1[name], resident_peak()
    with torch.device("meta"):
        shapes = create_model(name).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            shapes(torch.empty(1, 3, side, side))
    net = create_model(name).eval().to(DEVICE)
    batch = 16 if DEVICE == "cuda" else 1
    images = torch.randn(batch, 3, side, side, device=DEVICE)
    with torch.inference_mode():
        net(images)
        took = statistics.median(seconds(lambda: net(images)) for _ in range(runs))
    return {
        "parameters": sum(p.numel() for p in shapes.parameters()),
        "multiply_adds": counter.get_total_flops() / 2,
        "descriptors_per_second": batch / took,
        "peak_mib": peak_since(before) / 2**20,
    }


def table(runs: int) -> None:
    print(f"{DEVICE}, {torch.get_num_threads()} threads, float32, {'batch 16' if DEVICE == 'cuda' else 'batch 1'}")
    print("| model | px | parameters, M | multiply-adds, G | descriptors / s | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for name, side in TABLE_1.items():
        # a process each, so that the peak is the model's own
        command = [sys.executable, __file__, "row", name, "--runs", str(runs)]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"| `{name}` | {side} | {row['parameters'] / 1e6:.1f} | {row['multiply_adds'] / 1e9:.1f} "
            f"| {row['descriptors_per_second']:.2f} | {row['peak_mib']:,.0f} |",
            flush=True,
        )


def compare(name: str, runs: int) -> None:
    side, batch = COMPARED.get(name, (TABLE_1[name], 1))
    images = torch.randn(batch, 3, side, side, device=DEVICE)
    torch.manual_seed(0)
    ours = create_model(name).to(DEVICE)
    torch.manual_seed(0)
    theirs = straightforward(create_model(name)).to(DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-3, atol=1e-4)
    pairs = in_turn(training_step(ours.train(), images), training_step(theirs.train(), images), runs)
    own, other, ratio = medians(pairs)
    print(
        f"{name}, {side} px, batch {batch}, {DEVICE}, forward + backward: {own:.3f} s, straightforward {other:.3f} s, "
        f"{ratio:.2f} times faster (median of {runs} pairs)",
        flush=True,
    )


def compile_(name: str, runs: int) -> None:
    if DEVICE != "cuda":
        sys.exit("There is no GPU here.")
    batch, side = 32, TABLE_1[name]
    images = torch.randn(batch, 3, side, side, device=DEVICE)
    net = create_model(name).to(DEVICE).train()
    plain = straightforward(create_model(name)).to(DEVICE).train()
    compiled = torch.compile(net)

    def fast() -> None:
        net.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(images).float().square().mean()
        loss.backward()

    def eager() -> None:
        plain.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16):
            loss = plain(images).float().square().mean()
        loss.backward()

    own, other, ratio = medians(in_turn(fast, eager, runs, warmup=5))
    print(
        f"{name}, {side} px, batch {batch}: bfloat16 + channels_last + compile {batch / own:.0f} images/s, "
        f"eager float16 straightforward {batch / other:.0f} images/s, {ratio:.2f} times faster ({runs} pairs)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("table", "compare", "compile", "row"))
    parser.add_argument("name", nargs="?", choices=TABLE_1)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.command == "row":
        print(json.dumps(one_row(arguments.name, arguments.runs)))
    elif arguments.command == "table":
        table(arguments.runs)
    else:
        run = compare if arguments.command == "compare" else compile_
        for name in [arguments.name] if arguments.name else COMPARED:
            run(name, arguments.runs)


if __name__ == "__main__":
    main()
