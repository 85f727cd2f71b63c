import math

import cv2
import pytest
import torch
from torch import nn

from landmark_retrieval.training.freezing import batchnorms
from landmark_retrieval.training.optimizers import make_optimizer
from landmark_retrieval.training.stability import StepGuard, save_batch


class Trained:
    """A small network that is trained with a guard."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.optimizer = make_optimizer("adam", [{"params": list(self.net.parameters()), "lr": 0.1}], 0.0)
        self.guard = StepGuard()

    def step(self, *batches, spoil=None):
        self.optimizer.zero_grad()
        self.guard.before_step(batchnorms(dict(self.net.named_modules())), torch.device("cpu"))
        for batch in batches:
            loss = self.net(batch).square().mean()
            self.guard.see_loss(loss)
            loss.backward()
        if spoil is not None:
            self.net[2].weight.grad[0, 0] = spoil
        self.optimizer.grad_scale, self.optimizer.found_inf = None, self.guard.see_gradients([*self.net.parameters()])
        self.optimizer.step()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_steps_leave_no_trace(value):
    torch.manual_seed(1)
    good = [torch.randn(6, 4) for _ in range(4)]
    poisoned = torch.randn(6, 4)
    poisoned[3, 2] = value
    spoiled, clean = Trained(), Trained()
    for batch in good:
        spoiled.step(poisoned)
        spoiled.step(batch, spoil=value)
        # of several batches of one step, one that is bad spoils all
        spoiled.step(batch, poisoned)
        assert spoiled.guard.in_a_row == 3
        spoiled.step(batch)
        assert spoiled.guard.in_a_row == 0
        clean.step(batch)
    assert spoiled.guard.skipped == 12
    assert clean.guard.skipped == 0
    ours, theirs = spoiled.net.state_dict(), clean.net.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if "num_batches" not in key)
    assert clean.guard.norm > 0


def test_counts_survive_a_checkpoint():
    trained = Trained()
    trained.step(torch.full((6, 4), math.nan))
    taken_up = StepGuard()
    taken_up.load_state_dict(trained.guard.state_dict())
    assert (taken_up.skipped, taken_up.in_a_row) == (1, 1)


def test_statistics_that_stand_still_are_not_copied():
    trained = Trained()
    trained.net[1].eval()
    trained.guard.before_step(batchnorms(dict(trained.net.named_modules())), torch.device("cpu"))
    assert trained.guard._before == []


def test_a_batch_to_look_at(tmp_path):
    images = torch.arange(5 * 4 * 4 * 3, dtype=torch.uint8).view(5, 4, 4, 3)
    save_batch(tmp_path, "bad", images, torch.arange(5), {"step": 7})
    saved = torch.load(tmp_path / "bad.pt", weights_only=True)
    assert saved["step"] == 7
    assert torch.equal(saved["images"], images)
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "bad.png")), cv2.COLOR_BGR2RGB)
    assert picture.shape == (8, 12, 3)
    assert (picture[4:, 4:8] == images[4].numpy()).all()
    assert not picture[4:, 8:].any()
