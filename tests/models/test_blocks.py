import numpy as np
import pytest
import torch

from landmark_retrieval.models.blocks import GeM, OrthogonalFusion


@pytest.fixture(scope="module")
def arrays(golden):
    return {k: torch.from_numpy(v) for k, v in np.load(golden / "training_formulas" / "arrays.npz").items()}


@pytest.mark.parametrize("p", [1, 3, 4.5])
def test_gem_equals_the_reference(arrays, p):
    torch.testing.assert_close(GeM(p)(arrays["gem_x"]), arrays[f"gem_p{p:g}"], atol=1e-5, rtol=0)


def test_gem_of_p_1_is_the_average_and_of_large_p_the_maximum():
    x = torch.rand(2, 3, 5, 7).double() + 0.1
    torch.testing.assert_close(GeM(1.0)(x), x.mean((2, 3)))
    torch.testing.assert_close(GeM(2000.0).double()(x), x.amax((2, 3)), rtol=5e-3, atol=0)


def test_pooled_fusion_equals_pooling_the_released_fusion(arrays):
    released = OrthogonalFusion("released2021")(arrays["fusion_local"].mean((2, 3)), arrays["fusion_global"])
    torch.testing.assert_close(released, arrays["fusion_henkel_repo"].mean((2, 3)), atol=1e-5, rtol=0)


def test_pooled_fusion_equals_the_true_orthogonal_component(arrays):
    fused = OrthogonalFusion()(arrays["fusion_local"].mean((2, 3)), arrays["fusion_global"])
    orthogonal, global_ = fused.chunk(2, 1)
    expected = arrays["fusion_dolg_concat_pooled"]  # [global, orthogonal]: the order of the DOLG paper
    torch.testing.assert_close(torch.cat([global_, orthogonal], 1), expected, atol=1e-5, rtol=0)


def test_fusion_with_a_zero_global_descriptor_keeps_the_local_one():
    local = torch.randn(2, 8)
    for mode in ("orthogonal", "released2021"):
        assert torch.equal(OrthogonalFusion(mode)(local, torch.zeros(2, 8))[:, :8], local)
