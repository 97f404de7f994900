"""Names the cells of new images with the trained models of a run; no server needed.

    python -m replication.predict --run_dir=runs/phantom image.jpg folder/ --csv=cells.csv
    python -m replication.predict --run_dir=RUN s3://bucket/cells --csv=cells.csv --cluster=local

Stage 1 says how likely a cell is in the middle of the image, stage 2 which class it belongs to, how
likely HSIL or SCC is, and whether it would rather leave the image to a person.
"""

import time
from pathlib import Path

from absl import app, flags

from replication.flags import shared
from tfds_pap import cluster_flags, commands, path_flags, urls

_RUN_DIR = shared.run_dir("Run whose models are used.", finished=True)
_PROTOCOL, _SEED = shared.trained("the run's")
_CSV = shared.csv("Also write the table to this CSV file (default: none).")
_SAVE_ANNOTATED = path_flags.define(
    "save_annotated",
    None,
    "Folder for copies that carry prediction and, where a folder tells it, truth (default: none).",
    path_flags.NEW_FOLDER,
)
_BATCH_SIZE = shared.batch_size(64, "Images a batch (default: 64).")

flags.adopt_module_key_flags(cluster_flags)


def main(argv: list[str]) -> None:
    """Finds the images, names them in blocks, writes and prints the table."""
    if len(argv) < 2:
        raise app.UsageError("expected images, folders or URLs: image.jpg folder/ s3://BUCKET/ ...")
    table = Path(_CSV.value) if _CSV.value else None
    if cluster_flags.given() and table is None:
        raise app.UsageError("--cluster needs --csv: what workers compute is kept beside it")
    for argument in filter(urls.is_url, argv[1:]):
        urls.check(argument)
    from tfds_pap import folders

    start = time.perf_counter()
    images = folders.images_and_states(argv[1:])
    if table and table.resolve() in (Path(path).resolve() for path, _ in images):
        raise app.UsageError(f"--csv={table}: is one of the images")
    with cluster_flags.connected() as client:
        if client is None:
            commands.prepare_tensorflow()
        from replication.naming import blocks
        from replication.naming.output import SHOWN, Output

        work = blocks.Work.of_run(
            Path(_RUN_DIR.value),
            _PROTOCOL.value,
            _SEED.value,
            batch_size=_BATCH_SIZE.value,
            annotated=Path(_SAVE_ANNOTATED.value) if _SAVE_ANNOTATED.value else None,
        )
        kept_in = table and blocks.opened(table)
        output = Output(
            table,
            None,
            # Of stage 1 alone the probability of a cell is that of a class.
            before=("truth", "cell") if len(work.models) == 2 else ("truth",),
            served=False,
            shown=SHOWN if table else None,
        )
        with output:
            for one in blocks.named(work, images, kept_in=kept_in, client=client):
                output.write(one.path, one.answer, truth=one.truth, cell=one.cell)
    if kept_in:
        blocks.close(kept_in)
    if len(images) <= len(output.rows):
        output.print_table()
    else:
        print(output.summary.line("", time.perf_counter() - start))
    if _SAVE_ANNOTATED.value:
        print(f"Annotated copies: {_SAVE_ANNOTATED.value}")
    if output.summary.failures:
        raise output.failed("could not be read")


if __name__ == "__main__":
    commands.run(main, commands.RESUMES_A_TABLE)
