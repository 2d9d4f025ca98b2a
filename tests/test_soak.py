"""The soak itself: what its parts are given, and where it goes on."""

import json
import random
import sys

import pytest

from tests import soak
from tests.kings import KINGS


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Soaks with parts that die as often as they are told to, and their calls."""
    calls = []

    def part(name, deaths):
        def die(kills, root, folder, rng):
            assert (root / KINGS).stat().st_size > 0
            assert rng.random() == random.Random(folder.name).random()  # another one each time
            calls.append((name, kills, folder.name))
            return deaths

        return die

    def run(**deaths):
        calls.clear()
        monkeypatch.setattr(soak, "PARTS", {name: part(name, d) for name, d in deaths.items()})
        monkeypatch.setattr(sys, "argv", ["soak", "6", str(tmp_path)])
        soak.main()
        return calls, json.loads((tmp_path / "soak.json").read_text())

    return run


def test_each_part_gets_its_share_of_the_kills_and_a_stopped_soak_goes_on(run):
    with pytest.raises(AssertionError, match="not killed once"):
        run(grid=1, selection=3, store=0)
    calls, record = run(grid=1, selection=3, store=2)
    assert calls == [("store", 2, "store-0")]  # the other parts were done
    assert record == {"grid": 2, "selection": 3, "store": 2}
