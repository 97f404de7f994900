"""Searches on several machines: a chief that hands out trials, and workers that train them.

KerasTuner's own chief and workers, with its environment variables, made to survive: a worker that
is killed (its trial is given to another), a chief that is killed and started again (workers go on),
and either that is gone for good (the other ends, with one line).

                              chief      each worker
    KERASTUNER_TUNER_ID       chief      worker_1, worker_2, ...
    KERASTUNER_ORACLE_IP      0.0.0.0    the chief's address
    KERASTUNER_ORACLE_PORT    8000       8000
    FINETUNE_SECRET_FILE      a file with one line, the same for all

Whoever reaches a chief may end its search or feed it results. It listens on this machine alone
unless KERASTUNER_ORACLE_IP names another address, and then asks for the secret. The connection is
not encrypted: it is for a network whose cables you trust.
"""

import hmac
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import keras_tuner
from keras_tuner.engine import trial as trial_module
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_chief, oracle_client
from keras_tuner.src.engine import conditions

from finetune.search import place
from finetune.search.base_oracle import SearchOracle
from tfds_pap.errors import PapError

_SECRET_FILE = "FINETUNE_SECRET_FILE"

#: A worker that is silent for so long is taken for dead. Ten beats may be lost on a busy network;
#: a trial of the paper's size takes longer than that to run again.
LEASE_SECONDS = 60.0
#: A worker gives up a chief that is silent for so long: enough to start one again by hand.
PATIENCE_SECONDS = 600.0
#: The chief prepares data and features before it answers; KerasTuner, too, waits an hour
#: (keras-tuner #990).
START_SECONDS = 3600.0

_TICK_SECONDS = 1.0
_SECRET_HEADER = "finetune-secret"
_SHORTEST_SECRET = 16
#: gRPC's own limit is two minutes: a chief that came back would stand idle.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
#: A call that was under way when the chief died is sent again to the next one (keras-tuner #915).
#: Every call may be sent twice: the oracle takes the first result and answers the second alike.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.5s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class ChiefLost(keras_tuner.errors.FatalError, PapError):
    """The chief does not answer; ends the worker, where other errors would end the trial only."""


def serve(
    oracle: SearchOracle,
    *,
    lease_seconds: float = LEASE_SECONDS,
    on_tick: Callable[[], None] | None = None,
) -> None:
    """Hands out trials until there are no more, and every worker that lives knows it.

    Args:
        oracle: Of the search.
        lease_seconds: A worker that is silent for so long is taken for dead, and its trial given
            to another.
        on_tick: Called about every second, while the oracle does not change; what it raises ends
            the chief.

    Raises:
        PapError: If the port cannot be had, other machines could reach it without a secret, or
            too many trials failed in a row.
    """
    _hush()
    address, secret = place.address(), _secret()
    if secret is None and not place.is_loopback():
        raise PapError(
            f"{place.IP}={os.environ[place.IP]}: other machines reach this chief: expected "
            f"{_SECRET_FILE} as well, a file with a line that the workers have, too"
        )
    # Several threads, so that workers are heard while one of them waits for a proposal.
    pool = futures.ThreadPoolExecutor(max_workers=16)
    # By default, a second chief would share the port without a word (grpc #16920).
    interceptors = [] if secret is None else [_Secret(secret)]
    server = grpc.server(pool, interceptors=interceptors, options=(("grpc.so_reuseport", 0),))
    protos.get_service_grpc().add_OracleServicer_to_server(
        oracle_chief.OracleServicer(oracle), server
    )
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        raise PapError(
            f"{place.IP} and {place.PORT}: {address} cannot be listened on; is another chief "
            "running?"
        ) from None
    server.start()
    try:
        while not oracle.is_over():
            time.sleep(_TICK_SECONDS)
            oracle.expire_leases(lease_seconds)
            if on_tick is not None:
                with oracle.lock:
                    on_tick()
    finally:
        # The last answers are still on their way (keras-tuner #645).
        server.stop(grace=_TICK_SECONDS).wait()
    if oracle.given_up:
        raise PapError(oracle.given_up)


def wait_for_chief(patience_seconds: float = START_SECONDS) -> None:
    """Returns when a chief can be reached.

    Args:
        patience_seconds: How long to wait.

    Raises:
        PapError: If there is none for so long.
    """
    address = place.address()
    with grpc.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=patience_seconds)
        except grpc.FutureTimeoutError:
            raise PapError(
                f"{place.IP} and {place.PORT}: no chief at {address} for {patience_seconds:g} s"
            ) from None


