import math

import pytest
import torch
import torch.nn.functional as F

from landmark_retrieval.heads import SubCenterArcFace, center_cosines, dominant_centers, drop_sub_centers


@pytest.fixture
def planted():
    """Embeddings near given centers of a head with 4 classes of 3 centers: labels, and the center each lies at."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 16, generator=generator)
    labels = torch.tensor([0] * 7 + [1] * 6 + [2] * 5)
    centers = torch.tensor([2, 2, 2, 2, 0, 0, 1] + [0, 1, 1, 1, 2, 0] + [1] * 5)
    noise = 0.05 * torch.randn(len(labels), 16, generator=generator)
    scales = 0.1 + torch.rand(len(labels), 1, generator=generator)
    return scales * (F.normalize(weight)[labels * 3 + centers] + noise), labels, centers, weight


def test_the_dominant_center_is_the_one_with_most_images(planted):
    embeddings, labels, centers, weight = planted
    cosines = center_cosines(embeddings, labels, weight, 3)
    assert torch.equal(cosines.argmax(1), centers)
    counts, dominant = dominant_centers(cosines, labels, 4)
    assert counts.tolist() == [[2, 1, 4], [2, 3, 1], [0, 5, 0], [0, 0, 0]]
    assert dominant.tolist() == [2, 1, 1, 0]  # the last class has no images
    # batch by batch, in another order: the counts add up
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    parts = [
        dominant_centers(center_cosines(embeddings[rows], labels[rows], weight, 3), labels[rows], 4)[0]
        for rows in order.split(5)
    ]
    assert torch.equal(sum(parts), counts)


def test_cosines_are_those_of_the_head(planted):
    embeddings, labels, _, weight = planted
    head = SubCenterArcFace(16, 4)
    head.load_state_dict({"weight": weight})
    cosines = center_cosines(embeddings, labels, head.weight, 3)
    assert not cosines.requires_grad
    torch.testing.assert_close(cosines.amax(1), head.cosine(embeddings).detach().gather(1, labels[:, None])[:, 0])
    double = center_cosines(embeddings.double(), labels, weight, 3)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), cosines)
    # what is stored in half precision is not computed in it
    assert center_cosines(embeddings.bfloat16(), labels, weight.bfloat16(), 3).dtype == torch.float32
    itself = center_cosines(weight, torch.arange(4).repeat_interleave(3), weight, 3)
    assert itself.max() <= 1
    torch.testing.assert_close(itself.view(4, 3, 3).diagonal(dim1=1, dim2=2), torch.ones(4, 3))


def test_equal_counts_take_the_first_center():
    counts, dominant = dominant_centers(torch.eye(3)[[2, 1]], torch.tensor([0, 0]), 1)
    assert counts.tolist() == [[0, 1, 1]]
    assert dominant.tolist() == [1]
    assert dominant_centers(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2)[1].tolist() == [0, 0]


def test_dropping_keeps_the_dominant_rows(planted):
    embeddings, labels, _, weight = planted
    dominant = torch.tensor([2, 1, 1, 0])
    dropped = drop_sub_centers(torch.nn.Parameter(weight), 3, dominant)
    assert torch.equal(dropped, weight[[2, 4, 7, 9]])
    assert not dropped.requires_grad
    head = SubCenterArcFace(16, 4, sub_centers=1)
    head.load_state_dict({"weight": dropped})
    expected = center_cosines(embeddings, labels, weight, 3).gather(1, dominant[labels][:, None])
    torch.testing.assert_close(center_cosines(embeddings, labels, head.weight, 1), expected)
    # of one center per class it is that one
    assert torch.equal(drop_sub_centers(dropped, 1, torch.zeros(4, dtype=torch.int64)), dropped)
    assert math.isfinite(head(embeddings, labels).item())


def test_shapes_that_do_not_fit():
    weight, some = torch.randn(6, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"shape \(6, 4\) is not that of classes with 4 centers"):
        center_cosines(torch.randn(2, 4), some, weight, 4)
    with pytest.raises(ValueError, match=r"\(N, 4\) and labels \(N,\)"):
        center_cosines(torch.randn(2, 5), some, weight, 3)
    with pytest.raises(ValueError, match="run from 0 to 2, there are 2 classes"):
        center_cosines(torch.randn(2, 4), torch.tensor([0, 2]), weight, 3)
    with pytest.raises(ValueError, match=r"Cosines \(N, sub_centers\)"):
        dominant_centers(torch.randn(3, 3), some, 2)
    with pytest.raises(ValueError, match="run from 0 to 1, there are 1 classes"):
        dominant_centers(torch.randn(2, 3), some, 1)
    with pytest.raises(ValueError, match="one number for each of 2 classes"):
        drop_sub_centers(weight, 3, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"numbers of centers in \[0, 3\)"):
        drop_sub_centers(weight, 3, torch.tensor([0, 3]))
