"""The page of the embedded server: show it an image of a cell, see what the model answers and why.

One HTML file without a build step, and four routes behind it. Nothing is loaded from elsewhere, and
the browser is told so: scripts and styles run by their hash alone.
"""

import base64
import functools
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import markupsafe
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from tensorflow_serving.apis import model_pb2

from replication.drawing import pages
from serving.server.errors import HTTP_STATUS, ServingError
from serving.server.page import answers
from serving.server.rest.bodies import Bodies, TooLongError

if TYPE_CHECKING:
    from serving.server.manager import Manager
    from serving.server.monitoring import Metrics

Handler = Callable[[Request], Awaitable[Response]]


def routes(
    manager: "Manager",
    *,
    model_name: str,
    admission: Callable[[], AbstractContextManager[Any]] | None = None,
    bodies: Bodies,
    timeout: float | None,
    metrics: "Metrics | None" = None,
) -> list[BaseRoute]:
    """Returns `/`, `/page/model`, `/page/samples/<n>.png`, `/page/predict` and `/page/detect`.

    Args:
        manager: Holds the versions.
        model_name: Of the model that the page asks; its newest version answers.
        admission: Gives a place among the requests at work, shared with the other fronts, for as
            long as its context is held; raises ServingError RESOURCE_EXHAUSTED where none is free.
            None: no bound.
        bodies: Reads images, shared with the REST front; a larger one is refused with 413.
        timeout: Seconds that the model has for an image; None: as long as it takes.
        metrics: Counts the requests that ask the model; None: nothing does.

    Example:
        >>> app = Starlette(routes=routes(manager, model_name="pap_stage2",
        ...                               bodies=Bodies(2**26), timeout=30.0))
    """
    spec = model_pb2.ModelSpec(name=model_name)
    html, policy = _render(model_name, bodies.limit)
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    @_answered
    async def model(request: Request) -> Response:
        return _json(await run_in_threadpool(answers.describe, manager, spec))

    async def sample(request: Request) -> Response:
        number, last = request.path_params["number"], len(answers.SAMPLES) - 1
        # Whole pages of digits are no number to Python either.
        if number not in map(str, range(last + 1)):
            return _error(404, f"sample: expected 0 to {last}, got {number[:20]}")
        picture = await run_in_threadpool(answers.sample_png, int(number))
        return Response(picture, media_type="image/png", headers={"Cache-Control": "max-age=3600"})

    def about_an_image(answer: Callable[..., Mapping[str, Any]], api: str) -> Handler:
        @_answered
        async def answered(request: Request) -> Response:
            try:
                image = await bodies.read(request.scope, request.receive)
            except TooLongError:
                return _error(413, f"image: expected at most {bodies.limit:,} bytes")
            if image is None:
                # Nobody is left to read it; the number is what nginx logs in this case.
                return Response(status_code=499)
            # Only now, so that whoever sends slowly takes nobody's place.
            with (
                metrics.counted(model_name, api, "PAGE") if metrics else nullcontext(),
                admission() if admission else nullcontext(),
            ):
                return _json(await run_in_threadpool(answer, manager, spec, image, timeout))

        return answered

    return [
        Route("/", page),
        Route("/page/model", model),
        Route("/page/samples/{number}.png", sample),
        Route("/page/predict", about_an_image(answers.ask, "predict"), methods=["POST"]),
        Route("/page/detect", about_an_image(answers.detect, "detect"), methods=["POST"]),
    ]


def _render(model_name: str, max_request_bytes: int) -> tuple[str, str]:
    """The page, and the policy that lets nothing but its own script and style run."""
    style, script = (
        pages.template("serving.server.page", name).render()
        for name in ("page_style.css.j2", "page_script.js.j2")
    )
    html = pages.template("serving.server.page", "page.html.j2").render(
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        model_name=model_name,
        max_request_bytes=max_request_bytes,
    )
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    return html, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _answered(handler: Handler) -> Handler:
    """Turns a `ServingError` into the answer that TensorFlow Serving's REST would give."""

    @functools.wraps(handler)
    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ServingError as error:
            return _error(HTTP_STATUS.get(error.code, 500), error.message)

    return answered


def _json(content: Mapping[str, Any]) -> JSONResponse:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


def _error(status: int, text: str) -> JSONResponse:
    headers = {"Cache-Control": "no-store"} | ({"Retry-After": "1"} if status == 429 else {})
    return JSONResponse({"error": text}, status, headers)