def connect(
    client: oracle_client.OracleClient, *, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Gives a worker's client a channel that outlives the chief, and its trials their values.

    Args:
        client: From KerasTuner; its calls raise `ChiefLost` from now on.
        patience_seconds: A chief that is silent for so long is given up.
    """
    _hush()
    address = place.address()
    options = (*_CHANNEL_OPTIONS, ("grpc.service_config", json.dumps(_RETRIES)))
    channel = grpc.intercept_channel(
        grpc.insecure_channel(address, options=options),
        _Patience(address, patience_seconds, _secret()),
    )
    client.stub = protos.get_service_grpc().OracleStub(channel)
    create_trial, space = client.create_trial, client._oracle.get_space()

    def create_active(tuner_id: str) -> trial_module.Trial:
        trial = create_trial(tuner_id)
        if trial.status == trial_module.TrialStatus.RUNNING:
            # KerasTuner sorts the space by type on its way, and leaves defaults of what is not
            # active among the values.
            hyperparameters = space.copy()
            hyperparameters.values = trial.hyperparameters.values
            hyperparameters.ensure_active_values()
            trial.hyperparameters = hyperparameters
        return trial

    client.create_trial = create_active


class Heartbeat:
    """Tells the chief that a trial is being worked on. Used as a context.

    Args:
        oracle: The worker's client.
        trial_id: The trial.
        lease_seconds: Of the chief; a fourth of it lies between two beats.
    """

    def __init__(self, oracle: Any, trial_id: str, lease_seconds: float = LEASE_SECONDS) -> None:
        self._oracle = oracle
        self._trial_id = trial_id
        self._interval = lease_seconds / 4
        self._stopped = threading.Event()
        # A call that waits for a lost chief must not hold up the end of the process.
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=self._interval)

    def _beat(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                # The oracle renews the lease of whoever asks for a trial.
                self._oracle.get_trial(self._trial_id)
            except (grpc.RpcError, ChiefLost):
                # Whether the chief is lost for good, the trial's own calls find out.
                continue


class _Secret(grpc.ServerInterceptor):
    """Refuses calls without the secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._refusal = grpc.unary_unary_rpc_method_handler(
            lambda _, context: context.abort(
                grpc.StatusCode.UNAUTHENTICATED, f"expected the secret of {_SECRET_FILE}"
            )
        )

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        presented = dict(handler_call_details.invocation_metadata).get(_SECRET_HEADER, "")
        # In a time that does not tell how nearly it was right.
        if hmac.compare_digest(presented.encode(), self._secret):
            return continuation(handler_call_details)
        return self._refusal


class _Patience(grpc.UnaryUnaryClientInterceptor):
    """Bounds how long a call waits for the chief, and says in one line that it did in vain."""

    def __init__(self, address: str, seconds: float, secret: str | None) -> None:
        self._address = address
        self._seconds = seconds
        self._headers = [] if secret is None else [(_SECRET_HEADER, secret)]

    def intercept_unary_unary(
        self, continuation: Callable, client_call_details: Any, request: Any
    ) -> grpc.Call:
        details = client_call_details._replace(timeout=self._seconds, metadata=self._headers)
        call = continuation(details, request)
        error = call.exception()
        if not isinstance(error, grpc.RpcError):
            return call
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise ChiefLost(
                f"the chief at {self._address} did not answer for {self._seconds:g} s; has the "
                "search ended?"
            ) from error
        raise ChiefLost(f"the chief at {self._address} failed: {error.details()}") from error


def _secret() -> str | None:
    """The only line of the secret's file; None where no file is named.

    Raises:
        PapError: If it cannot be read or holds no secret.
    """
    path = os.environ.get(_SECRET_FILE)
    if not path:
        return None
    try:
        secret = Path(path).expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PapError(f"{_SECRET_FILE}={path}: cannot be read: {error}") from None
    if len(secret) < _SHORTEST_SECRET or not secret.isprintable():
        raise PapError(
            f"{_SECRET_FILE}={path}: expected one line of {_SHORTEST_SECRET} characters or more"
        )
    return secret


def _hush() -> None:
    # KerasTuner 1.4.8 prints every condition of the space each time a trial crosses the network.
    conditions.print = lambda *_: None
