"""Bodies that are too long, too slow or too many."""

import asyncio
import gzip

import grpc
import numpy as np
import pytest

from serving.server.errors import ServingError
from serving.server.rest.bodies import Bodies, TooLongError


def receiver(*parts, pause=0.0, ending=True):
    """A client that sends these parts."""
    events = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if ending:
        events[-1]["more_body"] = False

    async def receive():
        await asyncio.sleep(pause)
        if not events:
            await asyncio.sleep(60)
        return events.pop(0)

    return receive


def read(bodies, receive, declared=None):
    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    return asyncio.run(bodies.read({"headers": headers}, receive))


def test_parts_are_joined_up_to_the_limit():
    assert read(Bodies(6), receiver(b"abc", b"", b"def")) == b"abcdef"
    with pytest.raises(TooLongError, match="expected 5 bytes at most"):
        read(Bodies(5), receiver(b"abc", b"def"))


def test_a_declared_length_is_believed_before_anything_is_read():
    with pytest.raises(TooLongError):
        read(Bodies(5), None, declared=6)
    assert read(Bodies(5), receiver(b"abcde"), declared=5) == b"abcde"


def test_a_client_that_goes_away():
    async def receive():
        return {"type": "http.disconnect"}

    assert read(Bodies(5), receive) is None


def test_a_slow_body_is_not_waited_for():
    with pytest.raises(ServingError, match=r"did not arrive within 0\.05 seconds") as raised:
        read(Bodies(5, seconds=0.05), receiver(b"a", ending=False))
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_bytes_on_their_way_are_bounded_and_given_back():
    bodies = Bodies(4, together=2)

    async def many():
        slow = [receiver(b"abc", b"d", pause=0.01) for _ in range(3)]
        answers = await asyncio.gather(
            *(bodies.read({"headers": []}, receive) for receive in slow), return_exceptions=True
        )
        again = await bodies.read({"headers": []}, receiver(b"abcd"))
        return answers, again

    answers, again = asyncio.run(many())
    refused = [answer for answer in answers if isinstance(answer, ServingError)]
    assert [error.code for error in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert answers.count(b"abcd") == 2 and again == b"abcd"


def test_what_a_packed_body_unpacks_to_is_bounded_by_its_own_bytes():
    free = 2 * 2**20
    headers = [(b"content-encoding", b"gzip")]

    def unpacked(body, limit=2**24):
        scope = {"headers": headers}
        return asyncio.run(Bodies(limit).read(scope, receiver(gzip.compress(body))))

    assert len(unpacked(bytes(free))) == free
    too_much = bytes(free + 300_000)
    most = free + 100 * len(gzip.compress(too_much))
    with pytest.raises(TooLongError, match=f"expected {most} bytes at most"):
        unpacked(too_much)
    with pytest.raises(TooLongError, match="expected 1000 bytes at most"):
        unpacked(bytes(1_001), limit=1_000)
    # What does not shrink may be as long as any.
    noise = np.random.default_rng(0).bytes(3 * free)
    assert unpacked(noise) == noise
