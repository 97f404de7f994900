"""Some seconds of what `make soak` does for minutes: honest clients notice nothing but a kill.

pytest tests/test_soak.py --thorough             # two minutes
"""

import pytest
import soaking
from commands import start


@pytest.mark.timeout(400)
def test_honest_clients_beside_hostile_ones(tmp_path, pytestconfig):
    thorough = pytestconfig.getoption("thorough")
    few = {"clients": 6, "think": 0.2, "large": False, "hostile_share": 0.4}
    many = {"clients": 32, "think": 0.5}
    soak = soaking.Soak(tmp_path / "pap_soak", start=start, **(many if thorough else few))
    soak.run(120 if thorough else 6)
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
