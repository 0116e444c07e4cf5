"""Transcription on a Ray cluster: on every device an actor with the model, and one process that writes."""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..audio import AudioDataset
from ..common.errors import InputError
from . import transcriber
from .transcriber import Transcriber, finished, lines_to

try:
    import pyarrow
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
    from ray.data.block import BlockMetadata
    from ray.exceptions import RayTaskError
except ImportError as error:
    raise InputError(
        f"a cluster needs Ray ({error}); install it with pip install 'ray[data]'", setting="ray"
    ) from error

Load = Callable[[str], Transcriber]  # on a device


def transcribe_on_cluster(load: Load, sources: Sequence[str], path: Path, on_gpus: bool | None = None) -> None:
    """
    `transcribe_recordings` on the devices of a Ray cluster, with the same lines as its result.

    The cluster is the one that RAY_ADDRESS names, or else is started here. Its nodes need this package and see the
    files under the same names. A chunk whose actor dies is transcribed again.

    Memory: at every device a model and a chunk of recordings; here the numbers of those that are done.

    Args:
        load (`Callable`): loads the model, given the name of a device; runs once in every actor.
        sources (`Sequence[str]`): as for `AudioDataset`.
        path (`Path`): of the lines.
        on_gpus (`bool`, *optional*): by default where the cluster has GPUs.

    Raises:
        InputError: a source holds no audio, `path` holds other recordings, or there are no GPUs.
    """
    AudioDataset(sources)  # what is wrong with them should be known before a cluster is started
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(os.environ.get("RAY_ADDRESS", "local"), logging_level=logging.ERROR, log_to_driver=False)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # every chunk by itself, on whichever device is free
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        done, folder = finished(path), str(Path.cwd())
        chunks_of = partial(_chunks, folder, tuple(sources), transcriber.CHUNK, done, path)
        chunks = ray.data.read_datasource(_Chunks(chunks_of), num_cpus=0)
        results = chunks.map_batches(_Actor, fn_constructor_args=(load, folder), batch_size=1, **_resources(on_gpus))
        with lines_to(path, len(done)) as keep:
            for row in results.iter_rows():
                keep([transcript for transcript in pickle.loads(row["transcripts"]) if transcript.index not in done])
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, (InputError, OSError)):
            setting = getattr(cause, "setting", None)
            raise InputError(str(cause).splitlines()[0], setting) from error  # what follows is Ray's advice on itself
        raise
    finally:
        ray.shutdown()


def _resources(on_gpus: bool | None) -> dict[str, Any]:
    """One actor for each GPU, or for each node and all of its processors."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if on_gpus and not gpus:
        raise InputError("the cluster has no GPU; name no device, or start nodes that have one", setting="device")
    if gpus and on_gpus is not False:
        return {"compute": ActorPoolStrategy(size=gpus), "num_gpus": 1}
    processors = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    processors = [number for number in processors if number]
    return {"compute": ActorPoolStrategy(size=len(processors)), "num_cpus": min(processors)}


class _Chunks(Datasource):
    """A row for each chunk, made when it is asked for, so that a stream of any length can be read."""

    def __init__(self, chunks: Callable[[], Iterator[pyarrow.Table]]) -> None:
        super().__init__()
        self._chunks = chunks

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """A single task: recordings are numbered in their order."""
        return [ReadTask(self._chunks, BlockMetadata(None, None, None, None))]

    def estimate_inmemory_data_size(self) -> None:
        """Not known."""


def _chunks(
    folder: str, sources: Sequence[str], size: int, done: dict[int, str], path: Path
) -> Iterator[pyarrow.Table]:
    os.chdir(folder)  # where relative names lead to the files
    for chunk in transcriber.unfinished_chunks(AudioDataset(sources).entries(), size, done, path):
        row = chunk, {index for index, _ in chunk if index in done}
        yield pyarrow.table({"chunk": [ray.cloudpickle.dumps(row)]})


class _Actor:
    """Holds the model on a device and transcribes chunks."""

    def __init__(self, load: Load, folder: str) -> None:
        os.chdir(folder)
        self._transcriber = load("cuda" if ray.get_gpu_ids() else "cpu")

    def __call__(self, rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
        chunk, done = pickle.loads(rows["chunk"][0])
        for found in self._transcriber.transcripts(self._transcriber.read(chunk), done):
            yield {"transcripts": [pickle.dumps(found)]}
