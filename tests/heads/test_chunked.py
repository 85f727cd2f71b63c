"""The loss chunk by chunk against the plain formula, differentiated by autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landmark_retrieval.heads import SubCenterArcFace, chunked

CLASSES, DIM = 11, 6
# in the first chunk and the last, more than once, and classes next to each other
LABELS = [0, 0, 10, 3, 3, 3, 4]
# the larger ones take the easy branch, 0 is no margin at all
MARGINS = torch.linspace(0, 2.8, CLASSES).double()


def plain_loss(embeddings, weight, labels, margins, scale, sub_centers):
    cosine = F.normalize(embeddings) @ F.normalize(weight).T
    cosine = cosine.view(len(labels), -1, sub_centers).max(2).values
    margin, target = margins.to(cosine)[labels], cosine.gather(1, labels[:, None])[:, 0]
    widened = torch.where(
        target > (math.pi - margin).cos(),
        (target.acos() + margin).cos(),
        target - margin * (math.pi - margin).sin(),
    )
    return F.cross_entropy(scale * cosine.scatter(1, labels[:, None], widened[:, None]), labels)


def plain(head, embeddings, labels):
    """Loss and gradients of the head's weight and the embeddings by the plain formula."""
    x, weight = (t.detach().clone().requires_grad_() for t in (embeddings, head.weight))
    loss = plain_loss(x, weight, labels, head.margins, head.scale, head.sub_centers)
    loss.backward()
    return loss.detach(), x.grad, weight.grad


def by_chunks(head, embeddings, labels):
    """The same by the head."""
    x, head.weight.grad = embeddings.detach().clone().requires_grad_(), None
    loss = head(x, labels)
    loss.backward()
    return loss.detach(), x.grad, head.weight.grad.clone()  # converting the head converts its gradient


def example(sub_centers=3, classes=CLASSES, margins=MARGINS, labels=LABELS, dtype=torch.float64, dim=DIM, scale=20.0):
    torch.manual_seed(classes + sub_centers)
    head = SubCenterArcFace(dim, classes, sub_centers, scale, margins).to(dtype)
    return head, torch.randn(len(labels), dim, dtype=dtype), torch.tensor(labels)


@pytest.fixture
def chunks_of(monkeypatch):
    """Lets a head go through its classes so many at a time."""

    def chunks_of(classes, head):
        size = 8 if head.weight.dtype == torch.float64 else 4
        monkeypatch.setattr(chunked, "CPU_CHUNK_BYTES", classes * head.sub_centers * head.embedding_dim * size)

    return chunks_of


def rotated(angles, plane):
    """Vectors (len(angles), 4) at these angles from the first axis, each in the plane of that axis and another."""
    angles = torch.tensor(angles, dtype=torch.float64)
    vectors = torch.zeros(len(angles), 4, dtype=torch.float64)
    vectors[:, 0], vectors[:, plane] = angles.cos(), angles.sin()
    return vectors


# --- loss and gradients ---


def test_chunks_are_of_uneven_size(chunks_of):
    head, x, _ = example()
    chunks_of(4, head)
    chunks = [classes for classes, _ in chunked.nearest_centers(x, head.weight.detach(), head.sub_centers)]
    assert chunks == [slice(0, 4), slice(4, 8), slice(8, 11)]


@pytest.mark.parametrize("labels", [LABELS, [10], [5] * 4], ids=["batch of 7", "batch of 1", "one class"])
@pytest.mark.parametrize("chunk", [1, 4, 10, 11, 50])
@pytest.mark.parametrize("sub_centers", [1, 2, 3])
def test_equal_to_the_plain_formula(chunks_of, sub_centers, chunk, labels):
    head, x, labels = example(sub_centers, labels=labels)
    chunks_of(chunk, head)
    for own, expected in zip(by_chunks(head, x, labels), plain(head, x, labels), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


def test_both_branches_of_the_margin_are_among_the_examples():
    head, x, labels = example()
    target = head.cosine(x).gather(1, labels[:, None])[:, 0]
    easy = target <= (math.pi - MARGINS[labels]).cos()
    assert easy.any() and not easy.all()


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_float32_is_close_to_float64(chunks_of, chunk):
    head, x, labels = example(dtype=torch.float32)
    chunks_of(chunk, head)
    own = by_chunks(head, x, labels)
    for single, double in zip(own, plain(head.double(), x.double(), labels), strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


def test_gradients_by_finite_differences(chunks_of):
    head, x, labels = example(classes=5, margins=0.3, labels=[0, 4, 4], dim=4)
    chunks_of(2, head)

    def loss(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), head.weight.detach().clone().requires_grad_()))


