"""Every invariant's check fails when its rule is broken (mutations.py lists how)."""

from __future__ import annotations

import re

import pytest

from invariants import mutations
from invariants.checks import CHECKS, Subject
from invariants.mutations import MUTATIONS
from invariants.subject import REACHES

CASES = [
    (name, check, reads, kind)
    for name, m in MUTATIONS.items()
    for check in m.caught_by
    for reads in m.reads
    for kind in m.kinds
]


def subject(check: str, reads: str, kind: str = "bridge") -> Subject:
    """Wide heads, sliding windows and an untied head; layer norms that compute in float64."""
    name = "starcoder2" if check == "I8-differences" else "qwen3"
    return Subject(name, reads=reads, kind=kind)


@pytest.mark.parametrize(("mutation", "check", "reads", "kind"), CASES)
def test_mutation_is_caught(mutation: str, check: str, reads: str, kind: str) -> None:
    invariant = check.split("-")[0]
    with MUTATIONS[mutation](), pytest.raises(AssertionError, match=f"^{invariant}"):
        CHECKS[check](subject(check, reads, kind))


@pytest.mark.parametrize("reads", ["position", *REACHES])
@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_without_mutation(check: str, reads: str) -> None:
    CHECKS[check](subject(check, reads))


def test_every_invariant_has_a_mutation() -> None:
    assert {check for _, check, *_ in CASES} == set(CHECKS)


def test_docs_list_every_mutation_with_its_invariants() -> None:
    rows = re.findall(r"^\| (\w+) \|.*\| (I[I0-9, a-z-]+) \|$", mutations.__doc__ or "", re.M)
    assert {name: tuple(caught.split(", ")) for name, caught in rows} == {
        name: mutation.caught_by for name, mutation in MUTATIONS.items()
    }
