"""
Transcribe on a Ray cluster of three nodes, all running on the local machine.

python examples/ray_cluster.py RECORDINGS --model MODEL --output FILE; accepts all options of lite-whisper transcribe
"""

import os
import sys

from ray.cluster_utils import Cluster

from lite_whisper.cli.transcribe import main

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
try:
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    code = main([*sys.argv[1:], "--ray"], "ray_cluster.py")
finally:
    cluster.shutdown()
sys.exit(code)