def test_gradients_add_up_and_take_the_factor_from_above(chunks_of):
    head, x, labels = example()
    chunks_of(4, head)
    _, x_grad, weight_grad = by_chunks(head, x, labels)
    _, _, other = by_chunks(head, x.flip(0), labels)
    x.requires_grad_()
    head.weight.grad = None
    (3 * head(x, labels)).backward()
    head(x.detach().flip(0), labels).backward()
    torch.testing.assert_close(x.grad, 3 * x_grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.weight.grad, 3 * weight_grad + other, rtol=1e-12, atol=1e-12)


def test_either_side_may_be_frozen():
    head, x, labels = example()
    _, x_grad, weight_grad = by_chunks(head, x, labels)
    head.weight.grad = None
    head(x, labels).backward()
    assert torch.equal(head.weight.grad, weight_grad)
    head.requires_grad_(False)
    head.weight.grad = None
    head(x.requires_grad_(), labels).backward()
    assert torch.equal(x.grad, x_grad) and head.weight.grad is None


# --- the edges ---


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_of_equal_centers_the_first_gets_the_gradient(chunks_of, chunk):
    # every cosine is exactly 1/2 or -1/2, so that ties are ties; torch.max gives its gradient to the first as well
    a, b, c, _ = torch.eye(4)
    head = SubCenterArcFace(4, 3, 3, 8.0, margins=0.3).double()
    with torch.no_grad():
        head.weight.copy_(torch.stack([a, 2 * b, c, -a, b, 4 * c, -b, -a, -c]))
    chunks_of(chunk, head)
    x, labels = torch.ones(3, 4).double(), torch.tensor([0, 1, 2])
    own, expected = by_chunks(head, x, labels), plain(head, x, labels)
    assert own[2].any(1).tolist() == [True, False, False, False, True, False, True, False, False]
    for mine, right in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 50])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.5, 3.0])
def test_cosine_of_one_and_minus_one(chunks_of, margin, chunk, dtype):
    head = SubCenterArcFace(4, 3, 1, 45.0, margins=margin).to(dtype)
    with torch.no_grad():
        head.weight.copy_(2 * torch.eye(4)[:3])
    chunks_of(chunk, head)
    x, labels = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], dtype=dtype), torch.tensor([0, 0])
    loss, x_grad, weight_grad = by_chunks(head, x, labels)
    # cos(0 + m) unless that is the easy branch, and always the easy branch at pi
    first = 1 - margin * math.sin(margin) if math.cos(math.pi - margin) >= 1 else math.cos(margin)
    targets = torch.tensor([first, -1 - margin * math.sin(margin)], dtype=torch.float64)
    logits = 45 * torch.cat([targets[:, None], torch.zeros(2, 2)], 1)
    torch.testing.assert_close(loss.double(), F.cross_entropy(logits, labels), rtol=1e-5, atol=1e-5)
    assert x_grad.isfinite().all() and weight_grad.isfinite().all()
    # a cosine of 1 or -1 cannot be changed in the first order
    assert x_grad[:, 0].abs().max() == 0 and weight_grad[0].abs().max() == 0


@pytest.mark.parametrize("noise", [0, 1e-8, 1e-6, 1e-4])
def test_close_to_its_center_no_slope_explodes(chunks_of, noise):
    head, noisy, labels = example(1, 200, 0.5, labels=list(range(200)), dtype=torch.float32, dim=64, scale=1.0)
    chunks_of(30, head)
    # the direction in which the cosine changes is rounding here, and the slope 1 / sine has no bound; at this small
    # scale the loss of every row is large, so that nothing hides it
    x = F.normalize(head.weight.detach()) + noise * noisy
    _, x_grad, weight_grad = by_chunks(head, x, labels)
    assert x_grad.norm(dim=1).max() < 1.5 / len(x)
    assert (weight_grad.norm(dim=1) * head.weight.norm(dim=1)).max() < 2 / len(x)


