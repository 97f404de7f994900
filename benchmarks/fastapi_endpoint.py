"""The endpoint that one would write without a server: FastAPI around `model.predict`.

python benchmarks/fastapi_endpoint.py MODEL.keras SIZE PORT
"""

import sys

import fastapi
import keras
import numpy as np
import uvicorn

from tfds_pap import pipeline


def main(path: str, size: str, port: str) -> None:
    """Serves one model until it is stopped."""
    model, application = keras.saving.load_model(path), fastapi.FastAPI()

    @application.get("/")
    def ready() -> str:
        return "ready"

    @application.post("/predict")
    def predict(body: bytes = fastapi.Body(media_type="image/jpeg")) -> list[float]:
        pixels = pipeline.decode_and_resize(body, int(size)).numpy()
        return np.asarray(model.predict(pixels[None], verbose=0))[0].tolist()

    uvicorn.run(application, port=int(port), log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
