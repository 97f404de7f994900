"""A run is a directory that one set of flags and data belongs to."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfds_pap.errors import PapError
from tfds_pap.files import hold, is_empty, read_json, write_json


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A directory that one set of flags and data belongs to.

    Attributes:
        path: The directory.
    """

    path: Path

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        identity: Mapping[str, Any],
        *,
        flag: str = "run_dir",
        alone: bool = True,
    ) -> "RunDirectory":
        """Creates the directory, or resumes it where it was made with the same identity.

        A key that the directory does not have yet is added: a run of stage 1 may be widened to
        stage 2, and only then does the data of stage 2 belong to it.

        Args:
            path: The directory.
            identity: Every flag and data fingerprint that results depend on; JSON values.
            flag: That names the directory, for messages.
            alone: Whether this process alone may work there until it ends; False for the workers
                of a search, which share the directory of their chief.

        Raises:
            PapError: If the directory holds something else, or was made with another identity
                (the message names the first difference), or another process is at work there.
        """
        run = cls(Path(path))
        if not run.manifest_path.exists() and run.path.exists() and not is_empty(run.path):
            raise PapError(f"--{flag}={path} is not empty and holds no manifest.json")
        if alone:
            hold(run.path)
        identity = json.loads(json.dumps(identity))
        if run.manifest_path.exists():
            before = run.manifest().get("identity")
            if not isinstance(before, dict):
                raise PapError(
                    f"{run.manifest_path}: expected an identity; restore it, or delete {path} and "
                    "start again"
                )
            for key in sorted(identity.keys() & before.keys()):
                if identity[key] != before[key]:
                    raise PapError(
                        f"--{flag}={path} was made with {key}={before[key]}, "
                        f"not {identity[key]}; give another --{flag}, or delete it"
                    )
            # Of several workers that share a directory, none rewrites what the others read.
            if identity.keys() - before.keys():
                run.update_manifest(identity={**before, **identity})
        else:
            run.update_manifest(identity=identity)
        return run

    @property
    def manifest_path(self) -> Path:
        """Where the manifest lies."""
        return self.path / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        """Returns the manifest.

        Raises:
            PapError: If this is not a run directory.
        """
        if not self.manifest_path.exists():
            raise PapError(f"{self.path}: not a run directory (no manifest.json)")
        try:
            manifest = read_json(self.manifest_path)
        except PapError as error:
            raise PapError(f"{error}; restore it, or delete {self.path} and start again") from None
        if not isinstance(manifest, dict):
            raise PapError(f"{self.manifest_path}: expected a JSON object")
        return manifest

    def update_manifest(self, **values: Any) -> None:
        """Sets values of the manifest."""
        manifest = read_json(self.manifest_path) if self.manifest_path.exists() else {}
        write_json(self.manifest_path, {**manifest, **values})

    def fit_directory(self, stage: int, protocol: str, seed: int) -> Path:
        """Returns where one trained model and its predictions lie."""
        return self.path / f"stage{stage}" / protocol / f"seed_{seed}"

    def fits(self) -> Iterator[Path]:
        """Yields the directories of finished fits, sorted."""
        return (path.parent for path in sorted(self.path.glob("stage*/*/seed_*/fit.json")))