@pytest.mark.parametrize("chunk", [1, 2])
def test_far_from_both_of_two_classes_nothing_underflows(chunks_of, chunk):
    head = SubCenterArcFace(4, 2, 1, 64.0, margins=0.5).double()
    with torch.no_grad():
        head.weight.copy_(torch.cat([rotated([0.1], 1), rotated([0.2], 2)]))
    # opposite to both, and opposite to one and close to neither
    x, labels = rotated([math.pi, 3.0, 3.3, 2.9], 1), torch.tensor([0, 1, 0, 1])
    expected = plain(head, x, labels)
    assert expected[0] > 1
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        head = head.to(dtype)
        chunks_of(chunk, head)
        for own, right in zip(by_chunks(head, x.to(dtype), labels), expected, strict=True):
            torch.testing.assert_close(own.double(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposite_to_its_class_and_on_the_other(dtype):
    head = SubCenterArcFace(4, 2, 1, 64.0, margins=0.0).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    x = torch.tensor([[1.0, 0, 0, 0]], dtype=dtype)
    assert by_chunks(head, x, torch.tensor([1]))[0].item() == 128  # e^-128 is no number of float32
    assert 0 <= by_chunks(head, x, torch.tensor([0]))[0].item() < 1e-50


@pytest.mark.parametrize("labels", [[0], [0, 0, 0]])
def test_a_single_class_is_always_right(labels):
    head, x, labels = example(classes=1, margins=0.3, labels=labels)
    loss, x_grad, weight_grad = by_chunks(head, x, labels)
    assert loss == 0 and x_grad.abs().max() == 0 and weight_grad.abs().max() == 0


def test_vectors_of_no_length(chunks_of):
    head, x, labels = example(1)
    chunks_of(4, head)
    with torch.no_grad():
        x[1] = 0
        head.weight[[3, 7]] = 0  # one of them the class of three rows
    for own, expected in zip(by_chunks(head, x, labels), plain(head, x, labels), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)


# --- dtypes ---


def test_bfloat16_weight_keeps_its_dtype(chunks_of):
    head, x, labels = example(dtype=torch.bfloat16)
    chunks_of(4, head)
    own = by_chunks(head, x, labels)
    assert head.weight.dtype == head.weight.grad.dtype == own[1].dtype == torch.bfloat16
    assert own[0].dtype == torch.float32
    for rounded, exact in zip(own, plain(head.double(), x.double(), labels), strict=True):
        torch.testing.assert_close(rounded.double(), exact, rtol=2e-2, atol=2e-2 * float(exact.abs().max()))


def test_bfloat16_embeddings_move_a_float32_weight_in_float32():
    head, x, labels = example(dtype=torch.float32)
    x = x.bfloat16()
    own, expected = by_chunks(head, x, labels), by_chunks(head, x.float(), labels)
    assert own[1].dtype == torch.bfloat16 and head.weight.dtype == own[2].dtype == torch.float32
    assert torch.equal(own[0], expected[0]) and torch.equal(own[2], expected[2])


def test_backward_inside_autocast_is_float32(chunks_of):
    head, x, labels = example(dtype=torch.float32)
    chunks_of(4, head)
    expected = by_chunks(head, x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        own = by_chunks(head, x, labels)
    for inside, outside in zip(own, expected, strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_gpu_equals_cpu(monkeypatch, chunk):
    head, x, labels = example()
    expected = by_chunks(head, x, labels)
    monkeypatch.setattr(chunked, "GPU_CHUNK_BYTES", chunk * head.sub_centers * len(x) * 8)
    with torch.autocast("cuda", torch.bfloat16):
        own = by_chunks(head.cuda(), x.cuda(), labels.cuda())
    for gpu, cpu in zip(own, expected, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-12, atol=1e-12)


# --- memory ---


class NewStorages(TorchDispatchMode):
    """Bytes of every storage that an operation returns and that was not there before.

    It does not see what an operation allocates for itself while it runs.
    """

    def __init__(self, *known):
        super().__init__()
        self.sizes = {tensor.untyped_storage().data_ptr(): 0 for tensor in known}
        self.held = []  # so that no address is used twice

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.held.append(storage)
                self.sizes.setdefault(storage.data_ptr(), storage.nbytes())
        return result


def test_nothing_grows_with_the_weight_but_its_gradient(chunks_of):
    classes, sub_centers, dim, chunk = 400, 3, 16, 10
    head, x, labels = example(sub_centers, classes, 0.3, labels=list(range(0, 400, 50)), dtype=torch.float32, dim=dim)
    chunks_of(chunk, head)
    with NewStorages(head.weight, x, labels) as seen:
        head(x.requires_grad_(), labels).backward()
    sizes = sorted(seen.sizes.values(), reverse=True)
    assert sizes[0] == head.weight.nbytes
    # the norms of the centers, or a chunk: all much smaller than the batch's cosines (B, C), let alone the weight
    allowed = 4 * max(classes * sub_centers, chunk * sub_centers * max(dim, len(x)))
    assert sizes[1] <= allowed < 4 * len(x) * classes


# --- beside the loss ---


@pytest.mark.parametrize("chunk", [1, 4, 50])
@pytest.mark.parametrize("sub_centers", [1, 3])
def test_nearest_class_is_that_of_the_largest_cosine(chunks_of, sub_centers, chunk):
    head, x, _ = example(sub_centers)
    chunks_of(chunk, head)
    value, label = head.nearest_class(x)
    expected, place = head.cosine(x).max(1)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    assert label.tolist() == place.tolist()
    assert not value.requires_grad


@pytest.mark.parametrize("chunk", [1, 2, 50])
def test_nearest_of_equal_classes_is_the_first(chunks_of, chunk):
    head = SubCenterArcFace(4, 4, 1)
    with torch.no_grad():
        head.weight.copy_(torch.eye(4)[[1, 0, 0, 0]])
    chunks_of(chunk, head)
    value, label = head.nearest_class(torch.eye(4)[:1])
    assert (value.item(), label.item()) == (1, 1)


@pytest.mark.parametrize(("step", "share"), [(0, 0.2), (5, 0.6), (10, 1.0), (99, 1.0)])
def test_margins_grow_with_the_steps(step, share):
    head, x, labels = example()
    expected = plain_loss(x, head.weight, labels, MARGINS * share, head.scale, 3)
    easing = SubCenterArcFace(DIM, CLASSES, 3, head.scale, MARGINS, easy_steps=10, easy_start=0.2).double()
    easing.load_state_dict(head.state_dict())
    easing.at_step(99)
    easing.at_step(step)  # a function of the step alone
    torch.testing.assert_close(easing(x, labels), expected, rtol=1e-12, atol=1e-12)


def test_before_the_first_step_margins_are_at_their_start():
    head, x, labels = example()
    easing = SubCenterArcFace(DIM, CLASSES, 3, head.scale, MARGINS, easy_steps=10).double()
    easing.load_state_dict(head.state_dict())
    expected = plain_loss(x, head.weight, labels, 0 * MARGINS, head.scale, 3)
    torch.testing.assert_close(easing(x, labels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"easy_steps": -1}, {"easy_start": 1.5}, {"easy_start": -0.1}])
def test_wrong_easing(wrong):
    with pytest.raises(ValueError, match="easy_steps"):
        SubCenterArcFace(DIM, CLASSES, **wrong)


def test_no_loss_of_an_empty_batch_or_of_what_is_not_finite():
    head, x, labels = example()
    with pytest.raises(ValueError, match="empty batch"):
        head(x[:0], labels[:0])
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match="Embedding 2"):
        head(x, labels)


def test_confident_rows_keep_their_digits(chunks_of):
    head, noisy, labels = example(3, 200, 0.3, labels=list(range(0, 200, 20)), dtype=torch.float32, dim=64, scale=45.0)
    chunks_of(30, head)
    # noise no larger than this leaves a loss of about 1e-5, less than one step of float32 at a logit of 45
    x = F.normalize(head.weight.detach()[labels * 3]) + 0.5 * F.normalize(noisy)
    own = by_chunks(head, x, labels)
    for single, double in zip(own, plain(head.double(), x.double(), labels), strict=True):
        assert (single.double() - double).norm() < 1e-4 * double.norm()


@pytest.mark.parametrize("frozen", ["embeddings", "weight"])
def test_a_gradient_that_nobody_wants_is_not_computed(frozen):
    head, x, labels = example()
    x = x.clone().requires_grad_()
    head(x, labels).backward()
    expected = x.grad if frozen == "weight" else head.weight.grad
    head.zero_grad()
    x = x.detach().requires_grad_(frozen == "weight")
    head.weight.requires_grad_(frozen == "embeddings")
    head(x, labels).backward()
    found, none = (x.grad, head.weight.grad) if frozen == "weight" else (head.weight.grad, x.grad)
    assert none is None
    assert torch.equal(found, expected)


def test_second_derivatives_are_refused():
    head, x, labels = example()
    x = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(head(x, labels), x, create_graph=True)
