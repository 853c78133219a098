"""Getting an image from its registry, once, beside the calls that wait for it."""

from __future__ import annotations

import threading

from cloudtask.transports.docker_engine import EngineError, engine_errors, open_engine

_SILENCE_SECONDS = 120.0


class Pull:
    """A download in a thread of its own, which ends with the process.  A second one of the same image joins the first, at the engine."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, bool] = {}
        self._over = threading.Event()
        self.failure: EngineError | None = None
        threading.Thread(target=self._run, name="docker-pull", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """True once it is over."""
        return self._over.wait(seconds)

    def progress(self) -> str:
        """How far it is."""
        layers = dict(self._layers)
        return f"{sum(layers.values())} of {len(layers)} layers are here"

    def _run(self) -> None:
        try:
            client = open_engine(_SILENCE_SECONDS).api
            try:
                with engine_errors(f"pulling {self._image}"):
                    for line in client.pull(self._image, stream=True, decode=True):
                        self._note(line)
            finally:
                client.close()
        except EngineError as error:
            self.failure = error
        finally:
            self._over.set()

    def _note(self, line: dict[str, object]) -> None:
        if "error" in line:
            raise ValueError(str(line["error"]))
        layer, status = line.get("id"), line.get("status")
        if isinstance(layer, str) and isinstance(status, str) and not status.startswith("Pulling from"):
            self._layers[layer] = status in ("Pull complete", "Already exists")
