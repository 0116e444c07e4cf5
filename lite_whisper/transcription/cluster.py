"""Transcription on a Ray cluster: one actor with a model per device, and one process that writes the results."""

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
from .transcriber import Transcriber, finished_recordings, transcript_writer

try:
    import pyarrow
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
    from ray.data.block import BlockMetadata
    from ray.exceptions import RayTaskError
except ImportError as error:
    raise InputError(
        f"transcription on a cluster requires Ray ({error}); install it with pip install 'lite-whisper[ray]'",
        setting="ray",
    ) from error

Load = Callable[[str], Transcriber]  # takes the name of a device


def transcribe_on_cluster(load: Load, sources: Sequence[str], path: Path, on_gpus: bool | None = None) -> None:
    """
    Runs `transcribe_recordings` on the devices of a Ray cluster, with the same results.

    Connects to the cluster at RAY_ADDRESS, or starts one on this machine. Every node needs this package and the files
    at the same paths. If an actor dies, its block is transcribed again.

    Memory: a model and a block of recordings per device; in this process, the indices of the finished recordings.

    Args:
        load (`Callable`): loads the model on the device with the given name; called once per actor.
        sources (`Sequence[str]`): as for `AudioDataset`.
        path (`Path`): file of JSON lines.
        on_gpus (`bool`, *optional*): whether to use GPUs; by default, if the cluster has any.

    Raises:
        InputError: a source contains no audio, `path` has transcripts of other recordings, or there are no GPUs.
    """
    AudioDataset(sources)  # report invalid sources before starting a cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(os.environ.get("RAY_ADDRESS", "local"), logging_level=logging.ERROR, log_to_driver=False)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # one of our blocks per Ray block, so that any free device can take it
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        done, folder = finished_recordings(path), str(Path.cwd())
        read_rows = partial(_rows, folder, tuple(sources), transcriber.BLOCK_SIZE, done, path)
        blocks = ray.data.read_datasource(_Blocks(read_rows), num_cpus=0)
        results = blocks.map_batches(_Actor, fn_constructor_args=(load, folder), batch_size=1, **_resources(on_gpus))
        with transcript_writer(path, len(done)) as write:
            for row in results.iter_rows():
                write([transcript for transcript in pickle.loads(row["transcripts"]) if transcript.index not in done])
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, (InputError, OSError)):
            setting = getattr(cause, "setting", None)
            raise InputError(str(cause).splitlines()[0], setting) from error  # the other lines are Ray's own advice
        raise
    finally:
        ray.shutdown()


def _resources(on_gpus: bool | None) -> dict[str, Any]:
    """Options for one actor per GPU, or one per node with all of its CPUs."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if on_gpus and not gpus:
        raise InputError("the cluster has no GPU; leave the device unset, or add nodes with GPUs", setting="device")
    if gpus and on_gpus is not False:
        return {"compute": ActorPoolStrategy(size=gpus), "num_gpus": 1}
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = [number for number in cpus if number]
    return {"compute": ActorPoolStrategy(size=len(cpus)), "num_cpus": min(cpus)}


class _Blocks(Datasource):
    """A lazy data source with one row per block, so that streams of any length can be read."""

    def __init__(self, read_rows: Callable[[], Iterator[pyarrow.Table]]) -> None:
        super().__init__()
        self._read_rows = read_rows

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """Returns a single task, because recordings are numbered in their order."""
        return [ReadTask(self._read_rows, BlockMetadata(None, None, None, None))]

    def estimate_inmemory_data_size(self) -> None:
        """Returns None: the size is unknown."""


def _rows(folder: str, sources: Sequence[str], size: int, done: dict[int, str], path: Path) -> Iterator[pyarrow.Table]:
    os.chdir(folder)  # resolves relative paths
    for block in transcriber.unfinished_blocks(AudioDataset(sources).entries(), size, done, path):
        row = block, {index for index, _ in block if index in done}
        yield pyarrow.table({"block": [ray.cloudpickle.dumps(row)]})


class _Actor:
    """Holds the model on a device and transcribes blocks."""

    def __init__(self, load: Load, folder: str) -> None:
        os.chdir(folder)
        self._transcriber = load("cuda" if ray.get_gpu_ids() else "cpu")

    def __call__(self, rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
        block, done = pickle.loads(rows["block"][0])
        for transcripts in self._transcriber.transcripts(self._transcriber.read(block), done):
            yield {"transcripts": [pickle.dumps(transcripts)]}
