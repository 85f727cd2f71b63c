import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.curriculum import plan_curriculum, run_curriculum


@pytest.fixture
def plan(tiny, tmp_path):
    small = [*tiny, "stage.epochs=1", "stage.freeze=[]", f"run_dir='{tmp_path}/${{stage.name}}'"]
    return lambda *overrides: plan_curriculum("dolg_lite0", [*small, *overrides])


def test_a_chain_runs_to_its_end_and_is_not_run_twice(plan, capfd):
    handoffs = run_curriculum(plan())
    assert [handoff.stage for handoff in handoffs] == ["pretrain_small", "train_medium", "finetune_large"]
    assert handoffs[1].config["parent_weights_sha256"] == handoffs[0].card["weights_sha256"]
    assert "Carried over from pretrain_small" in capfd.readouterr().out

    said = []
    assert [h.card for h in run_curriculum(plan(), said.append)] == [h.card for h in handoffs]
    assert all("is finished" in sentence for sentence in said)


def test_a_stage_that_fails_stops_the_chain_and_says_so(plan, capfd):
    with pytest.raises(LandmarkRetrievalError, match="Stage pretrain_small ended with exit code 2"):
        run_curriculum(plan("data.batch_size=500"))
    assert "smaller data.batch_size" in capfd.readouterr().err
