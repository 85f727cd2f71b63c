import pytest
import torch
from torch import nn

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.optimizers import hold, make_optimizer


def parameters(number=3):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(5)) for _ in range(number)]


def steps(optimizer, held, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in held:
            parameter.grad = torch.randn(5, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_steps_are_those_of_torch(kind):
    ours, theirs = parameters(), parameters()
    momentum = 0.9 if kind == "sgd" else 0.0
    optimizer = make_optimizer(kind, [{"params": [], "lr": 1.0}, {"params": ours, "lr": 0.1}], 1e-2, momentum)
    make = (lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-2)) if kind == "sgd" else None
    reference = make(theirs) if make else torch.optim.Adam(theirs, 0.1, weight_decay=1e-2)
    steps(optimizer, ours, 4)
    steps(reference, theirs, 4)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_step_that_is_left_out_never_was(kind):
    """The very first one among them, which leaves torch's momentum as it found the memory."""
    ours, theirs = parameters(), parameters()
    momentum = 0.9 if kind == "sgd" else 0.0
    optimizer, reference = (make_optimizer(kind, [{"params": p, "lr": 0.1}], 1e-2, momentum) for p in (ours, theirs))
    for good, seed in [(False, 7), (True, 1), (False, 8), (True, 2)]:
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(0.0 if good else 1.0)
        steps(optimizer, ours, 1, seed)
        if good:
            steps(reference, theirs, 1, seed)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_what_goes_on_training_keeps_its_state(kind):
    """A second optimizer that holds the first parameter alone makes the same steps of it, whoever comes and goes."""
    ours, alone = parameters(), parameters(1)
    momentum = 0.9 if kind == "sgd" else 0.0
    optimizer = make_optimizer(kind, [{"params": ours[:2], "lr": 0.1}, {"params": [], "lr": 0.01}], 0.0, momentum)
    reference = make_optimizer(kind, [{"params": alone, "lr": 0.1}], 0.0, momentum)
    for now in ([ours[:2], []], [ours[:1], ours[2:]], [ours[:1], ours[1:]]):
        hold(optimizer, now)
        assert set(optimizer.state) <= {parameter for group in now for parameter in group}
        for _ in range(3):
            for parameter in (*ours, *alone):
                parameter.grad = torch.ones(5)
            optimizer.step()
            reference.step()
        assert torch.equal(ours[0], alone[0])
        # a state that can be saved and loaded into an optimizer that holds the same
        other = make_optimizer(
            kind, [{"params": group, "lr": lr} for group, lr in zip(now, (0.1, 0.01), strict=True)], 0.0, momentum
        )
        other.load_state_dict(optimizer.state_dict())


def test_mistakes():
    with pytest.raises(LandmarkRetrievalError, match=r"optimizer\.kind is adam or sgd, not 'lion'"):
        make_optimizer("lion", [], 0.0)
    with pytest.raises(LandmarkRetrievalError, match=r"optimizer\.momentum is of optimizer\.kind=sgd"):
        make_optimizer("adam", [{"params": parameters(), "lr": 1.0}], 0.0, momentum=0.9)
