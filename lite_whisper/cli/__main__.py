"""`python -m lite_whisper.cli`, as `accelerate launch -m lite_whisper.cli` starts it."""

import sys

from .lite_whisper_commands import main

sys.exit(main())
