"""`python -m lite_whisper.cli`, for `accelerate launch -m lite_whisper.cli`."""

import sys

from lite_whisper_commands import main

sys.exit(main())
