"""Some seconds of what `make soak` does for minutes: honest clients notice nothing but a kill."""

import pytest
import soaking


@pytest.mark.timeout(300)
def test_honest_clients_beside_hostile_ones(tmp_path):
    soak = soaking.Soak(tmp_path / "pap_soak", clients=8, think=0.1, large=False, hostile_share=0.4)
    soak.run(10)
    assert not soak.broken(), soak.rows()
    assert soak.stopped_at == 0
    for event in (
        "version published",
        "publisher killed",
        "label moved",
        "server killed and started again",
    ):
        assert soak.events[event], soak.events
    assert soak.honest["quiet", "OK"] and soak.honest["attacked", "OK"]
    assert soak.attacks
    for (kind, answer), _ in soak.attacks.items():
        assert "500" not in answer and "INTERNAL" not in answer, (kind, answer)
        assert "taken" not in answer and not (kind == "reload" and answer == "OK")
