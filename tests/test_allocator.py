"""What the server tells the allocators, and that the user's own settings stay."""

import types

import pytest

from serving.server import allocator

VARIABLE = "TF_CPU_ALLOCATOR_USE_BFC"


@pytest.fixture
def calls(monkeypatch):
    """What the C library was asked for; without a variable that a user may have set."""
    found = []
    library = types.SimpleNamespace(
        mallopt=lambda *arguments: found.append(arguments), malloc_trim=found.append
    )
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    for name in (VARIABLE, "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        # Set first, so that whatever `prepare` sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return found


def test_blocks_of_pictures_are_unmapped_and_arenas_few(calls):
    allocator.prepare()
    # TensorFlow's own allocator is the business of `commands` alone.
    assert VARIABLE not in allocator.os.environ
    assert calls == [(-1, 8 * 2**20), (-3, 4 * 2**20), (-8, 4)]
    calls.clear()
    allocator.trim()
    assert calls == [0]


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_set_stays(calls, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv(VARIABLE, "true")
    allocator.prepare()
    assert allocator.os.environ[VARIABLE] == "true" and not calls


def test_another_c_library_is_left_alone(calls, monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.prepare()
    allocator.trim()
    assert not calls
