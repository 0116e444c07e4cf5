"""
Measures latency, throughput and memory of `lite-whisper serve` under many concurrent requests.

    python benchmarks/serving.py [--clients 200] [--rounds 3] [--max-requests 200] [--batch-size 8] [--threads 2]
        [--model examples/whisper-digits] [--recordings examples/digits/test] [--language en] [--device cpu]
        [--json FILE]

The server runs in its own process. First, every recording is sent on its own. In each round, all clients (OpenAI's
Python client, in one process) then send a recording at the same time, cycling through the folder. Latency is the time
until a client has its answer; if the server refuses requests because of `--max-requests`, it includes the wait until
the client's retry succeeds. Texts are compared with those of the first requests. The resident memory of the server is
measured before the first round and after each.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import openai
import psutil
from record import write_results

from lite_whisper.audio import AudioDataset

ROOT = Path(__file__).parents[1]
MAX_RETRIES = 100  # of a client whose request was refused
UNITS = {
    **{"round": "1", "clients": "1", "lost": "requests", "differ": "requests", "p50": "s", "p95": "s"},
    **{"requests a second": "1/s", "resident": "MB", "one by one, median": "s", "resident before": "MB"},
}


async def transcribe(client: openai.AsyncOpenAI, file: Path, language: str) -> tuple[str, float]:
    """Sends a recording; returns its text and the seconds until the answer."""
    start = time.perf_counter()
    answer = await client.audio.transcriptions.create(model="whisper-1", file=file, language=language)
    return answer.text, time.perf_counter() - start


async def measure(
    url: str, files: list[Path], server: psutil.Process, arguments: argparse.Namespace
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Prints and returns a row per round; also returns the figures measured before the first round."""
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=MAX_RETRIES, timeout=3600
    ) as client:
        distinct = list(dict.fromkeys(files))
        alone = {file: await transcribe(client, file, arguments.language) for file in distinct}
        seconds = [latency for _, latency in alone.values()]
        before = {
            "one by one, median": statistics.median(seconds),
            "resident before": server.memory_info().rss / 1e6,
        }
        print("  ".join(f"{name} {value:.3f}" for name, value in before.items()), flush=True)
        rows = []
        for number in range(1, arguments.rounds + 1):
            start = time.perf_counter()
            requests = (transcribe(client, file, arguments.language) for file in files)
            results = await asyncio.gather(*requests, return_exceptions=True)
            duration = time.perf_counter() - start
            answered = [result for result in results if not isinstance(result, BaseException)]
            differ = sum(
                result[0] != alone[file][0]
                for file, result in zip(files, results, strict=True)
                if not isinstance(result, BaseException)
            )
            latencies = sorted(latency for _, latency in answered)
            p50, p95 = (latencies[int(share * (len(latencies) - 1))] for share in (0.5, 0.95))
            row: dict[str, float] = {
                "round": number,
                "clients": len(files),
                "lost": len(files) - len(answered),
                "differ": differ,
            }
            row |= {"p50": p50, "p95": p95, "requests a second": len(files) / duration}
            rows.append({**row, "resident": server.memory_info().rss / 1e6})
            print("  ".join(f"{name} {value:.5g}" for name, value in rows[-1].items()), flush=True)
    return rows, before


def main() -> None:
    """Starts a server, sends the requests and stops the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-requests", type=int, default=200, help="option of the server")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=ROOT / "examples/whisper-digits")
    parser.add_argument("--recordings", type=Path, default=ROOT / "examples/digits/test")
    parser.add_argument("--language", default="en")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    arguments = parser.parse_args()
    originals = [Path(entry.location) for entry in AudioDataset([str(arguments.recordings)]).entries()]
    files = [originals[index % len(originals)] for index in range(arguments.clients)]
    options = ["--port", "0", "--max-requests", arguments.max_requests, "--batch-size", arguments.batch_size]
    words = [sys.executable, "-m", "lite_whisper", "serve", arguments.model, *options, "--device", arguments.device]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline()
            print(greeting, end="", flush=True)
            url = greeting.partition(" at ")[2].partition(";")[0]
            rows, before = asyncio.run(measure(url, files, psutil.Process(process.pid), arguments))
        finally:
            process.terminate()
    print(f"exit status of the server: {process.returncode}")
    if arguments.json:
        write_results(rows, arguments.json, UNITS, before)


if __name__ == "__main__":
    main()
