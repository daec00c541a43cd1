"""The memory that actors declare to Ray: no more of them start than a node holds, and none waits for ever."""

from __future__ import annotations

import pytest
import ray

from jobs.cluster import pools

GB = 1 << 30


@pytest.fixture
def nodes(monkeypatch):
    """Three nodes; the largest is gone."""
    found = [
        {"Alive": True, "Resources": {"memory": 4.0 * GB}},
        {"Alive": True, "Resources": {"CPU": 8.0, "memory": 10.0 * GB}},
        {"Alive": False, "Resources": {"memory": 100.0 * GB}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 14.0 * GB})


def test_an_actor_declares_what_it_needs_but_no_more_than_the_largest_living_node_has(nodes):
    assert pools.declared_memory(3 * GB) == 3 * GB
    assert pools.declared_memory(50 * GB) == 10 * GB
    assert pools.declared_memory(0) == 0


def test_no_more_actors_than_memory_holds_and_at_least_one(nodes):
    assert pools.num_that_fit(3 * GB) == 4
    assert pools.num_that_fit(50 * GB) == 1
    assert pools.num_that_fit(0) > 1000, "nothing declared, nothing limited"
